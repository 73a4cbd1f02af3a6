"""Hand-written gradients against autograd in float64, on a dense textbook form of the loss."""

import pytest
import torch

from sae_core import SAEConfig, TopKSAE
from sae_core.gradients import gradients

D, N, K, ROWS, V, AUXILIARY = 10, 96, 5, 40, 3.7, 0.25


def prepared(seed=0, dtype=torch.float32) -> tuple[TopKSAE, torch.Tensor]:
    sae = TopKSAE(SAEConfig(d_in=D, n_latents=N, k=K, seed=seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        sae.b_enc -= 2.5  # so that some of the kept pre-activations are negative
    x_BD = torch.randn(ROWS, D, generator=generator)
    return sae.to(dtype), x_BD.to(dtype)


def reference(sae: TopKSAE, x_BD: torch.Tensor, dead_M: torch.Tensor, k_auxiliary: int) -> dict[str, torch.Tensor]:
    """Autograd through dense float64 codes, with the selection made by a full sort."""
    weights = {name: tensor.detach().double().requires_grad_(True) for name, tensor in sae.named_parameters()}
    x_BD = x_BD.double()
    pre_BN = (x_BD - weights["b_pre"]) @ weights["W_enc"].T + weights["b_enc"]
    chosen_BK = pre_BN.argsort(dim=1, descending=True)[:, :K]
    code_BN = torch.zeros_like(pre_BN).scatter(1, chosen_BK, pre_BN.gather(1, chosen_BK).relu())
    error_BD = x_BD - (code_BN @ weights["W_dec"] + weights["b_pre"])
    loss = error_BD.square().sum() / (ROWS * V)
    if len(dead_M):
        pre_BM = pre_BN[:, dead_M]
        chosen_Bk = pre_BM.argsort(dim=1, descending=True)[:, : min(k_auxiliary, len(dead_M))]
        code_BM = torch.zeros_like(pre_BM).scatter(1, chosen_Bk, pre_BM.gather(1, chosen_Bk).relu())
        loss = loss + AUXILIARY * (error_BD.detach() - code_BM @ weights["W_dec"][dead_M]).square().sum() / (ROWS * V)
    loss.backward()
    return {name: tensor.grad for name, tensor in weights.items()} | {"loss": loss.detach()}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dead", [0, 1, 7, 60, N])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_equal_to_autograd_in_float64_for_any_number_of_dead_latents(dead, dtype, tolerance):
    sae, x_BD = prepared(dtype=dtype)
    dead_M = torch.randperm(N, generator=torch.Generator().manual_seed(9))[:dead]
    found = gradients(sae, x_BD, dead_M, rows=ROWS, variance=V, auxiliary=AUXILIARY, k_auxiliary=16)
    expected = reference(sae, x_BD, dead_M, 16)
    for name in ("W_enc", "W_dec", "b_enc", "b_pre"):
        assert relative_error(getattr(found, name), expected[name]) <= tolerance, name
    loss = (found.sums[0] + AUXILIARY * found.sums[1]) / ROWS
    assert float(loss) == pytest.approx(float(expected["loss"]), rel=10 * tolerance)


def test_dead_latents_get_a_gradient_only_from_the_auxiliary_loss():
    sae, x_BD = prepared()
    chosen = sae.encode(x_BD)
    never = torch.tensor(sorted(set(range(N)) - set(chosen.indices_BK[chosen.values_BK > 0].tolist())))
    without = gradients(sae, x_BD, never, rows=ROWS, variance=V, auxiliary=0.0, k_auxiliary=4)
    with_it = gradients(sae, x_BD, never, rows=ROWS, variance=V, auxiliary=AUXILIARY, k_auxiliary=4)
    assert without.W_enc[never].abs().sum() == 0
    assert with_it.W_enc[never].abs().sum() > 0
    assert with_it.W_dec[never].abs().sum() > 0


def test_the_shares_of_a_batch_add_up_to_the_batch():
    sae, x_BD = prepared(dtype=torch.float64)
    dead_M = torch.arange(10)
    options = {"rows": ROWS, "variance": V, "auxiliary": AUXILIARY, "k_auxiliary": 4}
    whole = gradients(sae, x_BD, dead_M, **options)
    parts = [gradients(sae, part_BD, dead_M, **options) for part_BD in x_BD.split(10)]
    for name in ("W_enc", "W_dec", "small"):
        torch.testing.assert_close(sum(getattr(part, name) for part in parts), getattr(whole, name))


def test_counts_in_how_many_rows_a_latent_fired():
    sae, x_BD = prepared()
    found = gradients(sae, x_BD, torch.arange(0), rows=ROWS, variance=V, auxiliary=0.0, k_auxiliary=4)
    codes = sae.encode(x_BD)
    expected = torch.bincount(codes.indices_BK[codes.values_BK > 0], minlength=N)
    assert found.fired.tolist() == expected.tolist()
    assert expected.sum() < ROWS * K  # the ReLU closed some
