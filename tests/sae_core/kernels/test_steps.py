"""The steps against each other: the compiled one and the dense one end at the same weights, moments and figures."""

import functools

import pytest
import torch

from sae_core import SAE, SAEConfig, TopKSAE, make_sae
from sae_core.architectures import BatchTopKSAE
from sae_core.gradients import gradients
from sae_core.kernels import Moments, StepOptions, cpu, step_for
from sae_core.kernels.cpu import FusedStep
from sae_core.kernels.reference import DenseStep
from tests.sae_core.kernels.made_steps import PARAMETERS, V, batch, found_by, prepared, relative_error, some_latents

WAYS = [functools.partial(FusedStep, rounds=rounds) for rounds in (False, True)]
COMPILED = pytest.mark.parametrize("kind", WAYS, ids=["fp32", "rounded"])
TRANSCODERS = ["transcoder", "transcoder to another width", "transcoder with skip"]
BY_AUTOGRAD = [  # in the reference
    "batch_topk", "matryoshka", "matryoshka by row", "topk without pre-bias", "batch_topk without pre-bias",
    *TRANSCODERS,
]  # fmt: skip
SHAPES = [(17, 96, 5, 40), (64, 200, 16, 33), (3, 8, 8, 5), (1, 5, 2, 1)]  # d, n, k, rows


@COMPILED
@pytest.mark.parametrize("dead", [0, 1, 7, "all"])
@pytest.mark.parametrize(("d", "n", "k", "rows"), SHAPES)
def test_gradients_equal_the_float64_reference(kind, d, n, k, rows, dead):
    """With beta1 = 0 the mean gradient after an update is the gradient; W_dec's lacks its part along the direction."""
    step, sae, moments = prepared(kind, d, n, k, rows, beta1=0.0)
    twin = TopKSAE(sae.config).double()
    twin.load_state_dict(sae.state_dict())
    x_BD = batch(rows, d, 0)
    numbers = some_latents(n, dead)
    dead_M = torch.tensor(numbers, dtype=torch.int64)
    expected = gradients(twin, x_BD.double(), dead_M, rows=rows, variance=V, auxiliary=0.25, k_auxiliary=3)
    directions = twin.W_dec.detach()
    expected.W_dec.sub_((expected.W_dec * directions).sum(1, keepdim=True) * directions)

    found = found_by(step, x_BD, numbers)
    step.update(1e-3, 1)
    torch.testing.assert_close(found.sums, expected.sums, rtol=1e-5, atol=0)
    assert found.fired_N.tolist() == expected.fired.tolist()
    for name in PARAMETERS:
        assert relative_error(moments[name].exp_avg, getattr(expected, name)) <= 1e-6, name


@COMPILED
@pytest.mark.parametrize("architecture", ["topk", *BY_AUTOGRAD])
@pytest.mark.parametrize(("d", "n", "k", "rows"), SHAPES)
def test_several_steps_end_where_the_float64_reference_ends(kind, d, n, k, rows, architecture):
    (fused, sae, _), (dense, twin, _) = (
        prepared(each, d, n, k, rows, architecture) for each in (kind, DenseStep)
    )
    for number in range(1, 6):
        x_BD, dead = batch(rows, d, number), range(0, n, 3) if number % 2 else []
        found, expected = found_by(fused, x_BD, dead), found_by(dense, x_BD.double(), dead)
        torch.testing.assert_close(found.sums, expected.sums, rtol=1e-4, atol=0)
        assert found.fired_N.tolist() == expected.fired_N.tolist()
        fused.update(1e-2 / number, number)
        dense.update(1e-2 / number, number)
    for name, tensor in sae.named_parameters():
        assert relative_error(tensor.detach(), getattr(twin, name).detach()) <= 1e-4, name
    if isinstance(sae, BatchTopKSAE):
        torch.testing.assert_close(sae.threshold.double(), twin.threshold, rtol=1e-5, atol=1e-7)
    if sae.unit_decoder:
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(n))


@COMPILED
@pytest.mark.parametrize("architecture", BY_AUTOGRAD)
@pytest.mark.parametrize("dead", [0, 7, "all"])
@pytest.mark.parametrize(("d", "n", "k", "rows"), SHAPES)
def test_gradients_equal_those_of_autograd_in_float64(kind, d, n, k, rows, dead, architecture):
    (step, _, moments), (dense, _, expected) = (
        prepared(each, d, n, k, rows, architecture, beta1=0.0) for each in (kind, DenseStep)
    )
    x_BD, numbers = batch(rows, d, 0), some_latents(n, dead)
    found, exact = found_by(step, x_BD, numbers), found_by(dense, x_BD.double(), numbers)
    step.update(1e-3, 1)
    dense.update(1e-3, 1)
    torch.testing.assert_close(found.sums, exact.sums, rtol=1e-5, atol=0)
    for name in moments:
        assert relative_error(moments[name].exp_avg, expected[name].exp_avg) <= 1e-6, name


def test_a_latent_that_does_not_fire_still_decays_and_moves():
    step, sae, moments = prepared(FusedStep, 16, 64, 2, 30, auxiliary=0.0)
    found_by(step, batch(30, 16, 0), [])
    step.update(1e-2, 1)
    with torch.no_grad():
        sae.b_enc.fill_(-100)
    before = {
        name: (tensor.detach().clone(), *(part.clone() for part in moments[name]))
        for name, tensor in sae.named_parameters()
    }
    assert before["W_enc"][1].abs().sum() > 0
    found = found_by(step, batch(30, 16, 1), [])
    step.update(1e-2, 2)
    assert found.fired_N.sum() == 0
    weight, mean, square = before["W_enc"]
    mean, square = 0.9 * mean, 0.99 * square
    moved = weight * (1 - 1e-2 * 0.1) - 1e-2 * (mean / (1 - 0.9**2)) / ((square / (1 - 0.99**2)).sqrt() + 1e-8)
    torch.testing.assert_close(moments["W_enc"].exp_avg, mean)
    torch.testing.assert_close(moments["W_enc"].exp_avg_sq, square)
    torch.testing.assert_close(sae.W_enc.detach(), moved)


@COMPILED
@pytest.mark.parametrize("architecture", ["topk", *BY_AUTOGRAD])
def test_bits_do_not_depend_on_the_number_of_threads(kind, architecture):
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        step, sae, _ = prepared(kind, 64, 512, 8, 200, architecture)
        for number in range(1, 4):
            found = found_by(step, batch(200, 64, number), range(40))
            step.update(1e-2, number)
        results.append([found.sums, *sae.state_dict().values()])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


@COMPILED
def test_tiles_give_the_same_codes(kind, monkeypatch):
    whole = prepared(kind, 16, 64, 4, 50)[0]
    monkeypatch.setattr(cpu, "TILE_ELEMENTS", 64 * 7)
    tiled = prepared(kind, 16, 64, 4, 50)[0]
    a, b = (found_by(step, batch(50, 16, 0), range(5)) for step in (whole, tiled))
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
    assert kind(make_sae(SAEConfig(d_in=4, n_latents=8, k=2, architecture="transcoder", d_out=3))) is FusedStep
    assert kind(make_sae(SAEConfig(d_in=4, n_latents=8, k=2, multi_topk=True))) is DenseStep
    assert kind(make_sae(SAEConfig(d_in=4, n_latents=8, architecture="gated"))) is DenseStep
    assert kind(type("Derived", (TopKSAE,), {})(config)) is DenseStep
    monkeypatch.setattr(cpu, "available", lambda: False)
    assert kind(TopKSAE(config)) is DenseStep
