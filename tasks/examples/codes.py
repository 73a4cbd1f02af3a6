"""The sparse codes of all archived tokens, encoded once and kept on local disk while examples are chosen.

    codes = CodeStore(out.scratch / "codes")
    for firings, rows in codes.append(sae, read_shard(archive, site)): ...     # chunk by chunk, whole rows
    codes.tokens, codes.latents, ...                                           # afterwards: memory maps

A code takes 8 bytes a firing: for 64 firings a token and d = 3,072 a twelfth of the bf16 activations.

Shapes: T tokens, R rows, F firings, all over every shard so far.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tasks.examples.firings import Firings, Rows

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from sae_core import SAE

CHUNK_TOKENS = 1 << 16  # firings of so many tokens are sorted at once; a longer row is a chunk of its own
ENCODE_TOKENS = 1 << 10  # their pre-activations stay in the cache: 1.5 x as fast as 2^15 at n = 2,048 on a CPU
COLUMNS = {
    "tokens": "int32",  # (T) token ids
    "starts": "int64",  # (T) first firing of each token
    "latents": "int32",  # (F) ascending within a token
    "values": "float32",  # (F)
    "row_ids": "int64",  # (R)
    "row_starts": "int64",  # (R) first token of each row
}


class Stored(NamedTuple):
    """The whole store as read-only arrays; `starts` and `row_starts` have their closing entry."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    latents: NDArray[np.int32]
    values: NDArray[np.float32]
    row_ids: NDArray[np.int64]
    row_starts: NDArray[np.int64]

    def token_of(self, row_id: NDArray[np.int64], position: NDArray[np.int64]) -> NDArray[np.int64]:
        """Numbers of tokens within the store."""
        import numpy as np

        return self.row_starts[np.searchsorted(self.row_ids, row_id)] + position

    def activation(self, token: NDArray[np.int64], latent: NDArray[np.int64]) -> NDArray[np.float32]:
        """Activation of a latent at a token, elementwise; 0 where it is silent. A bisection in each token's firings."""
        import numpy as np

        if not len(self.latents):
            return np.zeros(len(token), dtype=np.float32)
        low, high = self.starts[token], self.starts[token + 1]
        end = high.copy()
        last = len(self.latents) - 1
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high) // 2
            smaller = (middle < high) & (self.latents[np.minimum(middle, last)] < latent)
            low, high = np.where(smaller, middle + 1, low), np.where(smaller, high, middle)
        place = np.minimum(low, last)
        return np.where((low < end) & (self.latents[place] == latent), self.values[place], np.float32(0))


class CodeStore:
    """Appends shard after shard; the rows must come in ascending row_id, as the shards of a corpus do."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._tokens = 0
        self._firings = 0

    def append(self, sae: SAE, shard: dict[str, torch.Tensor]) -> Iterator[tuple[Firings, Rows]]:
        """Encodes one captured shard, keeps the codes, and yields them in chunks of whole rows."""
        offsets, row_ids = shard["row_offsets"].numpy(), shard["row_ids"].numpy()
        for first, last in _row_chunks(offsets):
            start, end = int(offsets[first]), int(offsets[last])
            firings = encode(sae, shard["activations"][start:end])
            rows = Rows(row_ids[first:last], offsets[first : last + 1] - start)
            self._write("tokens", shard["token_ids"][start:end].numpy())
            self._write("starts", firings.starts[:-1] + self._firings)
            self._write("latents", firings.latents)
            self._write("values", firings.values)
            self._write("row_ids", rows.ids)
            self._write("row_starts", rows.starts[:-1] + self._tokens)
            self._tokens += end - start
            self._firings += len(firings.latents)
            yield firings, rows

    def read(self) -> Stored:
        """Everything appended so far; the large columns stay on disk."""
        import numpy as np

        columns = {name: self._map(name) for name in COLUMNS}
        columns["starts"] = np.append(columns["starts"], self._firings)
        columns["row_starts"] = np.append(columns["row_starts"], self._tokens)
        return Stored(**columns)

    def _write(self, name: str, values: NDArray) -> None:
        with (self._folder / name).open("ab") as file:
            values.astype(COLUMNS[name]).tofile(file)

    def _map(self, name: str) -> NDArray:
        import numpy as np

        path = self._folder / name
        if not path.exists() or not path.stat().st_size:  # an empty file cannot be mapped
            return np.zeros(0, dtype=COLUMNS[name])
        return np.memmap(path, dtype=COLUMNS[name], mode="r")


def encode(sae: SAE, x_TD: torch.Tensor) -> Firings:
    """The firings of activations of any float dtype, latents ascending within each token."""
    import numpy as np

    counts, latents, values = [np.zeros(1, np.int64)], [np.zeros(0, np.int32)], [np.zeros(0, np.float32)]
    for part_BD in x_TD.split(ENCODE_TOKENS):
        codes = sae.encode(part_BD.to(sae.W_enc.device))
        pairs = codes.pairs()
        counts.append(codes.counts().cpu().numpy())
        latents.append(pairs.latent_F.int().cpu().numpy())
        values.append(pairs.value_F.float().cpu().numpy())
    return Firings(np.cumsum(np.concatenate(counts)), np.concatenate(latents), np.concatenate(values))


def _row_chunks(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of rows that hold at most CHUNK_TOKENS tokens, or one row."""
    import numpy as np

    first, rows = 0, len(offsets) - 1
    while first < rows:
        last = int(np.searchsorted(offsets, offsets[first] + CHUNK_TOKENS, side="right")) - 1
        last = min(max(last, first + 1), rows)
        yield first, last
        first = last
