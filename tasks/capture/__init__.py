"""Capture: the model's activations on one shard of the corpus, token by token, as one safetensors file per site.

    built = CAPTURE.build(store, CaptureSpec(sites=("resid_post.2",)).part(0), model=model, corpus=corpus)

Shard i of n holds the corpus rows i*R//n to (i+1)*R//n. Its files, rows in the corpus' order, an empty shard included:
    <site>.safetensors  activations bf16 (T, d), token_ids int32 (T), row_offsets int64 (rows + 1), row_ids int64 (rows)
    statistics.json     per site count, mean and m2 (summed squared deviation) per dimension, mean_norm
    capture.json        what a reader needs to feed the model the same tokens: BOS, length, dtype
The work is done by Ray actors that hold the model (tasks/capture/worker.py), perhaps on other machines; what they find
comes back through Ray in pieces and is written here, so the store need be writable only from here.
"""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tasks.artifacts import Artifact, Spec, Stage, Summary, Workspace, canonical_json
from tasks.errors import InputError

if TYPE_CHECKING:
    from tasks.capture.worker import Piece, Rows
    from tasks.cluster import Cluster

# The kinds of sae_core.hooks, which cannot be imported here: torch would take two seconds of every `plan`.
KINDS = ("resid_pre", "resid_post", "attn_in", "attn_out", "mlp_in", "mlp_out")


def depth(site: str) -> tuple[int, int]:
    """Orders sites as a forward passes them: the layer, and the place in it."""
    kind, _, layer = site.partition(".")
    return int(layer), ("resid_pre", "attn_in", "attn_out", "mlp_in", "mlp_out", "resid_post").index(kind)


class CaptureSpec(Spec):
    """Which activations are recorded, on which tokens, in how many shards."""

    sites: tuple[str, ...] = Field(
        ("resid_post.2",), title="Sites", json_schema_extra={"position": 0},
        description=f"Where activations are read: <kind>.<layer>, the kinds being {', '.join(KINDS)}.",
    )
    shards: int = Field(
        8, ge=1, title="Shards", json_schema_extra={"position": 1},
        description="Pieces of the corpus, each with an artifact of its own; a killed run loses those in flight only.",
    )
    max_tokens: int = Field(
        512, ge=2, title="Longest row", json_schema_extra={"position": 2},
        description="Tokens per row, BOS included, at most the model's context; what is longer is cut, and counted.",
    )
    bos: Literal["add", "none"] = Field(
        "add", title="BOS", json_schema_extra={"position": 3},
        description="Whether rows begin with the tokenizer's BOS token (not doubled where a text brings its own).",
    )
    drop_bos: bool = Field(
        True, title="Leave out BOS", json_schema_extra={"position": 4},
        description="Do not store the activation at the BOS token: its norm is often a hundred times all others'.",
    )
    tokens_per_batch: int = Field(
        8192, ge=1, title="Tokens per batch", json_schema_extra={"position": 5},
        description="Rows of similar length fill a batch up to this, padding included. Changes the last bits.",
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", title="Precision", json_schema_extra={"position": 6},
        description="What the model computes in; auto is what it was saved in. Activations are stored as bfloat16.",
    )

    @field_validator("sites")
    @classmethod
    def _known_sites(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        for site in sites:
            if not re.fullmatch(rf"({'|'.join(KINDS)})\.\d+", site):
                raise ValueError(f"{site!r} is not <kind>.<layer>, such as resid_post.2; kinds: {', '.join(KINDS)}")
        if not sites or len(set(sites)) < len(sites):
            raise ValueError(f"the sites {list(sites)} must be at least one, and all different")
        return sites

    def part(self, shard: int) -> "ShardSpec":
        """The spec of one shard, from 0."""
        return ShardSpec(**self.model_dump(), shard=shard)


class ShardSpec(CaptureSpec):
    """One of the shards: what the stage is built from. People set the whole alone, which makes all of them."""

    shard: int = Field(ge=0, description="Which shard this is, from 0.")

    @model_validator(mode="after")
    def _shard_exists(self) -> Self:
        if self.shard >= self.shards:
            raise ValueError(f"shard is {self.shard}, but there are {self.shards} shards: 0 to {self.shards - 1}")
        return self

    def rows(self, corpus_rows: int) -> range:
        """The corpus rows of this shard."""
        return range(self.shard * corpus_rows // self.shards, (self.shard + 1) * corpus_rows // self.shards)


def capture_shard(spec: ShardSpec, out: Workspace, *, model: Artifact, corpus: Artifact) -> Summary:
    """Captures one shard; `spec.shard` says which."""
    from tasks.cluster import attach_or_start

    pool = _workers(attach_or_start(out.runtime), spec, out, model)
    return pool.stream("capture", spec, corpus, receive=lambda items: _write(items, spec, out))


CAPTURE = Stage("capture", version=1, spec=CaptureSpec, run=capture_shard)


def _workers(cluster: "Cluster", spec: CaptureSpec, out: Workspace, model: Artifact) -> Any:
    """The actors that hold this model: on a GPU each where there are some, or where the runtime asks for them."""
    from tasks.capture.worker import CaptureWorker, last_layer

    runtime = out.runtime
    device = ("cuda" if cluster.gpus else "cpu") if runtime.device == "auto" else runtime.device
    if device == "cuda" and cluster.embedded and not cluster.gpus:
        raise InputError("runtime.device is 'cuda', but Ray finds no GPU on this machine; use auto or cpu.")
    count = runtime.capture_workers
    if device == "cuda" and cluster.gpus:
        count = min(count, cluster.gpus)  # one that waits for a GPU would hold its shard up for ever
    # the same model in another store is read from there; layers after the last site are not loaded
    name = f"capture {model.location} {spec.dtype} to layer {last_layer(spec.sites)}"
    arguments = (model, spec.sites, spec.dtype, device, runtime.capture_threads)
    return cluster.actors(
        name, CaptureWorker, *arguments, count=count, cpus=runtime.capture_threads, gpus=int(device == "cuda")
    )


def _write(items: Iterator[Any], spec: CaptureSpec, out: Workspace) -> Summary:
    """Writes what an actor sends, anew from the beginning: an earlier actor may have died half way."""
    rows: Rows = next(items)
    files = [_SiteFile(out.path / f"{site}.safetensors", rows) for site in spec.sites]
    tokens, done = int(rows.offsets[-1]), 0
    out.report(0, tokens, "tokens")
    try:
        for item in items:
            if isinstance(item, dict):
                (out.path / "statistics.json").write_text(canonical_json(item) + "\n")
                continue
            files[item.site].write(item)
            if item.site == 0:  # every site brings every token once
                done += len(item.activations)
                out.report(done, tokens, "tokens")
    finally:
        for file in files:
            file.close()
    described = {
        "bos": spec.bos, "bos_token_id": rows.bos_token_id, "bos_stored": not spec.drop_bos,
        "max_tokens": rows.max_tokens, "dtype": rows.dtype, "sites": list(spec.sites), "d": rows.d,
    }
    (out.path / "capture.json").write_text(canonical_json(described) + "\n")
    return {"rows": len(rows.ids), "tokens": tokens, "rows_cut": rows.cut, "d": rows.d}


class _SiteFile:
    """A safetensors file whose rows come in any order: the header and the small tensors first, then each in its place.

    Written by `pwrite` and not through a memory map, where a full disk would be a SIGBUS instead of an error.
    """

    def __init__(self, path: Path, rows: "Rows") -> None:
        tokens = int(rows.offsets[-1])
        small = {"row_ids": rows.ids, "row_offsets": rows.offsets, "token_ids": rows.tokens}
        names = {"int64": "I64", "int32": "I32"}
        header, begin = {}, 0
        for name, values in small.items():  # 8-byte types first: every tensor is aligned
            header[name] = _entry(names[str(values.dtype)], list(values.shape), begin, values.nbytes)
            begin += values.nbytes
        header["activations"] = _entry("BF16", [tokens, rows.d], begin, tokens * rows.d * 2)
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        head = b"".join([len(text).to_bytes(8, "little"), text, *(values.tobytes() for values in small.values())])
        self._offsets, self._row_bytes, self._start = rows.offsets, rows.d * 2, len(head)
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self._put(head, 0)

    def write(self, piece: "Piece") -> None:
        """Puts the activations of some rows, which come one after the other, in their places."""
        taken = 0
        for row in piece.rows:
            first, last = int(self._offsets[row]), int(self._offsets[row + 1])
            values = piece.activations[taken : taken + last - first]
            self._put(values.tobytes(), self._start + first * self._row_bytes)
            taken += last - first

    def close(self) -> None:
        os.close(self._descriptor)

    def _put(self, data: bytes, position: int) -> None:
        while data:  # one call writes at most 2 GiB, and less when the disk is nearly full
            written = os.pwrite(self._descriptor, data, position)
            data, position = data[written:], position + written


def _entry(dtype: str, shape: list[int], begin: int, size: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, begin + size]}
