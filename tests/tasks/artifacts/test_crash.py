"""Whatever ends a run, at whatever instant: nothing partial is visible, the same command ends with the same bytes."""

import itertools
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.artifacts import Artifact, Store, files, open_store
from tasks.artifacts.maintenance import damaged, garbage
from tests.tasks.artifacts.toys import build_all, build_with_fault, child


def files_below(folder: Path) -> set[str]:
    """Relative paths of all files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def expected_files(*artifacts: Artifact) -> set[str]:
    """What a store holds when it holds these artifacts and nothing else."""
    found = {"store.json"}
    for artifact in artifacts:
        folder, attempt = f"{artifact.stage}/{artifact.key}", artifact.manifest.attempt
        found |= {f"{folder}/manifest.json", f"{folder}/attempts/{attempt}.json"}
        found |= {f"{folder}/attempts/{attempt}/{name}" for name in artifact.names()}
    return found


def check_that_all_visible_is_whole(store: Store) -> None:
    """Every committed artifact can be read in full; no fault is left to be found later."""
    assert [faults for _, faults in damaged(store) if faults] == []


ENDS = {"kill": {-signal.SIGKILL}, "interrupt": {3}, "full": {3, 4}}  # exit codes; a full disk may be survived
AT_ONCE = 8
SMALL_WASTE = {"a write that never ended", "mark of a run that ended", "progress of a committed key"}


@pytest.mark.parametrize("fault", ENDS)
def test_a_fault_at_every_instant_leaves_nothing_partial_and_the_rebuild_is_the_same(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(files, "UNFINISHED_SECONDS", 0.0)
    calm = build_all(open_store(str(tmp_path / "calm")))
    first, ended = 1, False
    while not ended:
        instants = range(first, first + AT_ONCE)
        processes = [child(build_with_fault, str(tmp_path / f"store-{n}"), fault, n) for n in instants]
        for instant, process in zip(instants, processes, strict=True):
            process.join()
            ended = process.exitcode == 0
            assert ended or process.exitcode in ENDS[fault], f"instant {instant}"
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(lambda n: check_store_and_rebuild(tmp_path / f"store-{n}", calm), instants))
        first += AT_ONCE
    assert first > 30  # the hook has really seen the build's files


def check_store_and_rebuild(folder: Path, calm: tuple[Artifact, ...]) -> None:
    """What is visible is whole; built again it has the same digests; what else lies there is known as garbage."""
    store = open_store(str(folder))
    check_that_all_visible_is_whole(store)
    built = build_all(store)
    assert [artifact.digest for artifact in built] == [artifact.digest for artifact in calm], folder.name
    check_that_all_visible_is_whole(store)
    waste = garbage(store)
    assert {entry.why for entry in waste} <= SMALL_WASTE, "the next build removes the data of a dead attempt at its key"
    garbage_paths = tuple(entry.path for entry in waste)
    left = {name for name in files_below(folder) - expected_files(*built) if not name.startswith(garbage_paths)}
    assert not left, f"{folder.name}: neither part of an artifact nor found by gc"


def write_for_ever(url: str, size: int) -> None:
    """Replaces a small file again and again."""
    store = open_store(url)
    for turn in itertools.count():
        store.files.write("small/file", bytes([turn % 2]) * size)


def test_a_file_that_is_replaced_is_the_old_one_or_the_new_one_at_any_time(tmp_path):
    size = 4 * 2**20
    store = open_store(str(tmp_path / "store"))
    store.files.write("small/file", bytes(size))
    process = child(write_for_ever, store.url, size)
    for _ in range(200):
        assert store.files.read("small/file") in (bytes(size), b"\1" * size)
    process.kill()
    process.join()
    assert store.files.read("small/file") in (bytes(size), b"\1" * size)
