"""A sweep's points, and its plan: one training and one evaluation for each on the same rows."""

from pathlib import Path

import pytest

from flows.config import grid_points
from flows.dag import SWEEP_STAGES
from flows.planner import plan
from flows.preflight import check
from tasks.artifacts import open_store
from tasks.errors import InputError, SpecError
from tests.flows.commands import saeflow
from tests.flows.made_runs import demo, fill


def test_points_are_all_combinations_the_last_axis_fastest() -> None:
    points = grid_points(demo("train.epochs=3"), ["train.k=4,8", "train.lr=1e-3,null,2.5e-3"])
    assert [(point.k, point.lr) for point in points] == [
        (4, 0.001), (4, None), (4, 0.0025), (8, 0.001), (8, None), (8, 0.0025),
    ]  # fmt: skip
    assert {(point.n_latents, point.epochs) for point in points} == {(2048, 3)}  # what is no axis stays as it is


def test_a_point_that_comes_twice_is_one_and_no_axis_is_the_configuration_itself() -> None:
    assert [point.k for point in grid_points(demo(), ["train.k=8,4,8.0", "train.seed=0,0"])] == [8, 4]
    assert grid_points(demo(), []) == [demo().train]
    assert [point.schedule for point in grid_points(demo(), ["train.schedule=linear,cosine"])] == ["linear", "cosine"]


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ("train.k", "has no values; write it as --grid train.k=8,16,32"),
        ("train.k= ", "has no values"),
        ("train.kk=1,2", r"'train.kk' cannot vary \(did you mean 'train.k'\?\)"),
        ("corpus.max_rows=1,2", "only settings of train can; give the others with --set"),
        ("train.k=[1,2", "not readable as YAML"),
        ("train.k=4,many", "train.k .*'many'"),
        ("train.k=8,4096", "k is 4096, but n_latents is only 2048"),
        ("train.batch_size=1024,1023", "workers cannot share equally"),
    ],
)
def test_a_wrong_axis_is_one_sentence(axis: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as caught:
        grid_points(demo(), ["train.seed=1,2", axis])
    assert "\n" not in str(caught.value)


def test_the_plan_of_a_sweep_names_the_points_that_are_there(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    config = demo()
    fill(store, config, grid_points(config, ["train.k=4,8"]))
    planned = plan(config, store, points=grid_points(config, ["train.k=4,8"]))
    assert [entry.stage for entry in planned] == [
        "model", "corpus", *["capture", "archive"] * 2, "preprocess", *["train", "evaluate"] * 2, "sweep",
    ]  # fmt: skip
    assert {entry.state for entry in planned} == {"Cached"} and {entry.stage for entry in planned} == set(SWEEP_STAGES)
    planned = check(config, store, points=grid_points(config, ["train.k=8,16,4"]))
    states = {(entry.stage, entry.shard): entry.state for entry in planned}
    assert [states["train", i] for i in range(3)] == ["Cached", "will run", "Cached"]
    assert [states["evaluate", i] for i in range(3)] == ["Cached", "depends", "Cached"]
    assert states["sweep", None] == "depends"
    forced = plan(config, store, frozenset({"train"}), grid_points(config, ["train.k=4,8"]))
    assert [entry.state for entry in forced if entry.stage == "train"] == ["will run"] * 2


def test_the_check_of_a_sweep_is_that_of_a_run(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    config = demo("capture.sites=[resid_post.3]", "preprocess.site=resid_post.3")
    with pytest.raises(InputError, match="3 layers"):
        check(config, store, points=grid_points(config, ["train.k=4,8"]))
    config = demo("labeller=claude", "runtime.budget_dollars=0")  # a sweep labels nothing
    check(config, store, points=grid_points(config, ["train.k=4,8"]))


def test_plan_with_a_grid_shows_the_points_as_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = saeflow(capsys, "plan", "demo", "--grid", "train.k=4,8,16", "--grid", "train.seed=0,1")
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert code == 0
    assert "×6" in lines["train"] and "×6" in lines["evaluate"] and "depends" in lines["sweep"]
    assert "label" not in lines and "report" not in lines
    code, _, error = saeflow(capsys, "plan", "demo", "--grid", "capture.shards=1,2")
    assert code == 1 and "only settings of train can" in error
