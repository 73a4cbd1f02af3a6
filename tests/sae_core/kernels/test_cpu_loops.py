"""The compiled loops against float64 and against plain sorting, on small and awkward shapes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from sae_core.kernels import cpu, cpu_loops, cpu_top_k
from sae_core.kernels.compiled import dot, fma
from sae_core.kernels.cpu_batch_top_k import BatchSelection

product = njit(lambda a_D, b_D: dot(a_D, b_D))
fused = njit(lambda a, b, c: fma(a, b, c))
FLOAT = st.floats(-4, 4, width=32)
FEW = st.sampled_from([-1.0, -0.0, 0.0, 0.5, 1.0])  # many ties


def top_k(pre_BN: np.ndarray, bias_N: np.ndarray, k: int, width: int) -> list[dict[int, float]]:
    """What the loop keeps of each row: {latent: value}."""
    assert cpu.available()
    rows = len(pre_BN)
    values, places = np.full((rows, k), np.nan, np.float32), np.full((rows, k), -1, np.int32)
    counts = np.zeros(rows, np.int32)
    cpu_top_k.top_k(pre_BN, bias_N, None, width, values, places, counts)
    found = [
        dict(zip(places[row, :count].tolist(), values[row, :count].tolist(), strict=True))
        for row, count in enumerate(counts)
    ]
    assert [len(row) for row in found] == counts.tolist(), "a latent was kept twice"
    return found


def sorted_top_k(pre_BN: np.ndarray, bias_N: np.ndarray, k: int) -> list[dict[int, float]]:
    """The same by a stable sort: of equal values the lowest number first, then what is positive."""
    total_BN = pre_BN + bias_N
    order_BN = np.argsort(-total_BN, axis=1, kind="stable")[:, :k]
    return [
        {int(place): float(row[place]) for place in order if row[place] > 0}
        for row, order in zip(total_BN, order_BN, strict=True)
    ]


@given(st.data())
def test_the_k_largest_are_found_exactly_and_ties_go_to_the_lowest_number(data):
    n = data.draw(st.integers(1, 150), "n")
    k = data.draw(st.one_of(st.integers(1, n), st.just(n)), "k")
    width = data.draw(st.sampled_from([1, 2, 4, 8, 16, 32]), "width")
    rows = data.draw(st.integers(1, 40), "rows")
    element = data.draw(st.sampled_from([FLOAT, FEW]), "kind")
    pool = np.array(data.draw(st.lists(element, min_size=1, max_size=30), "pool"), np.float32)
    generator = np.random.default_rng(data.draw(st.integers(0, 1000), "seed"))
    pre_BN, bias_N = generator.choice(pool, (rows, n)), generator.choice(pool, n)
    assert top_k(pre_BN, bias_N, k, width) == sorted_top_k(pre_BN, bias_N, k)


@pytest.mark.parametrize(("n", "k", "width"), [(8192, 32, 16), (1000, 16, 32), (1024, 1, 32), (4096, 4096, 1)])
def test_large_rows(n, k, width):
    generator = np.random.default_rng(0)
    pre_BN, bias_N = generator.standard_normal((40, n), np.float32), generator.standard_normal(n, np.float32)
    assert top_k(pre_BN, bias_N, k, width) == sorted_top_k(pre_BN, bias_N, k)


@given(st.data())
def test_the_largest_of_a_batch_are_found_exactly_whatever_was_guessed(data):
    assert cpu.available()
    n, rows = data.draw(st.integers(1, 150), "n"), data.draw(st.integers(1, 40), "rows")
    k = data.draw(st.integers(1, n), "k")
    pool = np.array(data.draw(st.lists(data.draw(st.sampled_from([FLOAT, FEW])), min_size=1, max_size=30)), np.float32)
    generator = np.random.default_rng(data.draw(st.integers(0, 1000), "seed"))
    selection = BatchSelection(rows, k, n, slice(0, rows), None)
    for scale in data.draw(st.lists(st.sampled_from([0.01, 1.0, 100.0]), min_size=1, max_size=4), "scales"):
        total_BN = np.float32(scale) * generator.choice(pool, (rows, n))
        tile = data.draw(st.integers(1, rows), "tile")
        while True:
            for start in range(0, rows, tile):
                part = slice(start, min(start + tile, rows))
                selection.take(total_BN[part], np.zeros(n, np.float32), None, part)
            if selection.finish():
                break
        threshold = max(0.0, float(np.sort(total_BN, axis=None)[-k * rows]))
        assert selection.threshold == threshold
        for row, count in enumerate(selection.counts_B):
            places = np.flatnonzero((total_BN[row] >= threshold) & (total_BN[row] > 0))
            assert selection.places_BK[row, :count].tolist() == places.tolist()
            assert selection.values_BK[row, :count].tolist() == total_BN[row, places].tolist()


def test_rows_of_one_value_keep_the_first_latents_and_negative_rows_none():
    pre_BN = np.stack([np.full(100, 2.5, np.float32), np.full(100, -2.5, np.float32), np.zeros(100, np.float32)])
    assert top_k(pre_BN, np.zeros(100, np.float32), 3, 8) == [{0: 2.5, 1: 2.5, 2: 2.5}, {}, {}]


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 57, 99])
def test_a_row_that_is_not_finite_says_so(value, place):
    pre_BN = np.full((3, 100), -1, np.float32)
    pre_BN[1, place] = value
    first, second, third = top_k(pre_BN, np.zeros(100, np.float32), 4, 8)
    assert first == third == {}
    assert list(second) == [0] and np.isnan(second[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_at_its_start_says_so(value):
    """Its first rows are what the first guess is made from."""
    pre_BN = np.random.default_rng(0).standard_normal((6, 100)).astype(np.float32)
    pre_BN[2, ::2] = value
    selection = BatchSelection(6, 1, 100, slice(0, 6), None)
    for _ in range(5):
        selection.take(pre_BN, np.zeros(100, np.float32), None, slice(0, 6))
        if selection.finish():
            break
    else:
        raise AssertionError("it is still looking for a bound")
    assert np.isnan(selection.values_BK[2, 0])


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 9), st.integers(0, 1000))
def test_pairs_are_sorted_by_latent_and_then_by_row(rows, n, k, seed):
    generator = np.random.default_rng(seed)
    k = min(k, n)
    places = np.argsort(generator.random((rows, n)), axis=1)[:, :k].astype(np.int32)
    values, d_values = generator.standard_normal((2, rows, k)).astype(np.float32)
    counts = generator.integers(0, k + 1, rows).astype(np.int32)
    starts, rows_P = np.empty(n + 1, np.int64), np.empty(rows * k, np.int32)
    values_P, d_values_P = np.empty((2, rows * k), np.float32)
    cpu_loops.sort_by_latent(values, d_values, places, counts, 0.5, starts, rows_P, values_P, d_values_P)
    kept = [(places[row, j], row, j) for row in range(rows) for j in range(counts[row])]
    assert starts.tolist() == [sum(latent < i for latent, _, _ in kept) for i in range(n + 1)]
    for at, (_, row, j) in enumerate(sorted(kept)):
        assert (rows_P[at], values_P[at], d_values_P[at]) == (row, values[row, j] / 2, d_values[row, j] / 2)


@pytest.mark.parametrize("size", [0, 1, 7, 31, 32, 33, 512, 2048 + 63])
def test_the_product_of_two_vectors_is_that_of_float64(size):
    a_D, b_D = np.random.default_rng(size).standard_normal((2, size)).astype(np.float32)
    found = product(a_D, b_D)
    exact = a_D.astype(np.float64) * b_D.astype(np.float64)
    assert abs(found - exact.sum()) <= 1e-7 * np.abs(exact).sum()


def test_fma_rounds_once():
    a, b = np.float32(1 + 2**-12), np.float32(1 - 2**-12)  # a b = 1 - 2^-24, which alone would round to 1
    assert fused(a, b, np.float32(-1)) == np.float32(-(2**-24))


FIRST_USE = """
import numba, numpy, torch
torch.set_num_threads(1)
from sae_core.kernels import cpu, cpu_loops as loops
sums = numpy.zeros(3, numpy.float32)
two, first, six = numpy.float32([2]), numpy.int32([0]), numpy.full((1, 3), 6, numpy.float32)
loops._add_rows(sums, two, first, 0, 1, six)
print(sums[2], loops.__file__)
cpu.start_threads()
print(torch.get_num_threads(), numba.get_num_threads())
"""


def test_first_use_leaves_torchs_threads_alone_and_needs_no_place_for_a_cache(tmp_path):
    copy = tmp_path / "sae_core"
    shutil.copytree(Path(cpu_loops.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "kernels" / "__pycache__").touch()  # a file where the folder would be: root, too, cannot write there
    (tmp_path / "cache").touch()
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", FIRST_USE],
        cwd=tmp_path,
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stdout.split()) == (0, ["12.0", str(copy / "kernels/cpu_loops.py"), "1", "1"]), (
        run.stderr
    )


SOME_STEPS = """
import hashlib, torch
from sae_core import SAEConfig, TopKSAE, Trainer, TrainerConfig
torch.set_num_threads(1)
sae = TopKSAE(SAEConfig(d_in=64, n_latents=256, k=8))
with torch.no_grad():
    sae.b_enc[:4] = 3  # they fire at every row: long sums
trainer = Trainer(sae, TrainerConfig(batch_size=512, steps=3), variance=64.0)
for number in range(3):
    trainer.step(torch.randn(512, 64, generator=torch.Generator().manual_seed(number)))
print(hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in trainer.state_dict().values())).hexdigest())
"""


def test_what_has_just_been_compiled_gives_the_bits_of_what_is_loaded(tmp_path):
    copy = tmp_path / "sae_core"
    shutil.copytree(Path(cpu_loops.__file__).parents[1], copy, ignore=shutil.ignore_patterns("__pycache__"))
    digests = []
    for compiled_before in (False, True):
        assert bool(list(copy.rglob("cpu_loops.update*.nbi"))) == compiled_before
        run = subprocess.run(
            [sys.executable, "-c", SOME_STEPS],
            env=os.environ | {"PYTHONPATH": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.append(run.stdout)
    assert digests[0] == digests[1]
