"""Merged moments equal those of the whole; bootstrap intervals cover."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core import Moments, bootstrap_ratio, geometric_median, merge_all


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 20), max_size=6),
    d=st.integers(1, 5),
    shift=st.sampled_from([0.0, 1e4, -1e6]),
    seed=st.integers(0, 99),
)
def test_merged_moments_equal_the_moments_of_all_rows(sizes, d, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randn(size, d, generator=generator, dtype=torch.float64) + shift for size in sizes]
    whole = torch.cat([torch.zeros(0, d, dtype=torch.float64), *parts])
    merged = merge_all((Moments.of(part) for part in parts), d)
    assert merged.count == len(whole)
    if len(whole):
        torch.testing.assert_close(merged.mean_D, whole.mean(0))
        torch.testing.assert_close(merged.variance(), whole.var(0, correction=0), rtol=1e-9, atol=1e-9)
    else:
        assert merged.variance().abs().sum() == 0


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 99))
def test_merging_is_associative_and_has_a_neutral_element(seed):
    generator = torch.Generator().manual_seed(seed)
    a, b, c = (Moments.of(torch.randn(n, 3, generator=generator)) for n in (4, 1, 7))
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    torch.testing.assert_close(left.mean_D, right.mean_D)
    torch.testing.assert_close(left.m2_D, right.m2_D)
    assert torch.equal(a.merge(Moments.empty(3)).m2_D, a.m2_D)


def test_bootstrap_interval_of_a_mean_has_the_width_that_theory_gives():
    x = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 5
    estimate = bootstrap_ratio(x, torch.ones_like(x))
    assert abs(estimate.value - float(x.mean())) < 1e-12
    assert estimate.low < estimate.value < estimate.high
    theory = 2 * 1.96 * float(x.std()) / 20
    assert abs((estimate.high - estimate.low) / theory - 1) < 0.15
    assert estimate == bootstrap_ratio(x, torch.ones_like(x))


def test_bootstrap_of_equal_rows_has_no_spread():
    estimate = bootstrap_ratio(torch.full((30,), 2.0), torch.full((30,), 4.0))
    assert estimate == (0.5, 0.5, 0.5)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 60),
    d=st.integers(1, 6),
    copies=st.integers(1, 40),
    block=st.integers(1, 70),
    seed=st.integers(0, 99),
)
def test_no_neighbour_has_a_smaller_sum_of_distances_than_the_geometric_median(rows, d, copies, block, seed):
    generator = torch.Generator().manual_seed(seed)
    x_BD = torch.randn(rows, d, generator=generator, dtype=torch.float64)
    x_BD = torch.cat([x_BD, x_BD[:1].expand(copies, d)])  # the median may be this very row
    found_D = geometric_median(x_BD, tolerance=1e-10, iterations=5000, block=block)

    def distances(point_D: torch.Tensor) -> float:
        return float((x_BD - point_D).norm(dim=1).sum())

    for size in (1e-1, 1e-3):
        moved = found_D + size * torch.nn.functional.normalize(torch.randn(30, d, generator=generator).double(), dim=1)
        assert distances(found_D) <= min(map(distances, moved)) + 1e-9 * len(x_BD)


def test_rows_far_away_do_not_pull_the_geometric_median():
    x_BD = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    far_BD = torch.cat([x_BD, torch.full((30, 8), 1000.0).bfloat16()])
    assert far_BD.double().mean(0).norm() > 50
    assert (geometric_median(far_BD) - geometric_median(x_BD)).norm() < 0.2
