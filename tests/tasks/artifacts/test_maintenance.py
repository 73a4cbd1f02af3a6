"""gc takes what nothing needs and nothing else; artifacts are found by a few characters."""

from pathlib import Path

import pytest

from tasks.artifacts import Stage, open_store
from tasks.artifacts.maintenance import collect, damaged, find, garbage
from tasks.artifacts.store import attempt_folder, manifest_path
from tasks.errors import ArtifactError, InputError
from tests.tasks.artifacts.toys import CHILDREN, FILL, STEPS, FillSpec, StepsSpec, build_all, build_fill, child, fill


def test_gc_removes_what_nothing_needs_and_nothing_else(store):
    used = build_fill(store)
    dependent = STEPS.build(store, StepsSpec(), source=used).artifact
    unused = build_fill(store, seed=1)
    FILL.build(store, FillSpec(), force=True)
    kept = FILL.build(store, FillSpec(seed=1), force=True).artifact
    found = garbage(store)
    assert [entry.path for entry in found] == [f"fill/{unused.key}/attempts/{unused.manifest.attempt}"]
    assert unused.verify() == []  # finding is a dry run
    collect(store, found)
    assert not garbage(store)
    assert len(unused.verify()) == 2
    for artifact in (used, dependent, kept):
        assert artifact.verify() == []


def test_gc_keeps_inputs_of_superseded_attempts_that_are_kept(store):
    """fill (old) <- steps (old) <- join: both old attempts are lineage of join."""
    JOIN = Stage("join", version=1, spec=FillSpec, run=fill)
    first, second = build_all(store)
    JOIN.build(store, FillSpec(), part=second)
    again = FILL.build(store, FillSpec(), force=True).artifact
    STEPS.build(store, StepsSpec(), source=again, force=True)
    assert not garbage(store)
    assert first.verify() == []


def test_gc_spares_what_a_living_process_writes_and_takes_what_a_dead_one_left(store, tmp_path):
    started, release = CHILDREN.Event(), CHILDREN.Event()
    process = child(build_slowly, store.url, started, release)
    assert started.wait(60)
    assert not garbage(store)
    process.kill()
    process.join()
    assert [entry.why for entry in garbage(store)] == ["abandoned by a run that ended"]
    collect(store, garbage(store))
    assert not store.files.names("slow")


def build_slowly(url, started, release):
    """Builds a stage that has written half when it waits."""

    def slow(spec, out):
        (out.path / "half").write_bytes(b"half")
        started.set()
        release.wait()
        return {}

    Stage("slow", version=1, spec=FillSpec, run=slow).build(open_store(url), FillSpec())


def test_gc_does_not_take_what_is_committed_while_it_looks(store, monkeypatch):
    names = store.files.names

    def names_after_a_commit(folder):
        if folder.startswith("fill/") and not FILL.find(store, FillSpec()):
            monkeypatch.setattr(store.files, "names", names)
            build_fill(store)
        return names(folder)

    (Path(store.url) / "fill" / FILL.key(FillSpec(), {}) / "attempts").mkdir(parents=True)
    monkeypatch.setattr(store.files, "names", names_after_a_commit)
    assert not garbage(store)


def test_a_torn_manifest_is_listed_as_damaged_and_nothing_of_its_key_or_its_inputs_is_garbage(store):
    used = build_fill(store)
    dependent = STEPS.build(store, StepsSpec(), source=used).artifact
    FILL.build(store, FillSpec(), force=True)  # `used` is superseded: it lives by being an input of `dependent`
    whole = build_fill(store, seed=1)
    store.files.write(manifest_path("steps", dependent.key), b'{"schema": 1, "sta')
    faults = dict(damaged(store))
    assert [name for name, found in faults.items() if found] == [f"steps {dependent.key[:12]}"]
    assert "--force" in faults[f"steps {dependent.key[:12]}"][0]
    assert len(faults) == 3
    told = []
    assert not garbage(store, lambda *fault: told.append(fault))
    assert [(stage, key) for stage, key, _ in told] == [("steps", dependent.key)]
    assert find(store, whole.key, lambda *fault: told.append(fault)) == whole
    with pytest.raises(ArtifactError, match="cannot be read"):
        garbage(store)


@pytest.mark.parametrize("mark", [b"", b"{", b"[1]", b'{"owner": 3}', b'{"pid": 1}'])
def test_a_torn_or_foreign_mark_of_an_owner_is_nobodys_or_somebody_elsewheres(store, mark):
    artifact = build_fill(store)
    folder = attempt_folder("fill", artifact.key, artifact.manifest.attempt)
    store.files.write(f"{folder}.owner", mark)
    store.files.write(f"{folder}x.owner", mark)
    elsewhere = mark == b'{"pid": 1}'  # names a process, but no machine: it cannot be asked
    expected = [] if elsewhere else ["mark of a run that ended", "superseded"]
    assert [entry.why for entry in garbage(store)] == expected
    FILL.build(store, FillSpec(), force=True)  # cleans up after the dead on its way, but keeps what is committed
    assert artifact.verify() == []


def test_find_by_a_few_characters(store):
    artifact = build_fill(store)
    build_fill(store, seed=1)
    for text in (artifact.key[:10], artifact.digest[:10], f"fill/{artifact.key[:8]}", f"fill/{artifact.key}"):
        assert find(store, text) == artifact
    assert find(store, "fill").manifest.spec["seed"] == 1  # the newest
    with pytest.raises(InputError, match="saeflow status"):
        find(store, "zzz")
    keys = [build_fill(store, seed=seed).key for seed in range(17)]  # two of them begin with the same hex digit
    twice = next(key[0] for key in keys if [other[0] for other in keys].count(key[0]) > 1)
    with pytest.raises(InputError, match="give more characters"):
        find(store, f"fill/{twice}")
