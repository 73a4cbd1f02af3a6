"""Stages under Prefect: a real (temporary) Prefect server, small stages of our own, real manifests."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness
from pydantic import Field

from flows.events import Event, listening, stopping
from flows.stages import PrefectDo
from tasks.artifacts import Artifact, Spec, Stage, Store, Summary, Workspace
from tasks.errors import InputError, ShardsFailed, StageFailed
from tasks.runtime import Runtime


class ToySpec(Spec):
    """A number to write down."""

    value: int = Field(1, description="What is written.")
    fail: bool = Field(False, description="Whether the stage fails.")


def write_value(spec: ToySpec, out: Workspace, **inputs: Any) -> Summary:
    if spec.fail:
        raise ZeroDivisionError("toy trouble")
    out.report(1, 1, "values")
    (out.path / "value.txt").write_text(str(spec.value))
    return {"value": spec.value}


ONE = Stage("one", version=1, spec=ToySpec, run=write_value)
TWO = Stage("two", version=1, spec=ToySpec, run=write_value)
PART = Stage("part", version=1, spec=ToySpec, run=write_value)
PACK = Stage("pack", version=1, spec=ToySpec, run=write_value)
ALL = frozenset({"one", "two", "part", "pack"})


@pytest.fixture(scope="module", autouse=True)
def prefect_server() -> Iterator[None]:
    with prefect_test_harness(server_startup_timeout=120):
        yield


def do(
    store: Store, force: frozenset[str] = frozenset(), only: str | None = None, **how: Any
) -> PrefectDo:
    needed = ALL if only is None else frozenset({"one", only})
    return PrefectDo(store, Runtime(**how), force, only, needed)


def states_of(flow_run_id: Any) -> dict[str, str]:
    with get_client(sync_client=True) as client:
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
    return {run.name: run.state.name for run in runs if run.state is not None}


def test_built_then_cached_is_what_the_server_shows(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    @flow
    def chain() -> dict[str, str]:
        from prefect.runtime import flow_run

        go = do(store)
        first = go(ONE, ToySpec())
        go(TWO, ToySpec(value=2), one=first)
        artifacts = go.finish()
        return {"run": flow_run.id, **{name: artifact.digest for name, artifact in artifacts.items()}}

    events: list[Event] = []
    with listening(events.append):
        first, second = chain(), chain()
    assert {name: first[name] for name in ("one", "two")} == {name: second[name] for name in ("one", "two")}
    assert [event.built.cached for event in events if event.built] == [False, False, True, True]
    _eventually(lambda: states_of(first["run"]) == {"one": "Built", "two": "Built"})
    _eventually(lambda: states_of(second["run"]) == {"one": "Cached", "two": "Cached"})


def test_a_changed_setting_rebuilds_only_what_follows_from_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    @flow
    def chain(value: int, force: frozenset[str] = frozenset()) -> None:
        go = do(store, force=force)
        go(TWO, ToySpec(value=value), one=go(ONE, ToySpec()))
        go.finish()

    def cached(value: int, force: frozenset[str] = frozenset()) -> dict[str, bool]:
        events: list[Event] = []
        with listening(events.append):
            chain(value, force)
        return {event.stage: event.built.cached for event in events if event.built}

    assert cached(1) == {"one": False, "two": False}
    assert cached(2) == {"one": True, "two": False}
    # the forced stage comes out the same, so what reads it stays valid
    assert cached(2, frozenset({"one"})) == {"one": False, "two": True}


def test_a_failed_stage_is_told_with_its_own_cause(tmp_path: Path) -> None:
    @flow
    def chain() -> None:
        go = do(Store(str(tmp_path)))
        go(TWO, ToySpec(), one=go(ONE, ToySpec(fail=True)))
        go.finish()

    with pytest.raises(StageFailed, match="one failed: ZeroDivisionError: toy trouble"):
        chain()


def test_after_a_failure_the_other_stages_stop_and_its_own_error_is_the_runs(tmp_path: Path) -> None:
    ended_by_itself = threading.Event()
    running = threading.Event()

    def work_long(spec: ToySpec, out: Workspace) -> Summary:
        running.set()
        for step in range(1200):
            out.report(step, 1201, "steps")
            time.sleep(0.05)
        ended_by_itself.set()
        return write_value(spec, out)

    def fail_meanwhile(spec: ToySpec, out: Workspace) -> Summary:
        assert running.wait(30)
        raise InputError("the corpus is empty")

    store = Store(str(tmp_path))
    long, failing = Stage("one", 1, ToySpec, work_long), Stage("two", 1, ToySpec, fail_meanwhile)

    @flow
    def chain() -> None:
        go = do(store, window=2)
        first, second = go(long, ToySpec()), go(failing, ToySpec())
        go.walk(lambda: go.window(5, lambda i: go(PART, ToySpec(value=i), shard=i, one=first, two=second)))

    events: list[Event] = []
    with listening(events.append), pytest.raises(InputError, match="the corpus is empty"):
        chain()
    assert not ended_by_itself.is_set() and not stopping()
    said = [(event.stage, event.message) for event in events if event.kind == "failed"]
    assert said == [("two", "the corpus is empty"), ("one", "one was stopped, because two failed.")]
    assert not list(store.manifests()) and not store.files.names("")


def test_failed_shards_are_named_and_the_others_are_kept(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def fan(failing: set[int]) -> None:
        go = do(store, window=2)

        def chain(i: int) -> Any:
            part = go(PART, ToySpec(value=i, fail=i in failing), shard=i)
            return go(PACK, ToySpec(value=i), shard=i, part=part)

        go.window(6, chain)

    with pytest.raises(ShardsFailed) as caught:
        flow(fan, validate_parameters=False)({1, 4})
    assert sorted(caught.value.failures) == ["part 2 of 6", "part 5 of 6"]
    assert "toy trouble" in str(caught.value)
    events: list[Event] = []
    with listening(events.append):
        flow(fan, validate_parameters=False)(set())
    cached = {(event.stage, event.shard): event.built.cached for event in events if event.built}
    assert sum(cached.values()) == 8
    assert not cached["part", 1] and not cached["pack", 4]


def test_shards_run_depth_first_in_a_bounded_window(tmp_path: Path) -> None:
    lock, alive, most = threading.Lock(), 0, 0

    def count(change: int) -> None:
        nonlocal alive, most
        with lock:
            alive += change
            most = max(most, alive)

    def begin(spec: ToySpec, out: Workspace) -> Summary:
        count(+1)
        return write_value(spec, out)

    def end(spec: ToySpec, out: Workspace, part: Artifact) -> Summary:
        time.sleep(0.05)
        count(-1)
        return write_value(spec, out)

    part, pack = Stage("part", 1, ToySpec, begin), Stage("pack", 1, ToySpec, end)

    @flow
    def fan() -> None:
        go = do(Store(str(tmp_path)), window=3)
        go.window(8, lambda i: go(pack, ToySpec(value=i), shard=i, part=go(part, ToySpec(value=i), shard=i)))

    fan()
    assert most <= 3
    assert alive == 0


def test_a_stage_alone_needs_what_comes_before_it(tmp_path: Path) -> None:
    store = Store(str(tmp_path))

    def chain(only: str) -> None:
        go = do(store, only=only)
        go(TWO, ToySpec(), one=go(ONE, ToySpec()))
        go.finish()

    with pytest.raises(InputError, match="two needs the artifact of one"):
        flow(chain)("two")
    flow(chain)("one")
    assert not list(store.manifests("two"))
    flow(chain)("two")
    assert len(list(store.manifests("two"))) == 1


def _eventually(true: Any, seconds: float = 20.0) -> None:
    """Prefect sends states in the background: what holds at last is what counts."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "the server never showed the expected states"
        time.sleep(0.2)
