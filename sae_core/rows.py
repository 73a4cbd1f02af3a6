"""Training rows, memory-mapped from safetensors files, in an order that is a pure function of the position.

    rows = Rows(sorted(folder.glob("train-*.safetensors")), seed=0)
    x_BD = rows.batch(step=7, batch_size=1024, rank=0, world_size=2)      # bf16 (512, d)

The files already hold the rows in a global shuffle. Every epoch visits blocks of BLOCK consecutive rows in a new order,
because random single rows reach 1% of the speed of memory and blocks of 256 half of it. Batches run on over the borders
of files, blocks and epochs: nothing is thrown away, and no state has to be saved but the step.

Shapes: B rows, D width.
"""

import json
from collections.abc import Iterator, Sequence
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
        self._starts = np.cumsum([0, *(len(group) for group in self._groups)])
        self._seed = seed
        self._block = block
        self._order: tuple[int, np.ndarray, np.ndarray] | None = None
        if len(self) == 0:
            raise RowsError(f"There is no row in {[str(path) for path in paths]}; make more activations.")

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop (at most the end) as they lie in the files: bf16 (rows, D), a copy."""
        return self._copy([(start, min(stop, len(self)))])

    def batch(self, step: int, batch_size: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """This rank's share of the global batch of `step`: bf16 (batch_size / world_size, D).

        The ranks' shares, one after the other, are the global batch, whatever the world size.
        """
        share = batch_size // world_size
        first = step * batch_size + rank * share
        return self._copy(list(self._pieces(first, first + share)))

    def _pieces(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The ranges of rows that the positions first to last of the endless training order stand for."""
        while first < last:
            epoch, place = divmod(first, len(self))
            blocks, starts = self._epoch(epoch)
            i = int(np.searchsorted(starts, place, side="right")) - 1
            begin = int(blocks[i]) * self._block
            end = min(begin + self._block, len(self))
            begin += place - int(starts[i])
            taken = min(end - begin, last - first)
            yield begin, begin + taken
            first += taken

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks of an epoch in their order, and the place in the epoch where each begins."""
        if self._order is None or self._order[0] != epoch:
            blocks = np.random.default_rng([self._seed, epoch]).permutation(-(-len(self) // self._block))
            sizes = np.minimum((blocks + 1) * self._block, len(self)) - blocks * self._block
            self._order = (epoch, blocks, np.cumsum(sizes) - sizes)
        return self._order[1], self._order[2]

    def _copy(self, pieces: list[tuple[int, int]]) -> Tensor:
        out = torch.empty(sum(stop - start for start, stop in pieces), self.d, dtype=torch.bfloat16)
        filled = 0
        for start, stop in pieces:
            while start < stop:  # a piece may cross the border of two files
                g = int(np.searchsorted(self._starts, start, side="right")) - 1
                end = min(stop, int(self._starts[g + 1]))
                part = self._groups[g][start - self._starts[g] : end - self._starts[g]]
                out[filled : filled + end - start] = part
                filled += end - start
                start = end
        return out


def _open(path: Path) -> Tensor:
    """The tensor of one file, mapped and not read; raises RowsError where the file is not what it should be."""
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
        return torch.empty(0, d, dtype=torch.bfloat16)
    # Mode "c" (private pages) because torch warns about memory it may not write to; nothing here writes.
    bits = np.memmap(path, dtype=np.int16, mode="c", offset=8 + header_size + begin, shape=(rows, d))
    return torch.from_numpy(bits).view(torch.bfloat16)
