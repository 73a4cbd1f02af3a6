"""What runs in a capture actor: the model, loaded once, and the forward passes over one shard after another.

A shard's rows are sorted by length into batches of a token budget, so that padding is a few per cent. Rows are padded
on the right without a mask: under causal attention no token sees what comes after it. The padded length of a batch
changes the last bits of its activations; it depends on the shard and the spec alone, never on the number of workers.

Shapes: B rows of a batch, L padded length, T tokens that are stored, D width.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.artifacts import Artifact
from tasks.corpus import holds_chats
from tasks.errors import InputError
from tasks.prompts import padded, tokenise

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from tasks.capture import ShardSpec

PIECE_BYTES = 16 << 20  # what is sent at once; the object store holds two of them per actor


class Rows(NamedTuple):
    """The first thing sent: the shard's rows, tokenised."""

    ids: "np.ndarray"  # int64 (rows), the corpus' row_id
    offsets: "np.ndarray"  # int64 (rows + 1), where each row's stored tokens begin
    tokens: "np.ndarray"  # int32 (T), stored tokens
    d: int  # width of the residual stream
    cut: int  # rows that were longer than max_tokens
    max_tokens: int  # the spec's, or the model's context where that is shorter
    bos_token_id: int | None
    dtype: str  # what the model computes in


class Piece(NamedTuple):
    """Activations of whole rows at one site, the rows one after the other."""

    site: int  # index in the spec's sites
    rows: list[int]  # numbers of the rows in the shard
    activations: "np.ndarray"  # int16 (T, D): the bits of bfloat16, which numpy does not know


class CaptureWorker:
    """Holds one model; `capture` yields Rows, then Pieces in any order, then a dict of statistics per site."""

    def __init__(self, model: Artifact, sites: Sequence[str], dtype: str, device: str, threads: int) -> None:
        import torch

        from sae_core.hooks import Site
        from tasks.model import load_model, load_tokenizer, model_folder
        from tasks.model.files import read_shape

        torch.set_num_threads(threads)
        shape = read_shape(model_folder(model))
        for site in sites:  # before the weights are read, which may take minutes
            Site.parse(site).check(shape.n_layers)
        self.tokenizer = load_tokenizer(model)
        self.model = load_model(model, device, dtype, layers=last_layer(sites) + 1)
        self.device, self.d, self.context = device, shape.d_model, shape.context

    def capture(self, spec: "ShardSpec", corpus: Artifact) -> Iterator[Any]:
        """One shard of a corpus, as a stream."""
        import numpy as np
        import torch

        from sae_core.hooks import capture

        ids, texts = _read(corpus.path("rows.parquet"), spec)
        longest = min(spec.max_tokens, self.context or spec.max_tokens)
        prompts = tokenise(
            self.tokenizer, texts, bos=spec.bos, drop_bos=spec.drop_bos, longest=longest, chats=holds_chats(corpus)
        )
        stored = [row[skip:] for row, skip in zip(prompts.ids, prompts.skipped, strict=True)]
        offsets = np.cumsum([0, *map(len, stored)], dtype=np.int64)
        tokens = np.array([token for row in stored for token in row], dtype=np.int32)
        dtype = str(self.model.dtype).removeprefix("torch.")
        yield Rows(ids, offsets, tokens, self.d, prompts.cut, longest, self.tokenizer.bos_token_id, dtype)

        totals = [_Totals(self.d) for _ in spec.sites]
        with capture(self.model, spec.sites) as forward:
            for batch in padded(prompts, spec.tokens_per_batch):
                try:
                    found = forward(input_ids=batch.ids_BL.to(self.device))
                except torch.OutOfMemoryError as error:
                    raise InputError(
                        f"The GPU has no room for a batch of {tuple(batch.ids_BL.shape)} tokens; lower "
                        f"capture.tokens_per_batch (now {spec.tokens_per_batch})."
                    ) from error
                for number, site in enumerate(spec.sites):
                    x_TD = found[site][batch.kept_BL.to(self.device)].to(torch.bfloat16)
                    totals[number].add(x_TD, site)
                    yield from _pieces(number, batch.rows, [len(stored[row]) for row in batch.rows], x_TD.cpu())
        yield {site: total.values() for site, total in zip(spec.sites, totals, strict=True)}


def last_layer(sites: Sequence[str]) -> int:
    """The deepest layer that any of the sites needs."""
    from sae_core.hooks import Site

    return max(Site.parse(site).layer for site in sites)


def _read(path: Path, spec: "ShardSpec") -> tuple["np.ndarray", list[str]]:
    """The shard's row ids and texts; only the row groups that hold them are read."""
    import numpy as np
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        wanted = spec.rows(file.metadata.num_rows)
        ids, texts, begin = [], [], 0
        for group in range(file.metadata.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            first, last = max(wanted.start - begin, 0), min(wanted.stop - begin, size)
            if first < last:
                table = file.read_row_group(group, columns=["row_id", "text"]).slice(first, last - first)
                ids += table["row_id"].to_pylist()
                texts += table["text"].to_pylist()
            begin += size
    return np.array(ids, dtype=np.int64), texts


def _pieces(site: int, batch: list[int], lengths: list[int], x_TD: "Tensor") -> Iterator[Piece]:
    """Whole rows, about PIECE_BYTES at a time."""
    import torch

    bits_TD = x_TD.contiguous().view(torch.int16).numpy()
    most = max(1, PIECE_BYTES // (2 * x_TD.shape[1]))
    rows: list[int] = []
    start = stop = 0
    for row, length in zip(batch, lengths, strict=True):
        if rows and stop + length - start > most:
            yield Piece(site, rows, bits_TD[start:stop])
            rows, start = [], stop
        rows.append(row)
        stop += length
    yield Piece(site, rows, bits_TD[start:stop])


class _Totals:
    """Statistics of one site over the shard, merged batch by batch in their fixed order."""

    def __init__(self, d: int) -> None:
        from sae_core.statistics import Moments

        self.moments, self.norms = Moments.empty(d), 0.0

    def add(self, x_TD: "Tensor", site: str) -> None:
        import math

        from sae_core.statistics import Moments

        found = Moments.of(x_TD)
        self.moments = self.moments.merge(Moments(found.count, found.mean_D.cpu(), found.m2_D.cpu()))
        self.norms += float(x_TD.double().norm(dim=1).sum())
        if not math.isfinite(self.norms):
            raise InputError(
                f"The model's activations at {site} are not finite. Set capture.dtype=float32 if it was trained in "
                "a wider type, or check its weights."
            )

    def values(self) -> dict[str, Any]:
        """As statistics.json has them."""
        count = self.moments.count
        return {
            "count": count, "mean": self.moments.mean_D.tolist(), "m2": self.moments.m2_D.tolist(),
            "mean_norm": self.norms / max(count, 1),
        }
