"""One's own store over a shared one: what is there is Cached, and nothing of it is touched."""

import io
import os
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from flows.show import show_status
from tasks.artifacts import Store, open_store
from tasks.artifacts.lease import LEASE
from tasks.artifacts.maintenance import collect, damaged, find, garbage, inputs_of
from tasks.artifacts.manifest import Manifest
from tasks.artifacts.store import own_store, progress_folder
from tests.tasks.artifacts.toys import FILL, STEPS, FillSpec, StepsSpec


def contents(store: Store) -> dict[str, bytes | None]:
    return {path: store.files.read(path) for path in store.files.names("")}


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store in which `fill` and `steps` are done, as SAEFLOW_BASE_STORE."""
    url = str(tmp_path / "shared") if request.param == "local" else request.getfixturevalue("s3_url")
    store = Store(url)
    STEPS.build(store, StepsSpec(), source=FILL.build(store, FillSpec()).artifact)
    os.environ["SAEFLOW_BASE_STORE"] = url
    open_store.cache_clear()
    return store


def test_what_is_there_is_cached_and_what_is_made_is_ones_own(shared: Store, tmp_path: Path) -> None:
    before = contents(shared)
    mine = open_store(str(tmp_path / "mine"))
    source = FILL.build(mine, FillSpec())
    assert source.cached and source.artifact.location.startswith(shared.url)
    there = FILL.find(shared, FillSpec())
    assert source.artifact.path("large.bin").read_bytes() == there.path("large.bin").read_bytes()
    assert STEPS.build(mine, StepsSpec(), source=source.artifact).cached
    made = STEPS.build(mine, StepsSpec(steps=5), source=source.artifact)
    assert not made.cached and made.artifact.location.startswith(mine.url)
    assert made.artifact.folder().is_relative_to(tmp_path / "mine")
    [inputs] = inputs_of(mine, made.artifact.manifest).values()
    assert isinstance(inputs[0], Manifest), "where it came from can be told across both"
    assert find(mine, "fill").digest == source.artifact.digest
    assert STEPS.build(mine, StepsSpec(steps=5), source=source.artifact).cached
    assert contents(shared) == before


def test_force_makes_it_again_in_ones_own(shared: Store, tmp_path: Path) -> None:
    before = contents(shared)
    mine = open_store(str(tmp_path / "mine"))
    again = FILL.build(mine, FillSpec(), force=True)
    assert not again.cached and again.artifact.location.startswith(mine.url)
    assert FILL.build(mine, FillSpec()).artifact.location == again.artifact.location
    assert contents(shared) == before


def test_others_progress_and_garbage_are_theirs(shared: Store, tmp_path: Path) -> None:
    key = "ab" * 32
    shared.files.write(f"{progress_folder('steps', key)}/{LEASE}", b"{}")
    shared.files.write(f"fill/{FILL.find(shared, FillSpec()).key}/attempts/abandoned/x", b"x")
    before = contents(shared)
    mine = open_store(str(tmp_path / "mine"))
    assert mine.files.names(progress_folder("steps", key)) == []
    show_status(console := Console(file=io.StringIO(), width=200), mine)
    assert "fill" in console.file.getvalue() and "unfinished" not in console.file.getvalue()
    own = own_store(str(tmp_path / "mine"))
    FILL.build(mine, FillSpec(seed=1))
    assert [name for name, _ in damaged(own)] == [f"fill {FILL.find(mine, FillSpec(seed=1)).key[:12]}"]
    collect(own, garbage(own))
    assert contents(shared) == before


def test_without_the_shared_one_what_it_held_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = Store(str(tmp_path / "shared"))
    FILL.build(base, FillSpec())
    monkeypatch.setenv("SAEFLOW_BASE_STORE", base.url)
    open_store.cache_clear()
    mine = open_store(str(tmp_path / "mine"))
    assert FILL.build(mine, FillSpec()).cached
    shutil.rmtree(tmp_path / "shared")
    assert not FILL.build(mine, FillSpec()).cached
