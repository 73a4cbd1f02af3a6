"""The encoder's matmul of rounded factors: what it selects is what fp32 selects, whatever the rows and weights."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from sae_core.kernels import cpu, cpu_rounded
from sae_core.kernels.compiled import dot, nearest_bf16, widened
from sae_core.kernels.cpu_batch_top_k import BatchSelection
from sae_core.kernels.cpu_rounded import Rounded, RoundedEncoder, bits
from sae_core.kernels.cpu_top_k import RowSelection


@njit
def through_bf16(values_P: np.ndarray) -> np.ndarray:
    return np.array([widened(nearest_bf16(value)) for value in values_P])


@njit
def in_fp32(rows_TD: np.ndarray, W_enc: np.ndarray, bias_N: np.ndarray) -> np.ndarray:
    """The pre-activations that are to be selected from, in the order of operations of the kernels."""
    found_TN = np.empty((len(rows_TD), len(W_enc)), np.float32)
    for row in range(len(rows_TD)):
        for latent in range(len(W_enc)):
            found_TN[row, latent] = dot(W_enc[latent], rows_TD[row]) + bias_N[latent]
    return found_TN


@njit
def margins(rounded: Rounded, total_TN: np.ndarray, bias_N: np.ndarray, wide: bool) -> np.ndarray:
    found_TN = np.empty_like(total_TN)
    for row in range(len(total_TN)):
        for latent in range(len(bias_N)):
            value = total_TN[row, latent]
            found_TN[row, latent] = (
                cpu_rounded.widest_margin(rounded, row, value)
                if wide
                else cpu_rounded.margin(rounded, row, latent, value, bias_N[latent])
            )
    return found_TN


@st.composite
def cases(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, encoder and bias: dense or with few large elements, of any size, near or at what bf16 holds, and tied."""
    rows, n = draw(st.integers(1, 20), "rows"), draw(st.integers(1, 120), "n")
    d = draw(st.sampled_from([1, 2, 31, 64, 200]), "d")
    generator = np.random.default_rng(draw(st.integers(0, 10_000), "seed"))

    def table(count: int) -> np.ndarray:
        kind = draw(st.sampled_from(["normal", "heavy", "halfway", "alike", "few"]), "kind")
        found = generator.standard_normal((count, d))
        if kind == "heavy":
            found = found**5
        if kind == "halfway":  # between two bf16: all that can be lost is lost, in one direction
            found = np.exp2(np.round(found)) * (1 + 2**-8 * (1 - 2**-14))
        if kind == "alike":
            found = generator.standard_normal((1, d)) * (1 + 2.0 ** -draw(st.integers(7, 20), "spread") * found)
        if kind == "few":
            found = generator.choice([-1.0, 0.0, 0.5], (count, d))
        return (found * 2.0 ** draw(st.integers(-20, 20), "scale")).astype(np.float32)

    rows_TD, W_enc = table(rows), table(n)
    size = draw(st.sampled_from([0.0, 0.1, 10.0]), "bias") * np.abs(rows_TD).mean() * np.abs(W_enc).mean()
    return rows_TD, W_enc, (size * generator.standard_normal(n)).astype(np.float32)


def encoded(rows_TD: np.ndarray, W_enc: np.ndarray, bias_N: np.ndarray) -> tuple[np.ndarray, Rounded]:
    encoder = RoundedEncoder(len(rows_TD), *W_enc.shape)
    encoder.round(W_enc, bias_N)
    pre_TN = torch.empty(len(rows_TD), len(W_enc), dtype=torch.bfloat16)
    rounded = encoder.pre_activations(torch.from_numpy(rows_TD), pre_TN)
    return bits(pre_TN), rounded


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_rounding_is_that_of_torch(values):
    values_P = np.array(values, np.float32)
    expected = torch.from_numpy(values_P).bfloat16().float().numpy()
    assert through_bf16(values_P).tolist() == expected.tolist()


@given(cases())
def test_no_pre_activation_lies_outside_its_margin(case):
    rows_TD, W_enc, bias_N = case
    pre_TN, rounded = encoded(*case)
    total_TN = cpu_rounded.as_float32(pre_TN) + bias_N
    margin_TN = margins(rounded, total_TN, bias_N, False)
    off_TN = np.abs(total_TN.astype(np.float64) - in_fp32(*case))
    assert (off_TN <= margin_TN).all()
    exact_TN = rows_TD.astype(np.float64) @ W_enc.T.astype(np.float64) + bias_N
    assert (np.abs(total_TN - exact_TN) <= margin_TN).all()
    positive_TN = total_TN >= 0
    assert (margin_TN <= margins(rounded, total_TN, bias_N, True))[positive_TN].all()


@given(cases(), st.data())
def test_the_k_largest_of_each_row_are_those_of_fp32_to_the_bit(case, data):
    cpu.start_threads()
    (rows, _), n = case[0].shape, len(case[1])
    k = data.draw(st.integers(1, n), "k")
    pre_TN, rounded = encoded(*case)
    selection, expected = RowSelection(rows, k, n), RowSelection(rows, k, n)
    selection.take(pre_TN, case[2], rounded, slice(0, rows))
    expected.take(in_fp32(*case), np.zeros(n, np.float32), None, slice(0, rows))
    assert selection.counts_B.tolist() == expected.counts_B.tolist()
    for row, count in enumerate(selection.counts_B):
        found, wanted = (
            dict(zip(each.places_BK[row, :count].tolist(), each.values_BK[row, :count].tolist(), strict=True))
            for each in (selection, expected)
        )
        assert found == wanted


@given(cases(), st.data())
def test_the_largest_of_a_batch_are_those_of_fp32_to_the_bit(case, data):
    cpu.start_threads()
    (rows, _), n = case[0].shape, len(case[1])
    k = data.draw(st.integers(1, n), "k")
    total_TN, nothing_N = in_fp32(*case), np.zeros(n, np.float32)
    pre_TN, rounded = encoded(*case)
    found, expected = (BatchSelection(rows, k, n, slice(0, rows), None) for _ in range(2))
    for _ in range(2):  # the second time with a guess from the first
        while True:
            found.take(pre_TN, case[2], rounded, slice(0, rows))
            if found.finish():
                break
        while True:
            expected.take(total_TN, nothing_N, None, slice(0, rows))
            if expected.finish():
                break
        assert found.threshold == expected.threshold
        assert found.counts_B.tolist() == expected.counts_B.tolist()
        for row, count in enumerate(found.counts_B):
            assert found.places_BK[row, :count].tolist() == expected.places_BK[row, :count].tolist()
            assert found.values_BK[row, :count].tolist() == expected.values_BK[row, :count].tolist()


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["row", "weight", "bias"])
def test_what_is_not_finite_says_so(value, where):
    cpu.start_threads()
    generator = np.random.default_rng(0)
    rows_TD, W_enc, bias_N = generator.standard_normal((6, 9)), generator.standard_normal((50, 9)), np.zeros(50)
    {"row": rows_TD, "weight": W_enc, "bias": bias_N.reshape(1, -1)}[where][-1, 3] = value
    case = [array.astype(np.float32) for array in (rows_TD, W_enc, bias_N)]
    pre_TN, rounded = encoded(*case)
    for selection in (RowSelection(6, 1, 50), BatchSelection(6, 1, 50, slice(0, 6), None)):
        selection.take(pre_TN, case[2], rounded, slice(0, 6))
        said = [bool(np.isnan(selection.values_BK[row, 0])) and selection.counts_B[row] == 1 for row in range(6)]
        assert said == [where != "row" or row == 5 for row in range(6)]


def test_only_large_matmuls_with_few_latents_kept_are_worth_it(monkeypatch):
    for name in ("_is_amx_tile_supported", "_init_amx"):
        monkeypatch.setattr(torch.cpu, name, lambda: True, raising=False)
    assert cpu_rounded.worth_it(8192, 512, 32) and cpu_rounded.worth_it(32768, 2048, 64)
    assert not cpu_rounded.worth_it(1024, 64, 16) and not cpu_rounded.worth_it(16384, 4096, 64)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: False)
    assert not cpu_rounded.worth_it(8192, 512, 32)
