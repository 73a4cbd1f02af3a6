"""Both kinds of codes say the same of the same dense code; nothing is lost between the forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core import CSRCodes, TopKCodes
from sae_core.codes import RowScale

N, D = 11, 5


def dense_code(rows: int, most: int, seed: int) -> torch.Tensor:
    """Up to `most` positive entries in each row; some rows and latents have none."""
    generator = torch.Generator().manual_seed(seed)
    code_BN = torch.zeros(rows, N, dtype=torch.float64)
    for row in range(rows):
        count = int(torch.randint(0, most + 1, (), generator=generator))
        code_BN[row, torch.randperm(N, generator=generator)[:count]] = 1 + torch.rand(
            count, generator=generator, dtype=torch.float64
        )
    return code_BN


def as_topk(code_BN: torch.Tensor, k: int, seed: int) -> TopKCodes:
    values_BK, indices_BK = code_BN.topk(k, dim=1)
    order_K = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    return TopKCodes(values_BK[:, order_K], indices_BK[:, order_K])


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(0, 9), k=st.integers(1, N), seed=st.integers(0, 1 << 20))
def test_both_kinds_agree_with_the_dense_code(rows, k, seed):
    code_BN = dense_code(rows, k, seed)
    directions_ND = torch.randn(N, D, dtype=torch.float64)
    row_F, latent_F = code_BN.nonzero(as_tuple=True)
    for codes in (as_topk(code_BN, k, seed), CSRCodes.from_dense(code_BN)):
        assert codes.rows == rows
        assert torch.equal(codes.dense(N), code_BN)
        assert torch.equal(codes.counts(), (code_BN > 0).sum(1))
        pairs = codes.pairs()
        assert torch.equal(pairs.row_F, row_F)
        assert torch.equal(pairs.latent_F, latent_F)
        assert torch.equal(pairs.value_F, code_BN[row_F, latent_F])
        torch.testing.assert_close(codes.combine(directions_ND), code_BN @ directions_ND)


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, 12), tile=st.integers(1, 5), k=st.integers(1, N), seed=st.integers(0, 1 << 20))
def test_joined_parts_are_the_whole(rows, tile, k, seed):
    code_BN = dense_code(rows, k, seed)
    scale = RowScale(torch.zeros(rows, 1), torch.ones(rows, 1))
    topk = TopKCodes.joined([as_topk(part_BN, k, seed) for part_BN in code_BN.split(tile)], scale)
    csr = CSRCodes.joined([CSRCodes.from_dense(part_BN) for part_BN in code_BN.split(tile)], scale)
    assert torch.equal(topk.dense(N), code_BN)
    for found, expected in zip(csr[:3], CSRCodes.from_dense(code_BN)[:3], strict=True):
        assert torch.equal(found, expected)
    assert topk.scale is scale and csr.scale is scale


@pytest.mark.parametrize("make", [CSRCodes.from_dense, lambda code_BN: as_topk(code_BN, 3, 0)])
def test_gradients_flow_through_the_codes(make):
    code_BN = dense_code(6, 3, 1).requires_grad_(True)
    directions_ND = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    upstream_BD = torch.randn(6, D, dtype=torch.float64)
    make(code_BN).combine(directions_ND).backward(upstream_BD)
    fires_BN = code_BN.detach() > 0
    torch.testing.assert_close(code_BN.grad * fires_BN, (upstream_BD @ directions_ND.detach().T) * fires_BN)
    torch.testing.assert_close(directions_ND.grad, code_BN.detach().T @ upstream_BD)
