"""Progress and its lease: one driver at a time, taken over from the dead, never from the living."""

import json
import socket
import threading
import time
from pathlib import Path

import pytest

from tasks.artifacts import Stage, Store, open_store
from tasks.artifacts import lease as lease_module
from tasks.artifacts.files import open_files
from tasks.artifacts.lease import LEASE, end_if_abandoned, is_dead, lease, this_process
from tasks.artifacts.store import progress_folder
from tasks.errors import LeaseLost
from tests.tasks.artifacts.toys import FILL, STEPS, FillSpec, StepsSpec, build_steps, child, wait_for

KEY = "ab" * 32


@pytest.fixture
def quick(monkeypatch):
    """Heartbeats that a test can wait for."""
    monkeypatch.setattr(lease_module, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease_module, "STALE_SECONDS", 1.0)


def steps_done(witness: Path) -> list[int]:
    """The steps that were done, in order, by all processes together."""
    return [int(line.split()[1]) for line in witness.read_text().splitlines()]


def test_after_a_sigkill_the_next_run_goes_on_at_once_from_the_last_step(store, tmp_path):
    witness = tmp_path / "witness"
    process = child(build_steps, store.url, str(witness), 3)
    wait_for(Path(f"{witness}.stopped"), process)
    process.kill()
    process.join()
    assert steps_done(witness) == [1, 2, 3]
    Path(f"{witness}.go").touch()
    source = FILL.build(store, FillSpec()).artifact
    built = STEPS.build(store, StepsSpec(steps=6, witness=str(witness), stop_at=3), source=source)
    assert steps_done(witness) == [1, 2, 3, 4, 5, 6]
    calm = STEPS.build(store, StepsSpec(steps=6), source=source)
    assert built.artifact.digest == calm.artifact.digest
    assert built.seconds < lease_module.STALE_SECONDS / 2  # a dead process of this machine is not waited for
    assert not store.files.names(progress_folder("steps", built.artifact.key))


def test_a_second_driver_waits_for_the_first_and_takes_its_artifact(store, tmp_path):
    witness = tmp_path / "witness"
    process = child(build_steps, store.url, str(witness), 3)
    wait_for(Path(f"{witness}.stopped"), process)
    source = FILL.build(store, FillSpec()).artifact
    said, built = [], []
    spec = StepsSpec(steps=6, witness=str(witness), stop_at=3)
    waiter = threading.Thread(
        target=lambda: built.append(STEPS.build(store, spec, source=source, on_log=said.append))
    )
    waiter.start()
    while not said:
        time.sleep(0.01)
    assert f"process {process.pid}" in said[0]
    Path(f"{witness}.go").touch()
    waiter.join()
    process.join()
    assert process.exitcode == 0
    assert steps_done(witness) == [1, 2, 3, 4, 5, 6]
    assert built[0].cached
    assert [manifest.stage for manifest in store.manifests()] == ["fill", "steps"]


def acquire(store: Store, seconds: float) -> bool:
    """Tries to get the lease of KEY for some time."""
    end = time.monotonic() + seconds
    with lease(store, "stage", KEY, lambda message: None, lambda: time.monotonic() > end) as held:
        return held is not None


def foreign_lease(beat: int) -> bytes:
    """The lease of a driver on another machine."""
    owner = {"host": "elsewhere", "pid": 1, "started": 0.0, "id": "x"}
    return json.dumps({"owner": owner, "beat": beat}).encode()


def test_a_lease_from_elsewhere_is_respected_while_it_beats_and_taken_over_when_it_stops(store, quick):
    path = f"{progress_folder('stage', KEY)}/{LEASE}"
    store.files.write(path, foreign_lease(0))
    stop = threading.Event()

    def beat():
        count = 0
        while not stop.wait(0.1):
            count += 1
            store.files.write(path, foreign_lease(count))

    beating = threading.Thread(target=beat)
    beating.start()
    assert not acquire(store, 3 * lease_module.STALE_SECONDS)
    stop.set()
    beating.join()
    assert acquire(store, 10 * lease_module.STALE_SECONDS)
    assert not store.files.names(progress_folder("stage", KEY))  # released


@pytest.mark.parametrize("text", [b"", b"{", b"null", b"[]", b"{}", b'{"owner": 3}'], ids=repr)
def test_a_torn_or_foreign_lease_is_taken_over(store, quick, text):
    store.files.write(f"{progress_folder('stage', KEY)}/{LEASE}", text)
    assert acquire(store, 10 * lease_module.STALE_SECONDS)


def test_a_driver_that_lost_its_lease_writes_no_progress(store, quick):
    def run(spec, out):
        out.progress.write("kept", b"1")
        for _ in range(500):  # again and again, for a beat of this driver may be under way at the first time
            store.files.write(f"{out.progress.url}/{LEASE}".removeprefix(f"{store.url}/"), foreign_lease(7))
            out.progress.write("more", b"2")
            time.sleep(0.01)

    stage = Stage("loses", version=1, spec=FillSpec, run=run, progress=True)
    with pytest.raises(LeaseLost, match="run the same command again"):
        stage.build(store, FillSpec())
    assert not list(store.manifests())
    key = stage.key(FillSpec(), {})
    assert store.files.read(f"{progress_folder('loses', key)}/kept") == b"1"
    assert json.loads(store.files.read(f"{progress_folder('loses', key)}/{LEASE}"))["beat"] == 7  # not ours to remove


def test_the_lease_beats_while_it_is_held(store, quick):
    with lease(store, "stage", KEY, lambda message: None, lambda: False) as held:
        path = f"{progress_folder('stage', KEY)}/{LEASE}"
        first = store.files.read(path)
        end = time.monotonic() + 30
        while store.files.read(path) == first:
            assert time.monotonic() < end
            time.sleep(0.01)
        held.require()
    assert store.files.read(path) is None


def test_only_one_of_many_holds_the_lease(store):
    inside, worst, failures = [], [0], []

    def hold():
        try:
            with lease(store, "stage", KEY, lambda message: None, lambda: False) as held:
                inside.append(held)
                worst[0] = max(worst[0], len(inside))
                time.sleep(0.02)
                inside.remove(held)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert worst == [1]


def test_who_is_dead():
    here = this_process()
    assert not is_dead(here)
    assert is_dead(here | {"started": here["started"] - 100})  # the pid has been given to another process
    assert not is_dead(here | {"host": "elsewhere", "pid": 2**22 - 1})
    assert here["host"] == socket.gethostname()


def test_a_forced_run_does_not_go_on_from_old_progress(store, tmp_path):
    """A run killed between its commit and the removal of its progress leaves a finished state behind."""
    witness = tmp_path / "witness"
    source = FILL.build(store, FillSpec()).artifact
    spec = StepsSpec(steps=3, witness=str(witness))
    built = STEPS.build(store, spec, source=source).artifact
    left = f"{progress_folder('steps', built.key)}/state.json"
    store.files.write(left, json.dumps({"step": 3, "sum": -1}).encode())
    again = STEPS.build(store, spec, source=source, force=True)
    assert not again.cached
    assert again.artifact.digest == built.digest
    assert steps_done(witness) == [1, 2, 3, 1, 2, 3]
    assert store.files.read(left) is None


def test_a_forced_run_that_was_killed_goes_on_from_its_own_progress(store, tmp_path):
    witness = tmp_path / "witness"
    source = FILL.build(store, FillSpec()).artifact
    spec = StepsSpec(steps=4, witness=str(witness), stop_at=2)
    go = Path(f"{witness}.go")
    go.touch()
    STEPS.build(store, spec, source=source)
    go.unlink()
    Path(f"{witness}.stopped").unlink()
    process = child(force_steps, store.url, spec)
    wait_for(Path(f"{witness}.stopped"), process)
    process.kill()
    process.join()
    go.touch()
    assert not STEPS.build(store, spec, source=source, force=True).cached
    assert steps_done(witness) == [1, 2, 3, 4, 1, 2, 3, 4]


def force_steps(url: str, spec: StepsSpec) -> None:
    """Builds `steps` again."""
    store = open_store(url)
    STEPS.build(store, spec, source=FILL.build(store, FillSpec()).artifact, force=True)


def test_progress_is_for_stages_that_declare_it(store):
    stage = Stage("plain", version=1, spec=FillSpec, run=lambda spec, out: {"names": out.progress.names()})
    with pytest.raises(TypeError, match="progress=True"):
        stage.build(store, FillSpec())


def test_progress_files_are_listed_replaced_and_deleted(store):
    seen = {}

    def run(spec, out):
        progress = out.progress
        progress.write("a/one", b"1")
        progress.write("a/one", b"2")
        progress.write_json("b", {"x": [1]})
        seen.update(names=progress.names(), a=progress.names("a/"))
        seen.update(one=progress.read("a/one"), b=progress.read_json("b"))
        progress.delete("a")
        seen.update(after=progress.names(), none=progress.read("a/one"), json=progress.read_json("no"))
        seen.update(elsewhere=open_files(progress.url).read("b"))
        return {}

    Stage("progress", version=1, spec=FillSpec, run=run, progress=True).build(store, FillSpec())
    assert seen == {
        "names": ["a/one", "b"],
        "a": ["a/one"],
        "one": b"2",
        "b": {"x": [1]},
        "after": ["b"],
        "none": None,
        "json": None,
        "elsewhere": b'{"x": [1]}',
    }


def test_a_lease_is_abandoned_when_its_process_is_gone_or_it_beats_no_more(store, quick):
    path = f"{progress_folder('steps', KEY)}/{LEASE}"
    assert end_if_abandoned(store, "steps", KEY), "nobody holds it"
    with lease(store, "steps", KEY, lambda _: None, lambda: False):
        assert not end_if_abandoned(store, "steps", KEY, watched_seconds=1.0), "it beats"
        assert store.files.read(path) is not None
    elsewhere = {"owner": {"host": "elsewhere", "pid": 1, "started": 0.0, "id": "x"}, "beat": 3}
    gone = {"owner": this_process() | {"pid": 2**22 + 1, "id": "x"}, "beat": 3}
    for left in (elsewhere, gone):
        store.files.write(path, json.dumps(left).encode())
        assert end_if_abandoned(store, "steps", KEY, watched_seconds=0.5)
        assert store.files.read(path) is None
