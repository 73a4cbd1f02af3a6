import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tasks import outside
from tasks.artifacts import Artifact, Store, open_store
from tasks.errors import ArtifactError, InputError
from tasks.model import MODEL, ModelSpec, describe_model, load_model, load_tokenizer, model_folder
from tasks.model.files import ModelShape, read_shape
from tasks.model.language_model import LanguageModelSpec
from tests.servers.hub import COMMIT, running_hub

TINY = LanguageModelSpec(
    vocabulary=300, d_model=16, layers=2, heads=2, d_mlp=16, context=16, batch=2, steps=1, threads=1
)
DOCUMENTS = ["\n\n".join(f"The number {n} comes after the number {n - 1}." for n in range(200))]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    from tasks.model.language_model import train_language_model

    folder = tmp_path_factory.mktemp("model")
    train_language_model(TINY, DOCUMENTS, folder, lambda *_: None)
    return folder


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(pristine, tmp_path / "model"))
    for path in copy.iterdir():  # older than the moment, so that hashes are remembered
        os.utime(path, (time.time() - 60, time.time() - 60))
    return copy


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def build(store: Store, path: Path | str) -> Artifact:
    return MODEL.build(store, ModelSpec(path=str(path))).artifact


def test_the_demo_model_is_trained_into_its_artifact(store: Store, monkeypatch) -> None:
    monkeypatch.setattr("tasks.model.stdlib_documents", lambda: DOCUMENTS)
    spec = ModelSpec(demo=TINY)
    said: list[str] = []
    built = MODEL.build(store, spec, on_log=said.append)
    artifact = built.artifact
    assert "bits per byte" in said[0]
    assert artifact.summary["bigram_bits_per_byte"] > 0
    assert MODEL.build(store, spec).cached
    assert not MODEL.build(store, ModelSpec(demo=TINY.model_copy(update={"seed": 1}))).cached
    model, tokenizer = load_model(artifact), load_tokenizer(artifact)
    layer_parameters = sum(weight.numel() for weight in model.model.layers[0].parameters() if weight.ndim == 2)
    assert describe_model(spec) == ModelShape(2, 16, 300, 16, layer_parameters) == read_shape(model_folder(artifact))
    model, tokenizer = load_model(artifact), load_tokenizer(artifact)
    assert not model.training
    assert model(**tokenizer("The number", return_tensors="pt")).logits.shape[-1] == 300
    assert load_model(artifact, dtype=torch.bfloat16).lm_head.weight.dtype == torch.bfloat16


def test_an_outside_model_is_pinned_without_its_path(store: Store, folder: Path, pristine: Path) -> None:
    artifact = build(store, folder)
    assert artifact.names() == ["reference.json"]
    assert str(folder) not in artifact.path("reference.json").read_text()
    assert artifact.summary["source"] == str(folder)
    assert (artifact.summary["layers"], artifact.summary["d_model"], artifact.summary["revision"]) == (2, 16, None)
    names = [file["path"] for file in artifact.json("reference.json")["files"]]
    assert names == ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    copy = build(store, pristine)
    assert copy.key != artifact.key
    assert copy.digest == artifact.digest
    assert torch.equal(load_model(artifact).lm_head.weight, load_model(copy).lm_head.weight)


def test_what_was_not_read_again_is_said(store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    MODEL.build(store, ModelSpec(path=str(folder)), on_log=said.append)  # read for its key a moment before
    assert said == []
    monkeypatch.setattr(outside, "_read_here", set())  # as in a later process
    MODEL.build(store, ModelSpec(path=str(folder)), force=True, on_log=said.append)
    assert "were not read again" in said[0]


def test_an_edited_file_is_never_served_stale(store: Store, folder: Path) -> None:
    before = build(store, folder)
    (folder / "README.md").write_text("changes nothing")
    assert MODEL.build(store, ModelSpec(path=str(folder))).cached
    config = folder / "config.json"
    config.write_text(config.read_text().replace("10000.0", "20000.0"))
    with pytest.raises(ArtifactError, match=r"config\.json has changed since the model was pinned"):
        load_model(before)
    after = build(store, folder)
    assert after.key != before.key
    assert after.digest != before.digest
    load_model(after)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is gone"):
        load_tokenizer(after)


def test_a_relative_path_is_the_folder_it_names(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ModelSpec(path="./model").hashed() == ModelSpec(path=str(folder)).hashed()
    assert ModelSpec(path="model", demo=TINY).hashed() == ModelSpec(path="model").hashed()


def damage_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


def pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "no folder": (shutil.rmtree, "There is no model folder .*check the path"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"has no config\.json"),
    "torn config": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be read as JSON"),
    "other config": (lambda folder: (folder / "config.json").write_text("{}"), "names no num_hidden_layers"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
    "a weight file missing": (damage_index, r"lacks model-00002-of-00002\.safetensors \(1 of 2"),
    "pickle": (pickle_only, r"as a pickle only \(pytorch_model\.bin\)"),
    "cut off": (cut, r"has \d+ bytes where its header says \d+; fetch it again"),
    "no safetensors": (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 200), "is cut off within"),
    "empty weights": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "cannot be read as safetensors"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_unusable_folder_is_refused_at_once(store: Store, folder: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(folder)
    for act in (lambda: describe_model(str(folder)), lambda: build(store, folder)):
        with pytest.raises(InputError, match=message):
            act()


def test_a_file_instead_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"is a file; model\.path wants the folder"):
        describe_model(str(tmp_path / "file"))


def test_weights_that_lack_a_tensor_are_refused(store: Store, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack model\.norm\.weight and 0 more"):
        load_model(build(store, folder))


def test_a_broken_tokenizer_is_refused(store: Store, folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"The tokenizer of .* cannot be loaded"):
        load_tokenizer(build(store, folder))


def test_describing_imports_neither_torch_nor_transformers(folder: Path) -> None:
    code = (
        "import sys; from tasks.model import describe_model; "
        f"print(describe_model({str(folder)!r}).n_layers, {{'torch', 'transformers', 'numpy'}} & set(sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["2", "set()"]


def test_a_real_model_can_be_pinned_and_read(store: Store, shared: Path) -> None:
    artifact = build(store, shared / "models" / "stories260K")
    assert artifact.summary["layers"] == 5
    tokenizer, model = load_tokenizer(artifact), load_model(artifact)
    ids = tokenizer("Once upon a time, there was a little girl named Lily. She", return_tensors="pt").input_ids
    with torch.no_grad():
        assert model(ids, labels=ids).loss.item() < 2.0


HUB_SCRIPT = """
import json, sys
from tasks.artifacts import open_store
from tasks.errors import SaeflowError
from tasks.model import MODEL, ModelSpec, describe_model, model_folder

store = open_store(sys.argv[1])
for name, revision in json.loads(sys.argv[2]):
    try:
        spec = ModelSpec(path=name, revision=revision)
        built = MODEL.build(store, spec)
        model_folder(built.artifact)
        found = built.artifact
        answer = [found.digest, built.cached, found.summary["revision"], describe_model(spec).n_layers]
    except SaeflowError as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer))
"""


def ask_hub(tmp_path: Path, names: list[tuple[str, str | None]], **environment: str) -> list:
    given = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0"} | environment
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HUB_SCRIPT, str(tmp_path / "store"), json.dumps(names)],
        capture_output=True, text=True, env=given, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_hub_model_is_pinned_by_commit_and_read_offline_afterwards(
    store: Store, folder: Path, tmp_path: Path
) -> None:
    with running_hub(folder) as endpoint:
        online = ask_hub(
            tmp_path,
            [
                ("tiny/open", None),
                ("tiny/open", "main"),
                ("tiny/open", "v9"),
                ("tiny/gated", None),
                ("tiny/none", None),
            ],
            HF_ENDPOINT=endpoint,
        )
    digest = build(store, folder).digest
    assert online[0] == [digest, False, COMMIT, 2]
    assert online[1] == [digest, False, COMMIT, 2]
    assert "has no revision 'v9'" in online[2]
    assert "'tiny/gated' is gated: accept its terms" in online[3]
    assert "'tiny/none' is neither a local path nor a hub model" in online[4]
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": endpoint}):  # told to be offline; nobody answers
        offline = ask_hub(tmp_path, [("tiny/open", None), ("tiny/new", None)], **environment)
        assert offline[0] == [digest, True, COMMIT, 2]
        assert "'tiny/new' is no local path, and the hub cannot be reached" in offline[1]


THREADS = """
import sys, threading
from tasks.artifacts import open_store
from tasks.model import MODEL, ModelSpec, load_model, load_tokenizer
artifact = MODEL.find(open_store(sys.argv[1]), ModelSpec(path=sys.argv[2]))
threads = [threading.Thread(target=load, args=(artifact,)) for load in (load_model, load_tokenizer, load_tokenizer)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def test_two_stages_may_load_at_once_in_a_process_that_has_not_imported_transformers(store: Store, folder: Path):
    build(store, folder)
    run = subprocess.run([sys.executable, "-c", THREADS, store.url, str(folder)], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
