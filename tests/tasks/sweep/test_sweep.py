"""The comparison of a grid: which points are on the front, what varies, and the page that shows it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.artifacts import Artifact, Stage, Store, Summary, Workspace, open_store
from tasks.evaluate import EvaluateSpec
from tasks.plots import Axis
from tasks.sweep import SWEEP, SweepSpec, pareto_front
from tasks.train import TrainSpec

COSTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(COSTS)
def test_the_front_is_what_nothing_beats(costs: list[tuple[int, int]]) -> None:
    front = pareto_front(costs)
    for cost, on_front in zip(costs, front, strict=True):
        beaten_by = [other for other in costs if other[0] <= cost[0] and other[1] <= cost[1] and other != cost]
        assert on_front == (not beaten_by)
        if not on_front:  # then something on the front beats it
            assert any(ok and other in beaten_by for other, ok in zip(costs, front, strict=True))
    assert any(front)


def built(store: Store, points: list[tuple[TrainSpec, float, float, float]]) -> Artifact:
    """A sweep over points given as (spec, L0, FVU, CE recovered)."""

    def train(spec: TrainSpec, out: Workspace) -> Summary:
        (out.path / "cfg.json").write_text(json.dumps({"sae": {"d_in": 64}, "metadata": {"site": "<resid_post.3>"}}))
        (out.path / "sae.safetensors").write_text(spec.model_dump_json())
        return {}

    def evaluate(figures: dict[str, Any]) -> Any:
        def run(spec: EvaluateSpec, out: Workspace) -> Summary:
            (out.path / "metrics.json").write_text(json.dumps(figures))
            return {}

        return run

    saes, metrics = [], []
    for number, (spec, l0, fvu, recovered) in enumerate(points):
        figures = {
            name: {"value": value, "low": 0.9 * value, "high": 1.1 * value}
            for name, value in (("l0", l0), ("fvu", fvu), ("ce_recovered", recovered))
        }
        stage = Stage("evaluate", version=1, spec=EvaluateSpec, run=evaluate(figures | {"dead_share": 0.25}))
        saes.append(Stage("train", version=1, spec=TrainSpec, run=train).build(store, spec).artifact)
        metrics.append(stage.build(store, EvaluateSpec(seed=number)).artifact)
    return SWEEP.build(store, SweepSpec(), saes=saes, metrics=metrics).artifact


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


GRID = [
    (TrainSpec(k=16), 16.0, 0.1, 0.97),
    (TrainSpec(k=4), 4.0, 0.3, 0.9),
    (TrainSpec(k=16, lr=1e-3), 16.0, 0.2, 0.98),
]


def test_points_name_what_varies_and_who_is_on_which_front(store: Store) -> None:
    artifact = built(store, GRID)
    found = artifact.json("points.json")
    assert found["axes"] == ["k", "lr"]
    assert [point["settings"] for point in found["points"]] == [
        {"k": 4, "lr": "auto"}, {"k": 16, "lr": "auto"}, {"k": 16, "lr": 1e-3},
    ]  # fmt: skip
    assert [point["on_front"] for point in found["points"]] == [
        {"fvu": True, "ce_lost": True}, {"fvu": True, "ce_lost": False}, {"fvu": False, "ce_lost": True},
    ]  # fmt: skip
    assert artifact.summary == {"points": 3, "on_front": 2, "lowest_fvu": 0.1, "at": "k=16 lr=auto"}
    assert built(open_store(store.url + "-2"), GRID).digest == artifact.digest


def test_one_point_alone_and_equal_points_have_a_page_too(store: Store) -> None:
    assert built(store, GRID[:1]).summary["points"] == 1
    same = [(TrainSpec(k=4), 4.0, 0.3, 0.9), (TrainSpec(k=5), 4.0, 0.3, 0.9)]
    assert built(store, same).summary["on_front"] == 2


def test_the_page_shows_every_point(store: Store, browser_page: Any, tmp_path: Path) -> None:
    browser_page.goto(built(store, GRID).path("sweep.html").as_uri())
    assert browser_page.locator("svg").count() == 2
    assert browser_page.locator("circle").count() == 6
    assert browser_page.locator("table.points tbody tr").count() == 3
    assert "<resid_post.3>" in browser_page.locator("h1").inner_text()
    assert browser_page.locator("circle.beaten").count() == 2
    boxes = [browser_page.locator("circle").nth(i).bounding_box() for i in range(3)]
    assert boxes[0]["x"] < boxes[1]["x"] == boxes[2]["x"]  # by L0
    assert boxes[0]["y"] < boxes[2]["y"] < boxes[1]["y"]  # by FVU, downwards


@given(
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8),
    st.sampled_from([(0.0, 100.0), (100.0, 0.0)]),
)
def test_an_axis_keeps_the_order_inside_its_ends(values: list[float], ends: tuple[float, float]) -> None:
    axis = Axis(values, *ends)
    places = [axis(value) for value in sorted(values)]
    assert places == sorted(places, reverse=ends[0] > ends[1])
    assert all(0 <= place <= 100 for place in places)
    assert all(0 <= place <= 100 for place, _ in axis.ticks())
