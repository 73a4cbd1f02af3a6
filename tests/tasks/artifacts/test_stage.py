"""A stage on a store: built once, found again, made anew on demand; nothing wrong is ever read as right."""

import json
import os
import pickle
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from tasks.artifacts import Artifact, Stage, Store, open_store
from tasks.artifacts import workspace as workspace_module
from tasks.artifacts.maintenance import collect, damaged, find, garbage, inputs_of
from tasks.errors import ArtifactError, InputError, SpecError, StoreError
from tests.tasks.artifacts.toys import CHILDREN, FILL, STEPS, FillSpec, StepsSpec, build_all, child, fill


@pytest.fixture
def store(tmp_path) -> Store:
    """An empty local store."""
    return open_store(str(tmp_path / "store"))


def build_fill(store: Store, **settings) -> Artifact:
    """One artifact of `fill`."""
    return FILL.build(store, FillSpec(**settings)).artifact


def in_fresh_process(artifact: Artifact) -> Artifact:
    """The artifact as another process sees it: nothing has been verified there yet."""
    from tasks.artifacts import artifact as module

    module._verified.clear()
    return pickle.loads(pickle.dumps(artifact))


def test_a_second_build_is_cached_and_the_same(store):
    first, second = FILL.build(store, FillSpec()), FILL.build(store, FillSpec())
    assert (first.cached, second.cached) == (False, True)
    assert second.artifact == first.artifact
    assert first.artifact.names() == ["folder/small.txt", "large.bin"]
    assert first.artifact.path("folder/small.txt").read_text() == "3000 bytes"
    assert first.artifact.summary == {"bytes": 3000}
    assert FILL.find(store, FillSpec()) == first.artifact
    assert FILL.find(store, FillSpec(seed=1)) is None


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


# ---- damage ----


@pytest.mark.parametrize("how", ["flip", "shorten", "lengthen", "remove", "replace by a folder"])
@pytest.mark.parametrize("access", ["path", "local", "folder", "verify"])
def test_a_damaged_file_is_never_read_as_right(store, how, access):
    artifact = build_fill(store)
    path = artifact.path("large.bin")
    data = path.read_bytes()
    path.unlink()
    if how == "replace by a folder":
        path.mkdir()
    elif how != "remove":
        altered = {"flip": bytes([data[0] ^ 1]) + data[1:], "shorten": data[:-1], "lengthen": data + b"\0"}
        path.write_bytes(altered[how])
    artifact = in_fresh_process(artifact)
    if access == "verify":
        assert len(artifact.verify()) == 1
        assert "large.bin" in artifact.verify()[0]
        return
    ways = {
        "path": lambda: artifact.path("large.bin"),
        "folder": artifact.folder,
        "local": lambda: artifact.local("large.bin").__enter__(),
    }
    with pytest.raises(ArtifactError, match=r"large\.bin .*--force fill"):
        ways[access]()


def test_a_damaged_input_ends_the_stage_that_reads_it_and_commits_nothing(store):
    source = build_fill(store)
    path = source.path("large.bin")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 128]))
    with pytest.raises(ArtifactError, match=r"large\.bin"):
        STEPS.build(store, StepsSpec(), source=in_fresh_process(source))
    assert STEPS.find(store, StepsSpec(), source=source) is None
    path.write_bytes(data)
    assert STEPS.build(store, StepsSpec(), source=in_fresh_process(source)).artifact.summary["sum"] > 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: "{}",
        lambda text: json.dumps(json.loads(text) | {"schema": 99}),
        lambda text: json.dumps(json.loads(text) | {"digest": "00" * 32}),
        lambda text: text.replace('"size": 3000', '"size": 4000').replace("large.bin", "other.bin"),
        lambda text: json.dumps(json.loads(text) | {"surprise": 1}),
    ],
    ids=["torn", "empty", "foreign", "schema", "digest", "files", "field"],
)
def test_a_damaged_manifest_is_an_error_and_not_a_missing_artifact(store, damage):
    artifact = build_fill(store)
    path = Path(store.url, "fill", artifact.key, "manifest.json")
    path.write_text(damage(path.read_text()))
    with pytest.raises(ArtifactError, match=r"manifest .*"):
        FILL.build(store, FillSpec())
    assert not FILL.build(store, FillSpec(), force=True).cached  # what the message advises works
    assert FILL.build(store, FillSpec()).cached


def test_a_manifest_copied_to_another_key_is_refused(store):
    artifact = build_fill(store)
    wanted = FILL.key(FillSpec(seed=1), {})
    store.files.write(f"fill/{wanted}/manifest.json", store.files.read(f"fill/{artifact.key}/manifest.json"))
    with pytest.raises(ArtifactError, match="copied here"):
        FILL.build(store, FillSpec(seed=1))


def test_foreign_files_are_ignored_everywhere(store, tmp_path):
    artifact = build_fill(store)
    key_folder = Path(store.url, "fill", artifact.key)
    for folder in (Path(store.url), Path(store.url, "fill"), key_folder, key_folder / "attempts"):
        (folder / "foreign.txt").write_text("not ours")
        (folder / "foreign").mkdir()
        (folder / "foreign" / "file").write_text("not ours")
    assert FILL.build(store, FillSpec()).artifact == artifact
    assert [manifest.key for manifest in store.manifests()] == [artifact.key]
    assert [faults for _, faults in damaged(store)] == [[]]


def test_a_foreign_file_among_the_data_is_not_handed_out(store):
    """`folder()` goes to libraries that read whatever lies there, a tokenizer's settings for example."""
    artifact = build_fill(store)
    (artifact.folder() / "tokenizer_config.json").write_text("{}")
    assert "tokenizer_config.json" not in artifact.names()
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json"):
        in_fresh_process(artifact).folder()


# ---- force, garbage, finding ----


def test_force_makes_a_new_attempt_and_keeps_the_old_one_for_those_that_name_it(store):
    old = build_fill(store)
    dependent = STEPS.build(store, StepsSpec(), source=old).artifact
    new = FILL.build(store, FillSpec(), force=True)
    assert not new.cached
    assert FILL.find(store, FillSpec()) == new.artifact
    assert old.verify() == []
    assert not garbage(store)  # `dependent` was made from the old attempt
    assert inputs_of(store, dependent.manifest) == {"source": [old.manifest]}


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


# ---- two at once ----


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


# ---- the store itself ----


def test_a_store_says_at_once_that_it_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        open_store(str(tmp_path / "file" / "store")).check()
    with pytest.raises(StoreError, match=r"nosuchscheme.*Give a folder or s3://"):
        open_store("nosuchscheme://bucket")


def test_two_runs_may_check_the_same_store_at_once(store):
    failures = []

    def check():
        try:
            for _ in range(20):
                store.check()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not store.files.names("")


def test_scratch_folders_of_dead_processes_go_but_not_those_of_other_machines(tmp_path):
    """A home may be shared by the nodes of a cluster: a process id means nothing on another node."""
    mine = workspace_module.own_scratch()
    dead = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{dead_pid()}."))
    theirs = mine.with_name(dead.name.replace(socket.gethostname(), "another-node"))
    mine.rename(dead)
    theirs.mkdir()
    workspace_module.own_scratch()
    assert sorted(path.name for path in mine.parent.iterdir()) == sorted([mine.name, theirs.name])


def dead_pid() -> int:
    """The id of a process that has just ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid
