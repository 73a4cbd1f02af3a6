"""The steps against each other: the compiled one and the dense one end at the same weights, moments and figures."""

import pytest
import torch

from sae_core import SAE, SAEConfig, TopKSAE, make_sae
from sae_core.gradients import gradients
from sae_core.kernels import Found, Moments, Step, StepOptions, cpu, step_for
from sae_core.kernels.cpu import PARAMETERS, FusedStep
from sae_core.kernels.reference import DenseStep

V = 3.7
BY_AUTOGRAD = ["batch_topk", "matryoshka", "matryoshka by row"]  # in the reference
SHAPES = [(17, 96, 5, 40), (64, 200, 16, 33), (3, 8, 8, 5), (1, 5, 2, 1)]  # d, n, k, rows


def prepared(d: int, n: int, k: int, rows: int, dtype=torch.float32, architecture="topk", **changes):
    """A step, its autoencoder away from the start (some kept pre-activations are negative) and its moments."""
    name, _, by_row = architecture.partition(" ")
    nested = {"prefixes": tuple(sorted({1, n // 3 or 1, n}))} if name == "matryoshka" else {}
    selection = {"selection": "row"} if by_row else {}
    sae = make_sae(SAEConfig(d_in=d, n_latents=n, k=k, architecture=name, **nested, **selection))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        sae.W_dec /= sae.W_dec.norm(dim=1, keepdim=True)
        sae.b_enc -= 1
    sae = sae.to(dtype)
    options = {"auxiliary": 0.25, "k_auxiliary": 3, "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "weight_decay": 0.1}
    settings = StepOptions(rows=rows, variance=V, **(options | changes))
    moments = {name: Moments(*torch.zeros(2, *getattr(sae, name).shape, dtype=dtype)) for name in PARAMETERS}
    kind = DenseStep if dtype == torch.float64 else FusedStep
    return kind(sae, moments, settings), sae, moments


def batch(rows: int, d: int, number: int) -> torch.Tensor:
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(100 + number))


def found_by(step: Step, x_BD: torch.Tensor, dead_M: torch.Tensor) -> Found:
    """The step's gradients with these latents dead."""
    dead_N = torch.zeros(len(step._sae.b_enc), dtype=torch.bool)
    dead_N[dead_M] = True
    return step.gradients(x_BD, x_BD, dead_N, 0.0)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    difference = float((found.double() - expected.double()).norm())
    return difference / float(expected.double().norm()) if difference else 0.0


@pytest.mark.parametrize("dead", [0, 1, 7, "all"])
@pytest.mark.parametrize(("d", "n", "k", "rows"), SHAPES)
def test_gradients_equal_the_float64_reference(d, n, k, rows, dead):
    """With beta1 = 0 the mean gradient after an update is the gradient; W_dec's lacks its part along the direction."""
    step, sae, moments = prepared(d, n, k, rows, beta1=0.0)
    twin = TopKSAE(sae.config).double()
    twin.load_state_dict(sae.state_dict())
    x_BD = batch(rows, d, 0)
    dead_M = torch.randperm(n, generator=torch.Generator().manual_seed(9))[: n if dead == "all" else min(dead, n)]
    expected = gradients(twin, x_BD.double(), dead_M, rows=rows, variance=V, auxiliary=0.25, k_auxiliary=3)
    directions = twin.W_dec.detach()
    expected.W_dec.sub_((expected.W_dec * directions).sum(1, keepdim=True) * directions)

    found = found_by(step, x_BD, dead_M)
    step.update(1e-3, 1)
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-5, atol=0)
    assert found.fired_N.tolist() == expected.fired.tolist()
    for name in PARAMETERS:
        assert relative_error(moments[name].exp_avg, getattr(expected, name)) <= 1e-6, name


@pytest.mark.parametrize("architecture", ["topk", *BY_AUTOGRAD])
@pytest.mark.parametrize(("d", "n", "k", "rows"), SHAPES)
def test_several_steps_end_where_the_float64_reference_ends(d, n, k, rows, architecture):
    (fused, sae, _), (dense, twin, _) = (
        prepared(d, n, k, rows, dtype, architecture) for dtype in (torch.float32, torch.float64)
    )
    assert type(fused) is FusedStep
    for number in range(1, 6):
        x_BD, dead_M = batch(rows, d, number), torch.arange(0, n, 3) if number % 2 else torch.arange(0)
        found, expected = found_by(fused, x_BD, dead_M), found_by(dense, x_BD.double(), dead_M)
        torch.testing.assert_close(found.sums, expected.sums, rtol=1e-4, atol=0)
        assert found.fired_N.tolist() == expected.fired_N.tolist()
        fused.update(1e-2 / number, number)
        dense.update(1e-2 / number, number)
    for name in PARAMETERS:
        assert relative_error(getattr(sae, name).detach(), getattr(twin, name).detach()) <= 1e-4, name
    if architecture != "topk":
        torch.testing.assert_close(sae.threshold.double(), twin.threshold, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(n))


@pytest.mark.parametrize("architecture", BY_AUTOGRAD)
@pytest.mark.parametrize("dead", [0, 7, "all"])
@pytest.mark.parametrize(("d", "n", "k", "rows"), SHAPES)
def test_gradients_equal_those_of_autograd_in_float64(d, n, k, rows, dead, architecture):
    step, _, moments = prepared(d, n, k, rows, architecture=architecture, beta1=0.0)
    dense, _, expected = prepared(d, n, k, rows, torch.float64, architecture, beta1=0.0)
    x_BD = batch(rows, d, 0)
    dead_M = torch.randperm(n, generator=torch.Generator().manual_seed(9))[: n if dead == "all" else min(dead, n)]
    found, exact = found_by(step, x_BD, dead_M), found_by(dense, x_BD.double(), dead_M)
    step.update(1e-3, 1)
    dense.update(1e-3, 1)
    torch.testing.assert_close(found.sums, exact.sums, rtol=1e-5, atol=0)
    for name in PARAMETERS:
        assert relative_error(moments[name].exp_avg, expected[name].exp_avg) <= 1e-6, name


def test_a_latent_that_does_not_fire_still_decays_and_moves():
    step, sae, moments = prepared(16, 64, 2, 30, auxiliary=0.0)
    found_by(step, batch(30, 16, 0), torch.arange(0))
    step.update(1e-2, 1)
    with torch.no_grad():
        sae.b_enc.fill_(-100)
    before = {
        name: (tensor.detach().clone(), *(part.clone() for part in moments[name]))
        for name, tensor in sae.named_parameters()
    }
    assert before["W_enc"][1].abs().sum() > 0
    found = found_by(step, batch(30, 16, 1), torch.arange(0))
    step.update(1e-2, 2)
    assert found.fired_N.sum() == 0
    weight, mean, square = before["W_enc"]
    mean, square = 0.9 * mean, 0.99 * square
    moved = weight * (1 - 1e-2 * 0.1) - 1e-2 * (mean / (1 - 0.9**2)) / ((square / (1 - 0.99**2)).sqrt() + 1e-8)
    torch.testing.assert_close(moments["W_enc"].exp_avg, mean)
    torch.testing.assert_close(moments["W_enc"].exp_avg_sq, square)
    torch.testing.assert_close(sae.W_enc.detach(), moved)


@pytest.mark.parametrize("architecture", ["topk", *BY_AUTOGRAD])
def test_bits_do_not_depend_on_the_number_of_threads(architecture):
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        step, sae, _ = prepared(64, 512, 8, 200, architecture=architecture)
        for number in range(1, 4):
            found = found_by(step, batch(200, 64, number), torch.arange(40))
            step.update(1e-2, number)
        results.append([found.sums, *sae.state_dict().values()])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_tiles_give_the_same_codes(monkeypatch):
    whole = prepared(16, 64, 4, 50)[0]
    monkeypatch.setattr(cpu, "TILE_ELEMENTS", 64 * 7)
    tiled = prepared(16, 64, 4, 50)[0]
    a, b = (found_by(step, batch(50, 16, 0), torch.arange(5)) for step in (whole, tiled))
    torch.testing.assert_close(a.sums, b.sums)
    assert torch.equal(a.fired_N, b.fired_N)


def test_each_architecture_dtype_and_machine_gets_its_step(monkeypatch):
    def kind(sae: SAE) -> type:
        moments = {name: Moments(*torch.zeros(2, *tensor.shape)) for name, tensor in sae.named_parameters()}
        options = StepOptions(4, 1.0, 0.0, 1, 0.9, 0.999, 1e-8, 0.0)
        return type(step_for(sae, moments, options))

    config = SAEConfig(d_in=4, n_latents=8, k=2)
    assert kind(TopKSAE(config)) is FusedStep
    assert kind(TopKSAE(config).double()) is DenseStep
    assert kind(make_sae(SAEConfig(d_in=4, n_latents=8, k=2, architecture="batch_topk"))) is FusedStep
    assert kind(make_sae(SAEConfig(d_in=4, n_latents=8, k=2, architecture="matryoshka"))) is FusedStep
    assert kind(make_sae(SAEConfig(d_in=4, n_latents=8, architecture="gated"))) is DenseStep
    monkeypatch.setattr(cpu, "available", lambda: False)
    assert kind(TopKSAE(config)) is DenseStep
