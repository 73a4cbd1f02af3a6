"""The files of a model in Hugging Face format: which of them matter, whether they are whole, and what the hub says.

Reads json and safetensors headers only; imports neither torch nor transformers, huggingface_hub only for hub names.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from tasks.errors import InputError, NotHereError
from tasks.folders import home_expanded

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER_FILES = (
    "added_tokens.json",
    CHAT_TEMPLATE,
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
WITHOUT_GATE = ("gpt2", "gpt_neo", "gpt_neox", "opt", "bloom", "falcon", "phi")  # their MLP has two matrices, not three
HUB_PATTERNS = [CONFIG, INDEX, "*.safetensors", *TOKENIZER_FILES]
_COMPLETE_TOKENIZERS = (
    {"tokenizer.json"},
    {"tokenizer.model"},
    {"spiece.model"},
    {"vocab.txt"},
    {"vocab.json", "merges.txt"},
)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


class ModelShape(NamedTuple):
    """What config.json says about a model; None where it does not say."""

    n_layers: int
    d_model: int
    vocabulary: int | None
    context: int | None
    layer_parameters: int  # weights of one layer's attention and MLP together


def is_local(path: str) -> bool:
    """Whether a path means a folder of this machine rather than a name on the hub: it exists, or it looks like one."""
    return home_expanded(Path(path), "model.path").exists() or _HUB_NAME.fullmatch(path) is None


def check_folder(folder: Path) -> list[str]:
    """Names of the files that decide what the model computes, sorted.

    Raises InputError for a folder that is missing, unreadable, incomplete, cut off, or holds pickled weights only.
    """
    names = _list_names(folder)
    if CONFIG not in names:
        raise InputError(
            f"{folder} has no {CONFIG}, so it is no model in Hugging Face format; give the folder that has."
        )
    weights = _weight_files(folder, names)
    for name in weights:
        _check_safetensors(folder / name)
    if not any(needed <= names for needed in _COMPLETE_TOKENIZERS):
        raise InputError(
            f"{folder} has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json with merges.txt); "
            "save the model's tokenizer into the same folder."
        )
    indices = {INDEX} & names if WEIGHTS not in names else set()
    return sorted({CONFIG, *weights, *indices, *(names & set(TOKENIZER_FILES))})


def read_shape(folder: Path) -> ModelShape:
    """Layers and widths from config.json, also of a text model inside a multimodal one."""
    path = folder / CONFIG
    try:
        config: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); restore the model's {CONFIG}.") from error
    config = config.get("text_config") or config

    def first(*names: str) -> int | None:
        return next((config[name] for name in names if isinstance(config.get(name), int)), None)

    layers = first("num_hidden_layers", "n_layer", "n_layers", "num_layers")
    d_model = first("hidden_size", "n_embd", "d_model", "dim")
    if layers is None or d_model is None:
        raise InputError(
            f"{path} names no num_hidden_layers or no hidden_size (it has {', '.join(sorted(config)[:8])}, ...); "
            "give a decoder-only language model."
        )
    heads = first("num_attention_heads", "n_head", "num_heads") or 1
    d_queries = heads * (first("head_dim") or d_model // heads)
    d_keys = d_queries * (first("num_key_value_heads") or heads) // heads
    d_mlp = first("intermediate_size", "n_inner", "ffn_dim") or 4 * d_model
    mlp = (2 if config.get("model_type") in WITHOUT_GATE else 3) * d_model * d_mlp
    return ModelShape(
        layers,
        d_model,
        first("vocab_size"),
        first("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"),
        2 * d_model * (d_queries + d_keys) + mlp,
    )


def has_chat_template(folder: Path) -> bool:
    """Whether a model's tokenizer says how it reads a conversation."""
    if (folder / CHAT_TEMPLATE).is_file():
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_bytes()).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def hub_commit(name: str, revision: str | None, kind: Literal["model", "dataset"] = "model") -> str:
    """The commit a hub name and revision mean now; offline, the one this machine has kept."""
    if revision and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]  # of its HTTP library

    if not constants.is_offline_mode():
        try:
            return str(HfApi().repo_info(name, revision=revision, repo_type=kind, timeout=10).sha)
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in (401, 403, 404):
                _refuse_hub(name, revision, error, kind)
        except (HTTPError, OSError):
            pass  # no network: what was downloaded before serves
    kept = _hub_folder(name, kind) / "refs" / (revision or "main")
    if not kept.is_file():
        raise NotHereError(
            f"{name!r} is no local path, and the hub cannot be reached to look it up; "
            "check the spelling, give a local path, or connect and run again."
        )
    return kept.read_text().strip()


def hub_snapshot(name: str, commit: str, revision: str | None = None) -> Path:
    """The local folder with the model's files at a commit, downloading what is missing.

    Given the revision that led to the commit, the hub's cache notes both, and the name can be read offline later.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    kept = _hub_folder(name) / "snapshots" / commit
    try:
        check_folder(kept)
        return kept
    except InputError:
        pass  # not here yet, or only in part
    shown = not are_progress_bars_disabled()
    disable_progress_bars()  # they would be drawn over the table of stages
    try:
        folder = Path(snapshot_download(name, revision=revision or commit, allow_patterns=HUB_PATTERNS))
    except LocalEntryNotFoundError as error:
        raise NotHereError(
            f"{name!r} at {commit[:12]} is not complete on this machine and the hub cannot be reached; "
            "connect and run again, or give a local folder."
        ) from error
    except HfHubHTTPError as error:
        _refuse_hub(name, commit, error)
    finally:
        if shown:
            enable_progress_bars()
    if folder.name != commit:
        raise InputError(f"{name!r} moved from commit {commit[:12]} to {folder.name[:12]} just now; run again.")
    return folder


def hub_config(name: str, revision: str | None) -> Path | None:
    """config.json of a hub name when this machine has it already; asks nobody."""
    commit = revision if revision and _COMMIT.fullmatch(revision) else None
    reference = _hub_folder(name) / "refs" / (revision or "main")
    if commit is None and reference.is_file():
        commit = reference.read_text().strip()
    path = _hub_folder(name) / "snapshots" / str(commit) / CONFIG
    return path if path.is_file() else None


def _hub_folder(name: str, kind: str = "model") -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)


def _refuse_hub(name: str, revision: str | None, error: Any, kind: str = "model") -> NoReturn:
    from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        why = "is gated: accept its terms on its page, then log in with a token that may read it (HF_TOKEN)"
    elif isinstance(error, RevisionNotFoundError):
        why = f"has no revision {revision!r}; name a branch, tag or commit that it has"
    elif error.response is not None and error.response.status_code in (401, 403, 404):
        why = f"is neither a local path nor a hub {kind} that may be read here; check the spelling, or set HF_TOKEN"
    else:
        why = f"cannot be fetched from the hub ({type(error).__name__}); run again"
    raise InputError(f"The {kind} {name!r} {why}.") from error


def _list_names(folder: Path) -> set[str]:
    try:
        return {path.name for path in folder.iterdir()}
    except FileNotFoundError as error:
        raise InputError(f"There is no model folder {folder}; check the path (model.path).") from error
    except NotADirectoryError as error:
        raise InputError(f"{folder} is a file; model.path wants the folder that holds config.json.") from error
    except OSError as error:
        raise InputError(
            f"The model folder {folder} cannot be read ({error.strerror}); check its permissions."
        ) from error


def _weight_files(folder: Path, names: set[str]) -> list[str]:
    if WEIGHTS in names:
        return [WEIGHTS]
    if INDEX in names:
        path = folder / INDEX
        try:
            parts = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise InputError(f"{path} is no index of weights ({error!r}); restore it.") from error
        if missing := [part for part in parts if part not in names]:
            raise InputError(
                f"{folder} lacks {missing[0]} ({len(missing)} of {len(parts)} weight files); fetch it again."
            )
        return parts
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickled:
        raise InputError(
            f"{folder} holds its weights as a pickle only ({pickled[0]}), which can run any code when it is read; "
            "save it with safe_serialization=True and give that folder."
        )
    raise InputError(f"{folder} has no weights ({WEIGHTS} or {INDEX}); give a complete model folder.")


def _check_safetensors(path: Path) -> None:
    """Whether the header is readable and the file as long as it says: finds a broken download without reading it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length <= size - 8 else None
    except (OSError, ValueError, struct.error) as error:
        raise InputError(f"{path} cannot be read as safetensors ({error}); fetch it again.") from error
    if header is None:
        raise InputError(f"{path} is cut off within its header; fetch it again.")
    end = (
        8
        + length
        + max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    )
    if size != end:
        raise InputError(f"{path} has {size} bytes where its header says {end}; fetch it again.")
