"""Thresholds that are kept as logarithms."""

import torch

from sae_core.formats.build import log_threshold


def test_a_threshold_of_ours_comes_back_to_the_bit():
    threshold_N = (6 * torch.randn(100_000, generator=torch.Generator().manual_seed(1)) - 4).exp()
    assert torch.equal(log_threshold(threshold_N).exp(), threshold_N)


def test_any_other_comes_back_as_near_as_a_logarithm_in_float32_can():
    threshold_N = 10 * torch.rand(100_000, generator=torch.Generator().manual_seed(1)) + 3.4e-4
    error_N = (log_threshold(threshold_N).exp() / threshold_N - 1).abs()
    assert error_N.max() < 3.6e-7  # half the spacing of logarithms between -8 and -4, and the rounding of exp


def test_no_threshold_is_a_threshold_of_zero():
    log_N = log_threshold(torch.tensor([0.0, -0.5, -1e30, 1.0]))
    assert log_N.exp().tolist() == [0, 0, 0, 1]
    assert torch.isfinite(log_N).all()
