"""Selection in the GPU's step against sorting, in Triton's interpreter on the CPU or, as test_gpu.py says, on a GPU."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed (it is there for Linux only)")
from sae_core.kernels import gpu_batch_top_k, gpu_top_k  # after conftest.py has chosen the interpreter

DEVICE = "cpu" if os.environ["TRITON_INTERPRET"] == "1" else "cuda"


@pytest.mark.parametrize(("tile", "places"), [(4, 8), (4, 512), (64, 8)])  # a small pool is full again and again
@pytest.mark.parametrize("kind", ["numbers", "ascending", "ties", "few"])
@pytest.mark.parametrize(("n", "k"), [(37, 5), (16, 16), (5, 1)])
def test_the_k_largest_are_found_exactly_and_ties_go_to_the_lowest_number(monkeypatch, n, k, kind, tile, places):
    monkeypatch.setattr(gpu_top_k, "PLACES", places)
    generator = torch.Generator().manual_seed(n)
    pre_BN = torch.randn(4, n, generator=generator)
    if kind == "ascending":
        pre_BN = pre_BN.sort(dim=1).values
    elif kind != "numbers":
        pre_BN = torch.randint(-2, 3, (4, n), generator=generator) - 1.0 * (kind == "few")
    pre_BN, bias_N = pre_BN.to(DEVICE), torch.randint(0, 2, (n,), generator=generator).float().to(DEVICE)
    values_BK = torch.full((4, k), torch.nan, device=DEVICE)
    latents_BK = torch.full((4, k), -7, dtype=torch.int32, device=DEVICE)
    pool = gpu_top_k.Pool.for_rows(4, k, torch.device(DEVICE))
    for first in range(0, n, tile):
        part = slice(first, first + tile)
        gpu_top_k.top_k(pre_BN[:, part], bias_N[part], first, n, pool, values_BK, latents_BK)
    total_BN = pre_BN + bias_N
    order_BK = total_BN.sort(dim=1, descending=True, stable=True).indices[:, :k]
    for total_N, order_K, values_K, latents_K in zip(total_BN, order_BK, values_BK, latents_BK, strict=True):
        kept = sorted((place, float(total_N[place])) for place in order_K.tolist() if total_N[place] > 0)
        free = [(n, 0.0)] * (k - len(kept))
        assert list(zip(latents_K.tolist(), values_K.tolist(), strict=True)) == kept + free


@pytest.mark.parametrize("tile", [4, 64])
@pytest.mark.parametrize("kind", ["numbers", "ascending", "ties", "few", "one row"])
@pytest.mark.parametrize("guess", [0.0, 0.5, 10.0])  # all that is positive, some, nothing
@pytest.mark.parametrize("places", [1, 37])  # soon full, never
def test_what_reaches_the_batch_s_threshold_is_found_exactly(monkeypatch, kind, guess, places, tile):
    monkeypatch.setattr(gpu_batch_top_k, "PIECE", 8)
    (rows, n, k), generator = (4, 37, 5), torch.Generator().manual_seed(3)
    pre_BN = torch.randn(rows, n, generator=generator)
    if kind == "ascending":
        pre_BN = pre_BN.sort(dim=1).values
    elif kind == "one row":
        pre_BN[1] += 3
    elif kind != "numbers":
        pre_BN = torch.randint(-2, 3, (rows, n), generator=generator) - 1.0 * (kind == "few")
    pre_BN, bias_N = pre_BN.to(DEVICE), torch.randint(0, 2, (n,), generator=generator).float().to(DEVICE)
    selection = gpu_batch_top_k.BatchSelection(rows, k, n, slice(0, rows), None, False, torch.device(DEVICE))
    selection._make_room(places)
    selection._guess.fill_(guess)
    holds = False
    while not holds:
        for part in (slice(0, 3), slice(3, 4)):
            for first in range(0, n, tile):
                of = slice(first, first + tile)
                selection.take(pre_BN[part, of], bias_N[of], first, part)
        selection.finish()
        holds = selection.holds()
    total_BN = pre_BN + bias_N
    positive = total_BN[total_BN > 0].sort(descending=True).values
    threshold = float(positive[k * rows - 1]) if len(positive) >= k * rows else 0.0
    assert float(selection.threshold) == threshold
    for total_N, values_W, latents_W, count in zip(
        total_BN, selection.values_BK, selection.latents_BK, selection.counts_B, strict=True
    ):
        kept = [(i, float(total_N[i])) for i in range(n) if total_N[i] >= threshold and total_N[i] > 0]
        free = [(n, 0.0)] * (selection.values_BK.shape[1] - len(kept))
        assert list(zip(latents_W.tolist(), values_W.tolist(), strict=True)) == kept + free
        assert int(count) == len(kept)
