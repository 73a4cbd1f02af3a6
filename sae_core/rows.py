"""Training rows, memory-mapped from safetensors files, in an order that is a pure function of the position.

    rows = Rows(sorted(folder.glob("train-*.safetensors")), seed=0)
    x_BD = rows.batch(step=7, batch_size=1024, rank=0, world_size=2)      # bf16 (512, d)
    rows.batch(step=8, batch_size=1024, rank=0, world_size=2, out=x_BD)   # into memory that is there: twice as fast

The files already hold the rows in a global shuffle. Every epoch visits blocks of BLOCK consecutive rows in a new order,
because random single rows reach 1% of the speed of memory and blocks of 256 half of it. Batches run on over the borders
of files, blocks and epochs: nothing is thrown away, and no state has to be saved but the step.

Shapes: B rows, D width.
"""

import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sae_core.errors import RowsError

BLOCK = 256
TENSOR = "activations"


class Rows:
    """Rows (bf16) of several safetensors files, read as one long table."""

    def __init__(self, paths: Sequence[Path], seed: int = 0, block: int = BLOCK) -> None:
        self._groups = [_open(path) for path in paths]
        widths = {group.shape[1] for group in self._groups}
        if len(widths) != 1:
            raise RowsError(f"Rows need files of one width, but {[str(path) for path in paths]} have {sorted(widths)}.")
        self.d = widths.pop()
        self._starts = [0, *accumulate(len(group) for group in self._groups)]
        self._seed = seed
        self._block = block
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None
        if len(self) == 0:
            raise RowsError(f"There is no row in {[str(path) for path in paths]}; make more activations.")

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop (at most the end) as they lie in the files: bf16 (rows, D), a copy."""
        return self._copy([(start, min(stop, len(self)))])

    def batch(
        self, step: int, batch_size: int, rank: int = 0, world_size: int = 1, out: Tensor | None = None
    ) -> Tensor:
        """This rank's share of the global batch of `step`: bf16 (batch_size / world_size, D), in `out` if given.

        The ranks' shares, one after the other, are the global batch, whatever the world size.
        """
        share = batch_size // world_size
        first = step * batch_size + rank * share
        return self._copy(list(self._pieces(first, first + share)), out)

    def _pieces(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The ranges of rows that the positions first to last of the endless training order stand for."""
        while first < last:
            epoch, place = divmod(first, len(self))
            blocks, starts = self._epoch(epoch)
            i = int(np.searchsorted(starts, place, side="right")) - 1
            inside = place - int(starts[i])
            while first < last and i < len(blocks):
                begin = int(blocks[i]) * self._block + inside
                end = min(begin - inside + self._block, len(self), begin + last - first)
                yield begin, end
                first += end - begin
                i, inside = i + 1, 0

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks of an epoch in their order, and the place in the epoch where each begins."""
        order = self._order
        if order is None or order[0] != epoch:
            blocks = np.random.default_rng([self._seed, epoch]).permutation(-(-len(self) // self._block))
            sizes = np.minimum((blocks + 1) * self._block, len(self)) - blocks * self._block
            order = self._order = (epoch, blocks, np.cumsum(sizes) - sizes)
        return order[1], order[2]

    def _copy(self, pieces: list[tuple[int, int]], out: Tensor | None = None) -> Tensor:
        if out is None:
            out = torch.empty(sum(stop - start for start, stop in pieces), self.d, dtype=torch.bfloat16)
        bits_BD = out.view(torch.int16).numpy()
        filled = 0
        for start, stop in pieces:
            while start < stop:  # a piece may cross the border of two files
                g = bisect_right(self._starts, start) - 1
                end = min(stop, self._starts[g + 1])
                # numpy's copy holds no lock while it waits for pages, and starts no threads beside the step's.
                part = self._groups[g][start - self._starts[g] : end - self._starts[g]]
                np.copyto(bits_BD[filled : filled + end - start], part)
                filled += end - start
                start = end
        return out


def input_and_target(rows_BD: Tensor, d_in: int) -> tuple[Tensor, Tensor | None]:
    """A transcoder's rows, (B, d_in + d_out), as (B, d_in) and (B, d_out), each contiguous; (B, d_in) has no target."""
    if rows_BD.shape[1] == d_in:
        return rows_BD, None
    return rows_BD[:, :d_in].contiguous(), rows_BD[:, d_in:].contiguous()


def _open(path: Path) -> np.ndarray:
    """The bits of one file's tensor, mapped and not read: int16 (rows, D). Raises RowsError where it is not whole."""
    try:
        with path.open("rb") as file:
            header_size = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 0 < header_size <= size - 8:
                raise RowsError(f"{path} is not a safetensors file; make it again.")
            header = json.loads(file.read(header_size))
        entry = header[TENSOR]
        dtype, (rows, d), (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except OSError as error:
        raise RowsError(f"{path} cannot be read ({error.strerror}); make it again.") from error
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, RowsError):
            raise
        raise RowsError(f"{path} holds no table named {TENSOR} ({error!r}); make it again.") from error
    if dtype != "BF16" or end - begin != 2 * rows * d or 8 + header_size + end > size:
        raise RowsError(f"{path}: {TENSOR} is {dtype} {rows} x {d} in {size} bytes, not whole bf16; make it again.")
    if rows == 0:
        return np.empty((0, d), np.int16)
    # A plain array: each slice of a np.memmap costs some microseconds.
    return np.asarray(np.memmap(path, dtype=np.int16, mode="r", offset=8 + header_size + begin, shape=(rows, d)))
