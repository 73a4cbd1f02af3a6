"""What the commands that only look show, also of a store that has its faults."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from flows.compare import compare
from flows.planner import plan
from flows.show import show_difference, show_lineage, show_plan, show_settings, show_status
from tasks.artifacts import Store, open_store
from tasks.artifacts.store import manifest_path, progress_folder
from tests.flows.made_runs import demo, fill


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_status_counts_names_what_is_unfinished_and_tells_what_is_torn(store: Store, console: Console) -> None:
    made = fill(store, demo())
    store.files.write(manifest_path("corpus", made["corpus"].key), b"{")
    store.files.write(f"{progress_folder('train', 'ab' * 32)}/state.json", b"{}")
    store.files.write(f"label/{'cd' * 32}/attempts/x.owner", b"{}")
    show_status(console, store)
    rows = {line.split()[0]: line for line in said(console)}
    assert rows["capture"].split()[1] == "2" and rows["train"].split()[1] == "1"
    assert sum("unfinished" in line for line in said(console)) == 2
    assert f"unfinished  train {'ab' * 6}: 1 files of progress" in said(console)
    assert f"unfinished  label {'cd' * 6}: begun" in said(console)
    assert f"corpus {made['corpus'].key[:12]}: The manifest" in said(console)[-1] and "--force" in said(console)[-1]


def test_shards_that_stand_alike_are_one_line(store: Store, console: Console) -> None:
    made = fill(store, demo())
    store.files.remove(manifest_path("capture", made["capture"].key))  # the second of two
    show_plan(console, demo(), plan(demo(), store), store)
    rows = [line.split()[:3] for line in said(console)]
    assert ["capture", "1", "Cached"] in rows and ["capture", "2", "will"] in rows
    assert ["archive", "1", "Cached"] in rows and ["archive", "2", "depends"] in rows
    assert ["model", "Cached", made["model"].key[:12]] in rows


def test_lineage_goes_back_to_the_text(store: Store, console: Console) -> None:
    made = fill(store, demo())
    show_lineage(console, store, made["preprocess"].manifest)
    text = "\n".join(said(console))
    assert "archives ×2, the first:" in text and f"corpus {made['corpus'].key[:12]}" in text


def test_two_results_are_compared_back_to_the_text(store: Store, console: Console) -> None:
    first, second = fill(store, demo()), fill(store, demo("train.k=16", "corpus.max_rows=50"))
    found = {entry.stage: entry for entry in compare(store, first["train"].manifest, second["train"].manifest)}
    order = list(found)
    assert order.index("corpus") < order.index("capture") < order.index("preprocess") < order.index("train")
    assert found["model"].same and not found["model"].settings and not found["model"].figures
    assert not found["train"].same and found["train"].settings == {"k": (8, 16)}
    [text] = compare(store, first["corpus"].manifest, second["corpus"].manifest)
    assert text.settings == {"max_rows": (None, 50)} and not text.same
    show_difference(console, store, first["train"].manifest, second["train"].manifest)
    assert [line.split() for line in said(console) if " k " in line] == [["train", "k", "8", "16"]]
    assert said(console)[-1].startswith("the same: ") and "model" in said(console)[-1]


def test_a_result_does_not_differ_from_itself(store: Store, console: Console) -> None:
    made = fill(store, demo())
    show_difference(console, store, made["train"].manifest, made["train"].manifest)
    assert said(console)[0] == "They do not differ."


def test_which_shard_is_no_setting(console: Console) -> None:
    show_settings(console, demo())
    names = [line.split()[0] for line in said(console)]
    assert "capture.shards" in names and "capture.shard" not in names
