"""The training step: it learns, keeps its invariants, resumes to the bit, and ranks stay equal to the bit."""

import datetime
import os
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core import ActivationError, CheckpointError, SAEConfig, TopKSAE, metrics
from sae_core.kernels import cpu_rounded
from sae_core.trainer import Trainer, TrainerConfig

D, N, K, BATCH = 16, 64, 4, 128
KERNELS = {"fp32": torch.float32, "float64": torch.float64, "rounded on the first": torch.float32}  # of two ranks


def batch(step: int, rows: int = BATCH) -> torch.Tensor:
    """Sparse combinations of 48 fixed directions plus noise, the same for the same step."""
    directions = torch.randn(48, D, generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(1000 + step)
    code = torch.rand(rows, 48, generator=generator) * (torch.rand(rows, 48, generator=generator) < 0.06)
    return code @ directions + 0.5 + 0.02 * torch.randn(rows, D, generator=generator)


VARIANCE = float(batch(0, 5000).var(0).sum())


def trainer(steps=60, seed=0, group=None, normalization="none", dtype=torch.float32, **changes) -> Trainer:
    sae = TopKSAE(SAEConfig(d_in=D, n_latents=N, k=K, seed=seed, normalization=normalization)).to(dtype)
    settings = {"batch_size": BATCH, "steps": steps, "warmup_steps": 5, "lr": 5e-3, "dead_after_rows": 3 * BATCH}
    return Trainer(sae, TrainerConfig(**(settings | changes)), variance=VARIANCE, group=group)


def advance(to: Trainer, until: int) -> Trainer:
    for step in range(to.step_number, until):
        to.step(batch(step))
    return to


def same(a: Trainer, b: Trainer) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_learns_and_reports_what_it_did():
    learner = trainer(steps=300)
    advance(learner, 20)
    early = learner.figures()
    advance(learner, 300)
    late = learner.figures()
    assert late["fvu"] < 0.5 * early["fvu"]
    assert late["loss"] == pytest.approx(late["fvu"] + late["auxiliary"] / 32)
    assert 0 < late["l0"] <= K
    x_BD = batch(9999, 2000)
    assert metrics.fvu(x_BD, learner.sae(x_BD).detach()) < 0.3


def test_figures_are_means_since_the_last_call():
    one, two = trainer(), trainer()
    advance(one, 10)
    both = one.figures()
    parts = [advance(two, until).figures() for until in (4, 10)]
    assert both["fvu"] == pytest.approx((4 * parts[0]["fvu"] + 6 * parts[1]["fvu"]) / 10)
    assert both["dead_share"] == parts[1]["dead_share"]


def test_directions_of_latents_keep_unit_norm():
    learner = advance(trainer(), 30)
    torch.testing.assert_close(learner.sae.W_dec.norm(dim=1), torch.ones(N))
    assert not torch.allclose(learner.sae.W_enc.norm(dim=1), torch.ones(N), atol=1e-3)


def test_no_momentum_builds_up_along_a_direction():
    """With one step the mean gradient is the projected one: it is orthogonal to each latent's direction."""
    learner = trainer()
    before = learner.sae.W_dec.detach().clone()
    learner.step(batch(0))
    moment = learner.state_dict()["exp_avg.W_dec"]
    along = (moment * before).sum(1).abs()
    assert moment.norm(dim=1).max() > 1e-6
    assert (along <= 1e-5 * moment.norm(dim=1).clamp_min(1e-12)).all()


def test_one_step_is_adamw_on_autograd_gradients():
    learner = trainer(auxiliary=0.0, warmup_steps=0, weight_decay=0.1)
    twin = TopKSAE(learner.sae.config)
    optimizer = torch.optim.AdamW(
        [twin.W_enc, twin.b_enc, twin.b_pre], lr=5e-3, betas=(0.9, 0.999), eps=6.25e-10, weight_decay=0.1, fused=False
    )
    for step in range(3):
        with torch.no_grad():
            twin.W_dec.copy_(learner.sae.W_dec)  # its own rule is tested above
        x_BD = batch(step)
        loss = (twin(x_BD) - x_BD).square().sum() / (BATCH * VARIANCE)
        optimizer.zero_grad()
        loss.backward()
        learner.step(x_BD)
        optimizer.step()
    for name in ("W_enc", "b_enc", "b_pre"):
        torch.testing.assert_close(getattr(learner.sae, name), getattr(twin, name), atol=2e-5, rtol=1e-3)


def test_dead_latents_are_counted_in_rows_and_come_back_to_life():
    def share_after_training(auxiliary: float) -> float:
        learner = trainer(steps=300, auxiliary=auxiliary, lr=1e-2)
        with torch.no_grad():
            learner.sae.W_enc[: N // 2] *= 0.02  # half of them start too weak to be among the k largest
        advance(learner, 3)
        assert float(learner.dead.double().mean()) >= 0.5
        advance(learner, 300)
        return learner.figures()["dead_share"]

    assert share_after_training(auxiliary=0.0) >= 0.4
    assert share_after_training(auxiliary=1 / 32) <= 0.2


@settings(max_examples=12, deadline=None)
@given(
    stop=st.integers(0, 25),
    logged=st.integers(0, 25),
    normalization=st.sampled_from(["none", "standardise_rows"]),
    rounded=st.booleans(),
)
def test_resumed_at_any_step_equals_uninterrupted_to_the_bit(stop, logged, normalization, rounded):
    with mock.patch.object(cpu_rounded, "worth_it", return_value=rounded):
        resumed_equals_uninterrupted(stop, logged, normalization)


def resumed_equals_uninterrupted(stop: int, logged: int, normalization: str) -> None:
    whole, first = trainer(normalization=normalization), trainer(normalization=normalization)
    for learner, end in ((whole, 25), (first, stop)):
        advance(learner, min(logged, end))
        if 0 < logged <= end:
            learner.figures()
        advance(learner, end)
    second = trainer(seed=7, normalization=normalization)  # another start, all of which the state must replace
    second.load_state_dict(first.state_dict())
    if stop < logged <= 25:
        advance(second, logged).figures()
    assert same(advance(second, 25), whole)
    assert second.learning_rate == whole.learning_rate


def test_values_that_are_not_finite_are_refused_and_change_nothing():
    learner = advance(trainer(), 2)
    before = learner.state_dict()
    for value in (float("nan"), float("inf")):
        x_BD = batch(2)
        x_BD[3, 4] = value
        with pytest.raises(ActivationError, match="activations of step 2 hold values that are not finite"):
            learner.step(x_BD)
    after = learner.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec"])
def test_a_training_that_has_diverged_is_refused_and_changes_nothing(name):
    learner = advance(trainer(), 2)
    with torch.no_grad():
        getattr(learner.sae, name)[int(learner.sae.encode(batch(2)).indices_BK[0, 0])] = float("nan")
    before = learner.state_dict()
    with pytest.raises(ActivationError, match="loss of step 2 is not finite, although the activations are"):
        learner.step(batch(2))
    after = learner.state_dict()
    assert all(torch.equal(before[name].nan_to_num(9), after[name].nan_to_num(9)) for name in before)


def test_a_batch_of_another_size_or_width_is_refused():
    with pytest.raises(ActivationError, match=r"got 100 rows.*128"):
        trainer().step(batch(0, 100))
    with pytest.raises(ActivationError, match=f"width {D}"):
        trainer().step(torch.zeros(BATCH, D + 1))


def test_a_checkpoint_of_another_training_is_refused_and_changes_nothing():
    learner = advance(trainer(), 2)
    before = learner.state_dict()
    other = Trainer(
        TopKSAE(SAEConfig(d_in=D, n_latents=N + 2, k=K)), TrainerConfig(batch_size=BATCH, steps=5), variance=1.0
    ).state_dict()
    with pytest.raises(CheckpointError, match=r"\(66"):
        learner.load_state_dict(other)
    with pytest.raises(CheckpointError, match=r"silent_rows as None"):
        learner.load_state_dict({name: tensor for name, tensor in before.items() if name != "silent_rows"})
    with pytest.raises(CheckpointError, match="step"):
        learner.load_state_dict({name: tensor for name, tensor in before.items() if name != "step"})
    assert all(torch.equal(before[name], tensor) for name, tensor in learner.state_dict().items())


def run_rank(rank: int, world: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=60)
    )
    share = BATCH // world
    own = slice(rank * share, (rank + 1) * share)
    for name, dtype in KERNELS.items():
        cpu_rounded.worth_it = lambda *_, rounded=name == "rounded on the first": rounded and rank == 0
        learner = trainer(seed=rank, group=dist.group.WORLD, dtype=dtype)  # ranks that start apart are brought together
        for step in range(25):
            learner.step(batch(step)[own])
        torch.save({"state": learner.state_dict(), "figures": learner.figures()}, f"{folder}/{rank}-{name}.pt")
        bad = batch(25)[own] * (float("nan") if rank == 0 else 1)
        with pytest.raises(ActivationError, match="not finite"):  # on both, though only one rank's share is bad
            learner.step(bad)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads have been seen to abort an interpreter that takes its time to end


def test_ranks_stay_bit_equal_and_near_the_single_process(tmp_path):
    multiprocessing.spawn(run_rank, args=(2, str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    for name, dtype in KERNELS.items():
        ranks = [torch.load(tmp_path / f"{rank}-{name}.pt", weights_only=True) for rank in range(2)]
        for tensor, other in zip(ranks[0]["state"].values(), ranks[1]["state"].values(), strict=True):
            assert torch.equal(tensor, other), name
        assert ranks[0]["figures"] == ranks[1]["figures"]
        alone = advance(trainer(dtype=dtype), 25)
        assert torch.equal(alone.state_dict()["silent_rows"], ranks[0]["state"]["silent_rows"])
        weights = [state["sae.W_enc"] for state in (alone.state_dict(), ranks[0]["state"])]
        torch.testing.assert_close(*weights, atol=1e-3, rtol=1e-2)
        assert alone.figures()["fvu"] == pytest.approx(ranks[0]["figures"]["fvu"], rel=1e-4)


def test_a_world_that_does_not_divide_the_batch_is_refused(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        group = dist.group.WORLD
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dist, "get_world_size", lambda _group: 3)
            with pytest.raises(ValueError, match="128 rows cannot be shared by 3 ranks"):
                trainer(group=group)
    finally:
        dist.destroy_process_group()
