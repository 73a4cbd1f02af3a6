"""A stage on a store: built once, found again, made anew on demand; many drivers end on one artifact."""

import dataclasses
import json
import os
import threading
from pathlib import Path

import pytest

from flows.dag import STAGES
from tasks.artifacts import Stage, open_store
from tasks.artifacts.maintenance import damaged, garbage, inputs_of
from tasks.artifacts.store import manifest_path
from tasks.errors import ArtifactError, SpecError
from tests.tasks.artifacts.toys import CHILDREN, FILL, STEPS, FillSpec, StepsSpec, build_all, build_fill, child, fill


def test_a_second_build_is_cached_and_the_same(store):
    first, second = FILL.build(store, FillSpec()), FILL.build(store, FillSpec())
    assert (first.cached, second.cached) == (False, True)
    assert second.artifact == first.artifact
    assert first.artifact.names() == ["folder/small.txt", "large.bin"]
    assert first.artifact.path("folder/small.txt").read_text() == "3000 bytes"
    assert first.artifact.summary == {"bytes": 3000}
    assert FILL.find(store, FillSpec()) == first.artifact
    assert FILL.find(store, FillSpec(seed=1)) is None


@pytest.mark.parametrize("name", STAGES)
def test_what_is_committed_is_never_made_again(store, name):
    """Every stage of the pipeline by its own name and spec, capture shard by shard; only its function is a toy."""
    made = []

    def run(spec, out, **_):
        made.append(getattr(spec, "shard", None))
        return {}

    stage = dataclasses.replace(STAGES[name], run=run)
    spec, source = stage.spec(), build_fill(store)
    specs = [spec.part(shard) for shard in range(3)] if name == "capture" else [spec]
    first, second = ([stage.build(store, each, source=source) for each in specs] for _ in range(2))
    assert [built.cached for built in (*first, *second)] == [False] * len(specs) + [True] * len(specs)
    assert [built.artifact for built in second] == [built.artifact for built in first]
    assert made == [getattr(each, "shard", None) for each in specs]


@pytest.mark.parametrize("force", [False, True])
def test_data_are_on_the_disk_before_the_manifest_is(store, monkeypatch, force):
    """Or a power cut could leave a manifest that names files without their bytes."""
    if force:
        build_fill(store)
    synced, commits = set(), []
    fsync, link, replace = os.fsync, os.link, os.replace

    def follow(publish):
        def to(source, target, **how):
            if str(target).endswith("/manifest.json"):
                named = json.loads(Path(source).read_text())
                folder = Path(target).parent / "attempts" / named["attempt"]
                paths = [Path(source), *(folder / file["path"] for file in named["files"])]
                commits.append({str(path) for path in paths if path.stat().st_ino not in synced})
            return publish(source, target, **how)

        return to

    def note(handle):
        fsync(handle)
        synced.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "link", follow(link))
    monkeypatch.setattr(os, "replace", follow(replace))
    FILL.build(store, FillSpec(), force=force)
    assert commits == [set()]


def test_the_same_content_has_the_same_digest_in_any_store(store, tmp_path):
    elsewhere = open_store(str(tmp_path / "elsewhere"))
    assert build_fill(store).digest == build_fill(elsewhere).digest
    assert build_fill(store).digest != build_fill(store, seed=1).digest


def test_nothing_temporary_stays(store, tmp_path):
    build_fill(store)
    assert not list((tmp_path / "saeflow-cache" / "scratch").glob("*/*"))
    assert not garbage(store)


def test_keys_follow_the_digests_of_inputs(store):
    """An input that was made again with the same content disturbs nothing after it."""
    source = build_fill(store)
    first = STEPS.build(store, StepsSpec(), source=source)
    again = FILL.build(store, FillSpec(), force=True).artifact
    assert again.manifest.attempt != source.manifest.attempt
    assert STEPS.build(store, StepsSpec(), source=again).cached
    assert not STEPS.build(store, StepsSpec(), source=build_fill(store, seed=5)).cached
    assert first.artifact.manifest.input_digests() == {"source": source.digest}


def test_a_list_of_shards_is_an_ordered_input(store):
    one, two = build_fill(store, seed=1), build_fill(store, seed=2)
    JOIN = Stage("join", version=1, spec=FillSpec, run=fill)
    joined = JOIN.build(store, FillSpec(), parts=[one, two])
    assert JOIN.build(store, FillSpec(), parts=[one, two]).cached
    assert not JOIN.build(store, FillSpec(), parts=[two, one]).cached
    assert [r.key for r in joined.artifact.manifest.references()] == [one.key, two.key]


def test_force_is_the_remedy_for_a_torn_manifest(store):
    """Also where a killed run has left its mark beside it."""
    source, second = build_all(store)
    works = [(FILL, FillSpec(), {}, source), (STEPS, StepsSpec(), {"source": source}, second)]
    for stage, spec, inputs, broken in works:
        store.files.write(manifest_path(stage.name, broken.key), b"{")
        store.files.write(f"{stage.name}/{broken.key}/attempts/{broken.manifest.attempt}.owner", b"torn")
        with pytest.raises(ArtifactError, match="--force"):
            stage.build(store, spec, **inputs)
        mended = stage.build(store, spec, force=True, **inputs).artifact
        assert stage.find(store, spec, **inputs) == mended
        assert broken.verify() == []  # it may have been the artifact: gc is not for the builder to do


def test_a_stage_that_raises_leaves_nothing(store):
    def fails(spec, out):
        (out.path / "half").write_bytes(b"half")
        raise ValueError("no more")

    stage = Stage("fails", version=1, spec=FillSpec, run=fails)
    with pytest.raises(ValueError, match="no more"):
        stage.build(store, FillSpec())
    assert not list(store.manifests())
    assert not store.files.names("fails")


@pytest.mark.parametrize("summary", [{"rows": float("nan")}, {"rows": {1, 2}}])
def test_a_summary_that_is_no_json_is_refused_before_the_commit(store, summary):
    stage = Stage("odd", version=1, spec=FillSpec, run=lambda spec, out: summary)
    with pytest.raises(SpecError, match=r"rows"):
        stage.build(store, FillSpec())
    assert not list(store.manifests())


def test_a_named_content_digest_stands_for_noisy_bytes(store, tmp_path):
    def noisy(spec, out):
        name = "data.gz"
        (out.path / name).write_bytes(bytes([len(list(tmp_path.iterdir()))]) + b"the same meaning")
        out.content(name, "ab" * 32)
        return {}

    stage = Stage("noisy", version=1, spec=FillSpec, run=noisy)
    first = stage.build(store, FillSpec()).artifact
    (tmp_path / "something else").touch()
    second = stage.build(store, FillSpec(), force=True).artifact
    assert first.manifest.files[0].sha256 != second.manifest.files[0].sha256
    assert first.digest == second.digest
    assert second.verify() == []


def test_force_makes_a_new_attempt_and_keeps_the_old_one_for_those_that_name_it(store):
    old = build_fill(store)
    dependent = STEPS.build(store, StepsSpec(), source=old).artifact
    new = FILL.build(store, FillSpec(), force=True)
    assert not new.cached
    assert FILL.find(store, FillSpec()) == new.artifact
    assert old.verify() == []
    assert not garbage(store)  # `dependent` was made from the old attempt
    assert inputs_of(store, dependent.manifest) == {"source": [old.manifest]}


def build_at_once(url, barrier, results):
    """Builds when all are ready."""
    store = open_store(url)
    barrier.wait()
    artifact = build_all(store)[1]
    results.put((artifact.manifest.attempt, artifact.digest, artifact.manifest.references()[0].attempt))


def test_two_builds_of_one_key_end_on_one_artifact(tmp_path):
    for turn in range(4):
        url = str(tmp_path / f"store-{turn}")
        barrier, results = CHILDREN.Barrier(3), CHILDREN.Queue()
        processes = [child(build_at_once, url, barrier, results) for _ in range(3)]
        found = {results.get(timeout=60) for _ in processes}
        for process in processes:
            process.join()
            assert process.exitcode == 0
        assert len(found) == 1
        store = open_store(url)
        assert [faults for _, faults in damaged(store)] == [[], []]
        assert not garbage(store)
        attempts = {path.name for path in Path(url).glob("*/*/attempts/*") if path.is_dir() and any(path.iterdir())}
        assert len(attempts) == 2  # the losers' data are gone


def test_two_threads_of_one_process_end_on_one_artifact(store):
    found = []
    threads = [threading.Thread(target=lambda: found.append(build_all(store)[1])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len({artifact.manifest.attempt for artifact in found}) == 1
    assert not garbage(store)
