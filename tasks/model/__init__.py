"""The model stage: trains the demo's language model, or pins one that lies outside, so that both are artifacts alike.

    MODEL.build(store, ModelSpec())                                   # the demo's, about a minute
    MODEL.build(store, ModelSpec(path="models/stories"))              # a local folder
    MODEL.build(store, ModelSpec(path="meta-llama/Llama-3.2-1B"))     # a name on the hub
    model, tokenizer = load_model(artifact, device="cuda"), load_tokenizer(artifact)

The artifact of an outside model holds reference.json, the sizes and hashes of the files that matter, and no path: a
local folder, a copy of it and the hub's own files have one digest. `load_model` checks that they still are those files.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tasks.artifacts import Artifact, Spec, Stage, Summary, Workspace
from tasks.corpus.stdlib_text import LICENCE, stdlib_documents, stdlib_fingerprint
from tasks.errors import ArtifactError, InputError
from tasks.folders import home_expanded
from tasks.licence import licence_in, licence_on_hub
from tasks.model.files import (
    ModelShape,
    check_folder,
    has_chat_template,
    hub_commit,
    hub_config,
    hub_snapshot,
    is_local,
    read_shape,
)
from tasks.model.known import known_shape
from tasks.model.language_model import LanguageModelSpec, no_progress_bars, train_language_model
from tasks.outside import pin_file, pin_files, trust_notice
from tasks.settings import Settings, settings

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

REFERENCE = "reference.json"
_importing = threading.Lock()


class ModelSpec(Spec):
    """Which language model is looked into."""

    path: str | None = Field(
        None,
        description="Local folder in Hugging Face format or a name on the hub; empty trains the demo's own model.",
        title="Model",
        json_schema_extra={"position": 0},
    )
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of a hub name; empty takes main.",
        title="Revision",
        json_schema_extra={"position": 1},
    )
    demo: LanguageModelSpec = Field(
        default_factory=LanguageModelSpec,
        description="Shape and training of the demo's model; without effect when a path is given.",
        title="Demo's model",
        json_schema_extra={"position": 2},
    )

    def hashed(self) -> dict[str, Any]:
        """Only what decides the result; a local folder by its absolute path, wherever the command is given."""
        if self.path is None:
            return {"demo": self.demo.hashed()}
        if is_local(self.path):
            return {"path": str(home_expanded(Path(self.path), "model.path").absolute())}
        return {"path": self.path, "revision": self.revision} if self.revision else {"path": self.path}


def pin_model(spec: ModelSpec, settings: Settings) -> dict[str, Any]:
    """Facts about what lies outside: the text's fingerprint, the folder's file hashes, or the hub's commit."""
    if spec.path is None:
        return stdlib_fingerprint()
    if not is_local(spec.path):
        return {"commit": hub_commit(spec.path, spec.revision)}
    folder = home_expanded(Path(spec.path), "model.path").absolute()
    files, _ = pin_files(folder, check_folder(folder), settings.cache)
    return {"files": files}


def make_model(spec: ModelSpec, out: Workspace) -> Summary:
    """Trains the demo's model into the artifact, or writes the reference of an outside one."""
    if spec.path is None:
        summary = train_language_model(spec.demo, stdlib_documents(), out.path, out.report)
        out.log(
            f"The demo's model needs {summary['validation_bits_per_byte']:.3f} bits per byte of held-out text, "
            f"a bigram of the same text {summary['bigram_bits_per_byte']:.3f}."
        )
        return {"source": "trained here", **summary, "licence": LICENCE}
    if is_local(spec.path):
        folder = home_expanded(Path(spec.path), "model.path").absolute()
        source, revision, licence = str(folder), None, licence_in(folder)
    else:
        source, revision = spec.path, hub_commit(spec.path, spec.revision)
        folder = hub_snapshot(source, revision, spec.revision or "main")
        licence = licence_on_hub(source, revision, "model")
    names = check_folder(folder)
    files, trusted = pin_files(folder, names, settings().cache)
    if trusted:
        out.log(f"{source}: {trust_notice(trusted, len(files))}")
    (out.path / REFERENCE).write_text(json.dumps({"files": files}, sort_keys=True, indent=1) + "\n")
    shape = read_shape(folder)
    return {
        "source": source,
        "revision": revision,
        "licence": licence,
        "layers": shape.n_layers,
        "d_model": shape.d_model,
        "vocabulary": shape.vocabulary,
        "context": shape.context,
        "files": len(files),
        "bytes": sum(file["size"] for file in files),
        "trusted_files": trusted,
    }


MODEL = Stage("model", version=1, spec=ModelSpec, run=make_model, pin=pin_model)


def describe_model(model: ModelSpec | str) -> ModelShape | None:
    """Layers and widths, read from config.json alone, or for a hub name that is not here yet known by heart, or None.

    Imports neither torch nor transformers. Raises InputError for a folder that cannot be used.
    """
    spec = ModelSpec(path=model) if isinstance(model, str) else model
    if spec.path is None:
        d, demo = spec.demo.d_model, spec.demo
        return ModelShape(demo.layers, d, demo.vocabulary, demo.context, 4 * d * d + 3 * d * demo.d_mlp)
    if not is_local(spec.path):
        config = hub_config(spec.path, spec.revision)
        return known_shape(spec.path) if config is None else read_shape(config.parent)
    folder = home_expanded(Path(spec.path), "model.path")
    check_folder(folder)
    return read_shape(folder)


def reads_chats(spec: ModelSpec) -> bool | None:
    """Whether the model has a chat template; None for a hub name that is not here yet. The demo's own has none."""
    if spec.path is None:
        return False
    if is_local(spec.path):
        return has_chat_template(home_expanded(Path(spec.path), "model.path"))
    config = hub_config(spec.path, spec.revision)
    return None if config is None else has_chat_template(config.parent) or None


def model_folder(model: Artifact) -> Path:
    """The local folder `from_pretrained` takes, downloaded from the hub when it must be.

    Raises ArtifactError when its files are not those that were pinned.
    """
    if REFERENCE not in model.names():
        return model.folder()
    source, revision = model.summary["source"], model.summary["revision"]
    folder = Path(source) if revision is None else hub_snapshot(source, revision)
    for file in model.json(REFERENCE)["files"]:
        path = folder / file["path"]
        if not path.is_file():
            raise ArtifactError(f"{path} is gone since the model was pinned; restore it, or run with --force model.")
        if pin_file(path, settings().cache).sha256 != file["sha256"]:
            raise ArtifactError(
                f"{path} has changed since the model was pinned (sha256 {file['sha256'][:12]}... was expected); "
                "run the pipeline again, so that what was computed from the old file is made anew."
            )
    return folder


def load_model(
    model: Artifact, device: str | torch.device = "cpu", dtype: str | torch.dtype = "auto", layers: int | None = None
) -> PreTrainedModel:
    """The model in evaluation mode on a device; dtype "auto" keeps the files' own.

    With `layers`, its first so many alone (and the head): what they compute is the same, and the others' weights are
    neither read nor kept. A text model inside a multimodal one is loaded whole.

    Raises ArtifactError when files changed since they were pinned, InputError when they are no causal language model.
    """
    loader, configs = _from_transformers("AutoModelForCausalLM"), _from_transformers("AutoConfig")
    folder = model_folder(model)
    try:
        with no_progress_bars():
            config = configs.from_pretrained(folder, local_files_only=True)
            if layers is not None and hasattr(config, "num_hidden_layers"):
                config.num_hidden_layers = min(layers, config.num_hidden_layers)
            loaded, report = loader.from_pretrained(
                folder, config=config, dtype=dtype, use_safetensors=True, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{model.summary['source']} cannot be loaded as a causal language model: {_first_line(error)} "
            "Give a model that transformers' AutoModelForCausalLM loads."
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"The weights of {model.summary['source']} lack {missing[0]} and {len(missing) - 1} more, which would be "
            "random numbers; give the complete model."
        )
    return loaded.to(device).eval()


def load_tokenizer(model: Artifact) -> PreTrainedTokenizerBase:
    """The model's tokenizer; raises InputError when its files hold none that transformers can read."""
    loader = _from_transformers("AutoTokenizer")
    folder = model_folder(model)
    try:
        return loader.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"The tokenizer of {model.summary['source']} cannot be loaded: {_first_line(error)} "
            "Give a model whose tokenizer transformers' AutoTokenizer loads."
        ) from error


def _from_transformers(name: str) -> Any:
    """One of transformers' classes. Stages run in threads, and its lazy module, which no import lock guards, tells a

    second thread that it has no such class while a first one is still importing it.
    """
    with _importing:
        import transformers

        return getattr(transformers, name)


def _first_line(error: Exception) -> str:
    return (
        next((line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()), type(error).__name__) + "."
    )
