"""What a person sees while a run works: the table, the plain lines, the JSON."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.events import Event
from flows.live import Board, clock_text, quantity
from tasks.artifacts import Built, Spec, Stage, Store, Summary, Workspace, group_digest


class Value(Spec):
    """A value to report."""

    value: int = 1


def report_value(spec: Value, out: Workspace) -> Summary:
    (out.path / "x").write_text(str(spec.value))
    return {"rows": spec.value, "d": 7, "note": "hello"}


def built(folder: Path, stage: str, value: int = 1) -> Built:
    return Stage(stage, 1, Value, report_value).build(Store(str(folder)), Value(value=value))


def board(**how: object) -> tuple[Board, io.StringIO]:
    out = io.StringIO()
    return Board(Console(file=out, width=200, **how)), out  # type: ignore[arg-type]


def test_without_a_terminal_each_stage_is_a_line(tmp_path: Path) -> None:
    seen, out = board()
    with seen:
        seen(Event("started", "corpus"))
        seen(Event("log", "corpus", message="reads stories.txt"))
        seen(Event("finished", "corpus", built=built(tmp_path, "corpus")))
        seen(Event("failed", "model", message="no such folder"))
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["corpus", "reads", "stories.txt"]
    assert "Built in 0s" in lines[1] and "rows 1" in lines[1]
    assert "failed: no such folder" in lines[2]


def test_shards_are_one_row_that_adds_up_what_adds_up(tmp_path: Path) -> None:
    seen, out = board()
    first = built(tmp_path, "capture", 10)
    again = built(tmp_path, "capture", 10)
    other = built(tmp_path, "capture", 5)
    with seen:
        seen(Event("finished", "capture", shard=0, of=2, built=again))
        assert seen.rows["capture"].state == ""
        seen(Event("finished", "capture", shard=1, of=2, built=other))
    assert again.cached and not first.cached
    entry = seen.result()[0]
    assert entry["state"] == "Built"
    assert entry["shards"] == {"built": 1, "cached": 1}
    assert entry["summary"] == {"rows": 15}
    assert entry["digest"] == group_digest([again.artifact.digest, other.artifact.digest])
    assert entry["bytes"] == 3
    assert "rows 15" in out.getvalue()


def test_a_begun_point_counts_for_what_is_done_of_it(tmp_path: Path) -> None:
    seen, _ = board()
    seen(Event("started", "train", shard=0, of=3))
    seen(Event("progress", "train", shard=0, of=3, done=50, total=100, unit="steps"))
    seen(Event("progress", "train", shard=1, of=3, done=20, total=100, unit="steps"))
    assert seen.rows["train"].progress() == (0.7, 3, "points")
    seen(Event("finished", "train", shard=0, of=3, built=built(tmp_path, "train", 1)))
    assert seen.rows["train"].progress() == (1.2, 3, "points")


def test_the_table_shows_state_progress_and_time_left() -> None:
    seen, out = board(force_terminal=True)
    seen(Event("started", "train"))
    row = seen.rows["train"]
    assert row.began is not None
    row.began -= 10
    seen(Event("progress", "train", done=25, total=100, unit="steps"))
    seen.console.print(seen.table())
    line = next(line for line in out.getvalue().splitlines() if "train" in line)
    assert "running" in line and "2.5 steps/s" in line and "-30s" in line


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (7, "7"), (9999, "9999"), (12345, "12.3k"), (1234567, "1.23M"), (3.2e12, "3.2T"), (0.08213, "0.0821")],
)
def test_quantities_read_well(value: float, text: str) -> None:
    assert quantity(value) == text


@pytest.mark.parametrize(("seconds", "text"), [(7.9, "7s"), (125, "2m05"), (11520, "3h12")])
def test_times_read_well(seconds: float, text: str) -> None:
    assert clock_text(seconds) == text
