"""Reading: what is damaged, copied or foreign is never taken for the real thing."""

import json
import pickle
from pathlib import Path

import pytest

from tasks.artifacts import Artifact
from tasks.artifacts.maintenance import damaged
from tasks.errors import ArtifactError
from tests.tasks.artifacts.toys import FILL, STEPS, FillSpec, StepsSpec, build_fill


def in_fresh_process(artifact: Artifact) -> Artifact:
    """The artifact as another process sees it: nothing has been verified there yet."""
    from tasks.artifacts import artifact as module

    module._verified.clear()
    return pickle.loads(pickle.dumps(artifact))


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
