"""Counts and measures against the whole N x N table in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core import CSRCodes
from sae_core.coactivation import Coactivation, coactivation, paired_share

Pairs = list[tuple[int, int, int, float, float, float]]


def found_for(fires_RN: torch.Tensor, partners: int) -> Coactivation:
    row_F, latent_F, _ = CSRCodes.from_dense(fires_RN.double()).pairs()
    return coactivation(row_F, latent_F, n_latents=fires_RN.shape[1], rows=len(fires_RN), partners=partners)


def by_table(fires_RN: torch.Tensor, partners: int) -> Pairs:
    """All pairs that ever fire together, from the dense table, the closest ones of each latent kept."""
    fires_RN = fires_RN.double()
    rows, n = fires_RN.shape
    both_NN, fired_N = fires_RN.T @ fires_RN, fires_RN.sum(0)
    pairs: Pairs = []
    for i in range(n):
        mine = []
        for j in (j for j in range(n) if j != i and both_NN[i, j] > 0):
            n_i, n_j, n_ij = float(fired_N[i]), float(fired_N[j]), float(both_NN[i, j])
            varies = 0 < n_i < rows and 0 < n_j < rows
            phi = float(torch.corrcoef(fires_RN[:, [i, j]].T)[0, 1]) if varies else 0.0
            mine.append((i, j, int(n_ij), n_ij / (n_i + n_j - n_ij), phi, n_i * n_j / rows))
        pairs += sorted(mine, key=lambda pair: (-pair[3], -pair[2], pair[1]))[:partners]
    return pairs


def assert_same(found: Coactivation, expected: Pairs) -> None:
    columns = list(zip(*expected, strict=True)) or [()] * 6
    for column, values in zip(found[:3], columns[:3], strict=True):
        assert column.tolist() == list(values)
    for column, values in zip(found[3:], columns[3:], strict=True):
        assert column.tolist() == pytest.approx(list(values), rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 30),
    n=st.integers(1, 12),
    rate=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    partners=st.integers(1, 13),
)
def test_partners_are_those_of_the_whole_table(seed, rows, n, rate, partners):
    fires_RN = torch.rand(rows, n, generator=torch.Generator().manual_seed(seed)) < rate
    assert_same(found_for(fires_RN, partners), by_table(fires_RN, partners))


def test_ties_go_to_more_rows_together_then_to_lower_numbers():
    """Latent 0 has Jaccard 1/2 with each of 1, 2 and 3, and fires with 3 on two rows."""
    fires_RN = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1]], dtype=torch.bool)
    found = found_for(fires_RN, 3)
    mine = found.latent_P == 0
    assert found.jaccard_P[mine].tolist() == [0.5, 0.5, 0.5]
    assert found.partner_P[mine].tolist() == [3, 1, 2]
    assert found.count_P[mine].tolist() == [2, 1, 1]


def test_twins_and_strangers():
    generator = torch.Generator().manual_seed(0)
    fires_RN = torch.rand(4000, 6, generator=generator) < 0.2
    fires_RN[:, 1] = fires_RN[:, 0]
    fires_RN[:, 5] = False
    found = found_for(fires_RN, 1)
    twin = found.latent_P == 0
    assert found.partner_P[twin].tolist() == [1]
    assert found.jaccard_P[twin].tolist() == [1.0]
    assert float(found.phi_P[twin]) == pytest.approx(1)
    strangers = found.latent_P > 1
    assert found.phi_P[strangers].abs().max() < 0.05
    assert (found.count_P[strangers] / found.expected_P[strangers]).tolist() == pytest.approx([1] * 3, rel=0.2)
    assert paired_share(found, fires_RN.sum(0)) == 2 / 5


def test_nothing_that_fires_has_no_pairs():
    found = found_for(torch.zeros(3, 4, dtype=torch.bool), 2)
    assert len(found.latent_P) == 0
    assert paired_share(found, torch.zeros(4, dtype=torch.int64)) == 0


def test_a_million_latents_need_no_table():
    generator = torch.Generator().manual_seed(0)
    n, rows, k = 1_000_000, 500, 20
    latent_F = torch.cat([torch.randperm(n // 100, generator=generator)[:k].sort().values * 100 for _ in range(rows)])
    row_F = torch.arange(rows).repeat_interleave(k)
    found = coactivation(row_F, latent_F, n_latents=n, rows=rows, partners=4)
    small = coactivation(row_F, latent_F // 100, n_latents=n // 100, rows=rows, partners=4)
    assert torch.equal(found.latent_P, small.latent_P * 100)
    assert torch.equal(found.partner_P, small.partner_P * 100)
    assert all(torch.equal(one, other) for one, other in zip(found[2:], small[2:], strict=True))
