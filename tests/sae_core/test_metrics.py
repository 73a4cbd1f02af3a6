"""Each metric against its definition, worked out another way."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core import CSRCodes, TopKCodes, metrics


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(2, 40), d=st.integers(1, 6))
def test_fvu_is_one_minus_r_squared_of_the_flattened_data(seed, rows, d):
    generator = torch.Generator().manual_seed(seed)
    x_BD = torch.randn(rows, d, generator=generator, dtype=torch.float64) + 3
    x_hat_BD = x_BD + 0.1 * torch.randn(rows, d, generator=generator, dtype=torch.float64)
    expected = float(((x_BD - x_hat_BD) ** 2).mean() / x_BD.var(0, correction=0).mean())
    assert metrics.fvu(x_BD, x_hat_BD) == pytest.approx(expected)
    assert metrics.explained_variance(x_BD, x_hat_BD) == pytest.approx(1 - expected)


def test_fvu_of_perfect_and_of_constant_reconstruction():
    x_BD = torch.randn(20, 5)
    assert metrics.fvu(x_BD, x_BD) == 0
    assert metrics.fvu(x_BD, x_BD.mean(0).expand(20, 5)) == pytest.approx(1, abs=1e-6)


def test_fvu_weighs_rows_by_their_variance():
    """A mean of per-row ratios would say 0.5 here."""
    x_BD, x_hat_BD = torch.tensor([[10.0], [-0.1]]), torch.tensor([[10.0], [0.0]])
    assert metrics.fvu(x_BD, x_hat_BD, torch.zeros(1)) == pytest.approx(0.01 / 100.01)


@pytest.mark.parametrize(
    "codes",
    [
        TopKCodes(torch.tensor([[1.0, 0.0], [2.0, 3.0]]), torch.tensor([[4, 1], [4, 2]])),
        CSRCodes(torch.tensor([1.0, 3.0, 2.0]), torch.tensor([4, 2, 4]), torch.tensor([0, 1, 3])),
    ],
)
def test_counts_of_firing_latents(codes):
    counts_N = metrics.firing_counts(codes, 6)
    assert counts_N.tolist() == [0, 0, 1, 0, 2, 0]
    assert metrics.l0(codes) == 1.5
    assert metrics.dead_share(counts_N) == pytest.approx(4 / 6)


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 5000), min_size=1, max_size=50), bins=st.integers(1, 5))
def test_density_histogram_counts_every_living_latent_once(counts, bins):
    edges, histogram = metrics.density_histogram(torch.tensor(counts), rows=5000, bins_per_decade=bins)
    assert len(histogram) == len(edges) - 1
    assert int(histogram.sum()) == sum(count > 0 for count in counts)
    rates = [torch.tensor(count / 5000, dtype=torch.float64).log10() for count in counts if count]
    last = edges[-2]
    assert int(histogram[-1]) == sum(bool(rate >= last) for rate in rates)


def test_cross_entropy_and_kl_of_tokens():
    logits_TV = torch.randn(7, 11)
    targets_T = torch.arange(7)
    expected = -logits_TV.log_softmax(-1)[torch.arange(7), targets_T]
    torch.testing.assert_close(metrics.token_cross_entropy(logits_TV, targets_T), expected)
    other_TV = torch.randn(7, 11)
    p, q = logits_TV.double().softmax(-1), other_TV.double().softmax(-1)
    expected = (p * (p / q).log()).sum(-1)
    torch.testing.assert_close(metrics.token_kl(logits_TV, other_TV).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(metrics.token_kl(logits_TV, logits_TV), torch.zeros(7))


def test_ce_recovered_and_fidelity():
    assert metrics.ce_recovered(clean=1.329, spliced=1.492, ablated=6.238) == pytest.approx(0.9668, abs=1e-4)
    assert metrics.ce_recovered(2.0, 2.0, 5.0) == 1
    assert metrics.fidelity(2.0, 5.0, 5.0) == 1
    assert metrics.cosine_similarity(torch.ones(2, 3), -torch.ones(2, 3)) == pytest.approx(-1)
