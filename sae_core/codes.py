"""Sparse codes: which latents fire at which row, and how strongly.

    codes = sae.encode(x_BD)
    row_F, latent_F, value_F = codes.pairs()     # those that fire, ordered by row, then latent
    codes.counts()                               # how many fire at each row
    codes.dense(n_latents)                       # (B, N)

TopKCodes has a fixed number of places per row (TopK); CSRCodes holds as many as fire (everything else).

Shapes: B rows, N latents, K places per row, F firings, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor
from torch.nn import functional as F


class RowScale(NamedTuple):
    """What standardise_rows took out of each row, needed to put it back."""

    mean_B1: Tensor
    std_B1: Tensor


class Pairs(NamedTuple):
    """The (row, latent) pairs that fire, ordered by row and within a row by latent."""

    row_F: Tensor  # int64
    latent_F: Tensor  # int64
    value_F: Tensor  # activations, > 0


class Codes(Protocol):
    """The sparse code of each of B rows."""

    @property
    def scale(self) -> RowScale | None:
        """What decoding puts back; only with standardise_rows."""

    @property
    def rows(self) -> int:
        """Number of rows, B."""

    def pairs(self) -> Pairs:
        """The (row, latent, activation) triples that fire, ordered by row, then latent."""

    def counts(self) -> Tensor:
        """How many latents fire at each row: its L0, (B,), int64."""

    def dense(self, n_latents: int) -> Tensor:
        """All activations (B, N), zeros included."""

    def combine(self, directions_ND: Tensor) -> Tensor:
        """The sum of the rows of `directions_ND` weighted by the activations, (B, D)."""

    @classmethod
    def joined(cls, parts: Sequence[Self], scale: RowScale | None) -> Self:
        """The codes of the parts' rows one after the other."""


class TopKCodes(NamedTuple):
    """K latents of each row and their activations, in no promised order."""

    values_BK: Tensor  # activations, >= 0; a zero means the latent does not fire
    indices_BK: Tensor  # int64 latent numbers
    scale: RowScale | None = None

    @property
    def rows(self) -> int:
        return len(self.values_BK)

    def pairs(self) -> Pairs:
        indices_BK, place_BK = self.indices_BK.sort(dim=1)
        values_BK = self.values_BK.gather(1, place_BK)
        fires_BK = values_BK > 0
        return Pairs(fires_BK.nonzero()[:, 0], indices_BK[fires_BK], values_BK[fires_BK])

    def counts(self) -> Tensor:
        return (self.values_BK > 0).sum(dim=1)

    def dense(self, n_latents: int) -> Tensor:
        code_BN = self.values_BK.new_zeros(self.rows, n_latents)
        return code_BN.scatter(1, self.indices_BK, self.values_BK)

    def combine(self, directions_ND: Tensor) -> Tensor:
        return F.embedding_bag(self.indices_BK, directions_ND, per_sample_weights=self.values_BK, mode="sum")

    @classmethod
    def joined(cls, parts: Sequence[Self], scale: RowScale | None) -> Self:
        if len(parts) == 1:
            return parts[0]._replace(scale=scale)
        return cls(torch.cat([part.values_BK for part in parts]), torch.cat([part.indices_BK for part in parts]), scale)


class CSRCodes(NamedTuple):
    """Compressed sparse rows: the latents of row b stand at row_offsets[b] to row_offsets[b + 1], ascending."""

    values_F: Tensor  # activations, > 0
    indices_F: Tensor  # int64 latent numbers
    row_offsets: Tensor  # int64, (B + 1,), from 0 to F
    scale: RowScale | None = None

    @classmethod
    def from_dense(cls, code_BN: Tensor) -> "CSRCodes":
        """The positive entries of (B, N); gradients flow to them."""
        row_F, latent_F = (code_BN > 0).nonzero(as_tuple=True)
        counts_B = torch.bincount(row_F, minlength=len(code_BN))
        return cls(code_BN[row_F, latent_F], latent_F, F.pad(counts_B.cumsum(0), (1, 0)))

    @property
    def rows(self) -> int:
        return len(self.row_offsets) - 1

    def pairs(self) -> Pairs:
        rows_B = torch.arange(self.rows, device=self.row_offsets.device)
        return Pairs(rows_B.repeat_interleave(self.counts()), self.indices_F, self.values_F)

    def counts(self) -> Tensor:
        return self.row_offsets.diff()

    def dense(self, n_latents: int) -> Tensor:
        row_F, latent_F, value_F = self.pairs()
        return value_F.new_zeros(self.rows, n_latents).index_put((row_F, latent_F), value_F)

    def combine(self, directions_ND: Tensor) -> Tensor:
        return F.embedding_bag(
            self.indices_F, directions_ND, self.row_offsets, mode="sum",
            per_sample_weights=self.values_F, include_last_offset=True,
        )  # fmt: skip

    @classmethod
    def joined(cls, parts: Sequence[Self], scale: RowScale | None) -> Self:
        if len(parts) == 1:
            return parts[0]._replace(scale=scale)
        counts_B = torch.cat([part.counts() for part in parts])
        return cls(
            torch.cat([part.values_F for part in parts]),
            torch.cat([part.indices_F for part in parts]),
            F.pad(counts_B.cumsum(0), (1, 0)),
            scale,
        )
