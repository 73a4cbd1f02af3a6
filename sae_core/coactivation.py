"""Which latents fire together: for each latent its closest partners, counted exactly and never in an N x N table.

    found = coactivation(row_F, latent_F, n_latents=65_536, rows=32_768, partners=8)
    found.latent_P, found.partner_P, found.count_P, found.jaccard_P, found.phi_P, found.expected_P

With n_i the rows on which latent i fires, n_ij those on which i and j both do, R all rows:

    jaccard    n_ij / (n_i + n_j - n_ij)                      Jaccard 1912; by it partners are ranked
    expected   n_i n_j / R                                    n_ij of latents that know nothing of each other
    phi        (R n_ij - n_i n_j) / sqrt(n_i (R - n_i) n_j (R - n_j))
               Pearson's correlation of firing; 0 where a latent fires on every row. Li et al. 2024, "The geometry of
               concepts: sparse autoencoder feature structure", appendix A, compare both with others
    lift       n_ij / expected; its logarithm is the pointwise mutual information (Church and Hanks 1990)

All rows of one latent are gone through at a time, with one counter per other latent (Gustavson 1978, "Two fast
algorithms for sparse matrices"): memory is O(firings + N), work O(sum over rows of L0^2).

Shapes: R rows, F firings, N latents, P pairs of a latent and one of its partners.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae_core.kernels.compiled import compiled, part


class Coactivation(NamedTuple):
    """Pairs by latent, and for each latent by falling Jaccard; latents that fire alone have none."""

    latent_P: Tensor  # int64
    partner_P: Tensor  # int64
    count_P: Tensor  # int64, rows on which both fire
    jaccard_P: Tensor  # float64
    phi_P: Tensor  # float64
    expected_P: Tensor  # float64


def coactivation(row_F: Tensor, latent_F: Tensor, *, n_latents: int, rows: int, partners: int) -> Coactivation:
    """The `partners` latents of largest Jaccard for each latent; ties go to more rows together, then to lower numbers.

    `row_F` and `latent_F` are what `Codes.pairs` gives, ordered by row, each pair once.
    """
    starts = torch.zeros(rows + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(row_F, minlength=rows), 0, out=starts[1:])
    fired_N = torch.bincount(latent_F, minlength=n_latents)
    rows_by_latent_F = row_F[latent_F.argsort(stable=True)]
    partner_NM = np.full((n_latents, partners), -1, np.int32)
    count_NM = np.zeros((n_latents, partners), np.int64)
    _closest(
        starts.numpy(),
        latent_F.to(torch.int32).numpy(),
        rows_by_latent_F.to(torch.int32).numpy(),
        fired_N.numpy(),
        partner_NM,
        count_NM,
    )
    latent_P, place_P = (torch.from_numpy(partner_NM) >= 0).nonzero(as_tuple=True)
    partner_P = torch.from_numpy(partner_NM)[latent_P, place_P].long()
    count_P = torch.from_numpy(count_NM)[latent_P, place_P]
    return Coactivation(latent_P, partner_P, count_P, *_measures(fired_N[latent_P], fired_N[partner_P], count_P, rows))


def paired_share(found: Coactivation, firing_counts_N: Tensor, above: float = 0.5) -> float:
    """Share of the latents that fire which have a partner of Jaccard above `above`; 0 where none fires."""
    paired = len(found.latent_P[found.jaccard_P > above].unique())
    return paired / max(1, int((firing_counts_N > 0).sum()))


def _measures(first_P: Tensor, second_P: Tensor, both_P: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Jaccard, phi and expected count, float64, from the rows on which either and both fire."""
    first_P, second_P, both_P = first_P.double(), second_P.double(), both_P.double()
    spread_P = (first_P * (rows - first_P)).sqrt() * (second_P * (rows - second_P)).sqrt()
    phi_P = torch.where(spread_P > 0, (rows * both_P - first_P * second_P) / spread_P, 0.0)
    return both_P / (first_P + second_P - both_P), phi_P, first_P * second_P / rows


@part
def _closer(jaccard: Any, count: Any, j: Any, other_jaccard: Any, other_count: Any, other_j: Any) -> Any:
    """Whether partner j stands before another one."""
    if jaccard != other_jaccard:
        return jaccard > other_jaccard
    return count > other_count or (count == other_count and j < other_j)


@compiled()
def _closest(
    starts: np.ndarray,
    latents_F: np.ndarray,
    rows_F: np.ndarray,
    fired_N: np.ndarray,
    partner_NM: np.ndarray,
    count_NM: np.ndarray,
) -> None:
    """Fills in each latent's partners and counts; `rows_F` are the firings' rows by latent, `latents_F` by row."""
    n, places = partner_NM.shape
    together = np.zeros(n, np.int32)  # with the latent in hand
    met = np.empty(n, np.int32)
    closeness = np.empty(places)
    begin = 0
    for i in range(n):
        found = 0
        for f in range(begin, begin + fired_N[i]):
            for g in range(starts[rows_F[f]], starts[rows_F[f] + 1]):
                j = latents_F[g]
                if together[j] == 0:
                    met[found] = j
                    found += 1
                together[j] += 1
        begin += fired_N[i]
        kept = 0
        for m in range(found):
            j = met[m]
            count = together[j]
            together[j] = 0
            if j == i:
                continue
            jaccard = count / (fired_N[i] + fired_N[j] - count)
            at = kept
            while at > 0 and _closer(jaccard, count, j, closeness[at - 1], count_NM[i, at - 1], partner_NM[i, at - 1]):
                at -= 1
            if at == places:
                continue
            kept = min(kept + 1, places)
            for later in range(kept - 1, at, -1):
                closeness[later] = closeness[later - 1]
                count_NM[i, later], partner_NM[i, later] = count_NM[i, later - 1], partner_NM[i, later - 1]
            closeness[at], count_NM[i, at], partner_NM[i, at] = jaccard, count, j
