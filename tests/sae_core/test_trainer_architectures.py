"""Training of every architecture: it learns, resumes to the bit, and ranks stay equal to the bit."""

import datetime
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from sae_core import ActivationError, CheckpointError, SAEConfig, Trainer, TrainerConfig, make_sae, metrics
from sae_core.autograd import gradients_by_autograd
from sae_core.gradients import gradients
from sae_core.losses import Batch
from tests.sae_core.test_gradients import AUXILIARY, ROWS, V, prepared
from tests.sae_core.test_trainer import batch, same

D, N, K, BATCH, OUT = 16, 64, 4, 128, 10
CONFIGS = {
    "multi_topk": {"architecture": "topk", "k": K, "multi_topk": True},
    "plain_topk": {"architecture": "topk", "k": K, "pre_bias": False},
    "batch_topk": {"architecture": "batch_topk", "k": K},
    "relu": {"architecture": "relu", "decoder_norm": 0.3},
    "jumprelu": {"architecture": "jumprelu", "bandwidth": 0.3},
    "gated": {"architecture": "gated"},
    "matryoshka": {"architecture": "matryoshka", "k": K, "prefixes": (16, N)},
    "matryoshka_rows": {"architecture": "matryoshka", "k": K, "prefixes": (16, N), "selection": "row"},
    "transcoder": {"architecture": "transcoder", "k": K, "d_out": OUT, "skip": True},
}
MAP_DO = torch.randn(D, OUT, generator=torch.Generator().manual_seed(6)) / D**0.5


def target(name: str, x_BD: torch.Tensor) -> torch.Tensor | None:
    return (x_BD @ MAP_DO.to(x_BD.dtype)).relu() if name == "transcoder" else None


SCALE = D**0.5 / float(batch(0, 5000).norm(dim=1).mean())
VARIANCE = float(batch(0, 5000).var(0).sum()) * SCALE**2


def trainer(name: str, steps=60, seed=0, group=None, micro_batch=None, **changes) -> Trainer:
    scaled = "none" if name == "transcoder" else "scale"
    sae = make_sae(SAEConfig(d_in=D, n_latents=N, seed=seed, normalization=scaled, **CONFIGS[name]))
    sae.input_scale.fill_(SCALE)
    variance = VARIANCE
    if name == "transcoder":
        variance = float(target(name, batch(0, 5000)).var(0).sum())
    settings = {"batch_size": BATCH, "steps": steps, "warmup_steps": 5, "lr": 5e-3, "dead_after_rows": 3 * BATCH}
    settings |= {"sparsity": 0.5 if sae.penalises_sparsity else 0.0, "sparsity_warmup_steps": steps // 20}
    config = TrainerConfig(**(settings | changes))
    return Trainer(sae, config, variance=variance, group=group, micro_batch=micro_batch)


def advance(name: str, to: Trainer, until: int) -> Trainer:
    for step in range(to.step_number, until):
        to.step(batch(step), target(name, batch(step)))
    return to


LEARNT = {  # held-out FVU at most, and the range of L0
    "multi_topk": (0.25, K, K),
    "plain_topk": (0.4, K, K),
    "batch_topk": (0.25, 0.8 * K, 1.2 * K),
    "relu": (0.2, 1, 24),
    "jumprelu": (0.2, 1, 12),
    "gated": (0.1, 1, 24),
    "matryoshka": (0.25, 0.8 * K, 1.2 * K),
    "matryoshka_rows": (0.25, K, K),
    "transcoder": (0.3, 1, K),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_learns_a_sparse_dictionary(name):
    learner = trainer(name, steps=400)
    early = advance(name, learner, 20).figures()
    late = advance(name, learner, 400).figures()
    assert late["fvu"] < 0.5 * early["fvu"]
    sae, x_BD = learner.sae.eval(), batch(9999, 2000)
    with torch.no_grad():
        found = sae(x_BD)
        l0 = metrics.l0(sae.encode(x_BD))
    expected = target(name, x_BD)
    limit, least, most = LEARNT[name]
    assert metrics.fvu(x_BD if expected is None else expected, found) < limit
    assert least <= l0 <= most


@pytest.mark.parametrize(("name", "mild", "strong"), [("relu", 0.1, 2.0), ("gated", 0.1, 2.0), ("jumprelu", 0.02, 1.0)])
def test_a_larger_coefficient_makes_codes_sparser(name, mild, strong):
    l0 = [advance(name, trainer(name, steps=200, sparsity=s), 200).figures()["l0"] for s in (mild, strong)]
    assert l0[1] < 0.7 * l0[0]


def test_a_matryoshkas_first_latents_reconstruct_alone():
    def fvu_of_16(name: str) -> float:
        sae = advance(name, trainer(name, steps=300), 300).sae.eval()
        x_BD = batch(9999, 2000)
        with torch.no_grad():
            sae.W_dec[16:] = 0
            return metrics.fvu(x_BD, sae(x_BD))

    assert fvu_of_16("matryoshka") < 0.7 * fvu_of_16("batch_topk")


@pytest.mark.parametrize("name", CONFIGS)
def test_values_that_are_not_finite_are_refused_and_change_nothing(name):
    learner = advance(name, trainer(name), 2)
    before = learner.state_dict()
    for spoilt in ("input", "target") if name == "transcoder" else ("input",):
        x_BD, target_BD = batch(2), target(name, batch(2))
        (x_BD if spoilt == "input" else target_BD)[3, 4] = float("nan")
        with pytest.raises(ActivationError, match="activations of step 2 hold values that are not finite"):
            learner.step(x_BD, target_BD)
    after = learner.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", CONFIGS)
def test_resumed_equals_uninterrupted_to_the_bit(name):
    whole = advance(name, trainer(name), 25)
    first = advance(name, trainer(name), 11)
    second = trainer(name, seed=7)  # another start, all of which the state must replace
    second.load_state_dict(first.state_dict())
    assert same(advance(name, second, 25), whole)
    assert second.figures() == whole.figures()


def test_a_checkpoint_of_another_architecture_is_refused():
    state = trainer("relu").state_dict()
    with pytest.raises(CheckpointError, match="belongs to another training"):
        trainer("batch_topk").load_state_dict(state)


@pytest.mark.parametrize("dead", [0, 7, 60])
def test_autograd_gives_topk_the_gradients_written_by_hand(dead):
    sae, x_BD = prepared(dtype=torch.float64)
    dead_N = torch.arange(sae.config.n_latents) < dead
    options = {"rows": ROWS, "variance": V, "auxiliary": AUXILIARY}
    by_hand = gradients(sae, x_BD, dead_N.nonzero().squeeze(1), **options, k_auxiliary=16)
    found = gradients_by_autograd(sae, Batch(x_BD, x_BD, dead_N, 16), **options, sparsity=0.0)
    for name, gradient in by_hand.by_name.items():
        assert float((found.by_name[name] - gradient).norm()) <= 1e-12 * float(gradient.norm()), name
    assert torch.equal(found.fired, by_hand.fired)
    torch.testing.assert_close(found.sums[:3], by_hand.sums, rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["relu", "multi_topk", "gated"])
def test_one_step_is_adamw_on_clipped_autograd_gradients(name):
    learner, twin = trainer(name, clip_norm=0.5, warmup_steps=0), trainer(name).sae
    optimizer = torch.optim.AdamW(twin.parameters(), lr=5e-3, betas=(0.9, 0.999), eps=6.25e-10, weight_decay=0.0)
    clipped = 0
    for step in range(4):
        normal_BD = twin.normalise(batch(step))[0]
        found = twin.loss(Batch(normal_BD, normal_BD, learner.dead, 8))
        parts = (found.error, found.other, (1 / 32) * found.auxiliary if found.auxiliary is not None else None)
        loss = sum(part for part in parts if part is not None)
        if found.sparsity is not None:
            loss = loss + 0.5 * min(1, (step + 1) / 3) * found.sparsity
        optimizer.zero_grad()
        (loss / BATCH).backward()
        if twin.unit_decoder:
            twin.W_dec.grad -= (twin.W_dec.grad * twin.W_dec).sum(1, keepdim=True) * twin.W_dec.detach()
        clipped += float(torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.5)) > 0.5
        for parameter in twin.parameters():
            parameter.grad /= VARIANCE  # AdamW sees the gradients of the loss in units of the variance
        optimizer.step()
        if twin.unit_decoder:
            with torch.no_grad():
                twin.W_dec /= twin.W_dec.norm(dim=1, keepdim=True)
        learner.step(batch(step))
    assert clipped == 4
    for key, parameter in twin.named_parameters():
        torch.testing.assert_close(getattr(learner.sae, key), parameter, atol=2e-5, rtol=1e-3)


def test_decoders_keep_their_norm_only_where_they_should():
    for name in CONFIGS:
        norms_N = advance(name, trainer(name), 20).sae.W_dec.norm(dim=1)
        kept = torch.allclose(norms_N, torch.ones(N), atol=1e-5)
        assert kept == (name not in ("relu", "transcoder")), name


def test_figures_add_up_to_the_loss_and_name_the_sparsity():
    relu = advance("relu", trainer("relu", sparsity_warmup_steps=0), 10)
    found = relu.figures()
    assert found["loss"] == pytest.approx(found["fvu"] + 0.5 * found["sparsity"] / VARIANCE)
    assert found["auxiliary"] == 0
    assert "sparsity" not in advance("batch_topk", trainer("batch_topk"), 2).figures()
    warming = trainer("relu", steps=400)
    assert (warming.sparsity, advance("relu", warming, 4).sparsity, advance("relu", warming, 30).sparsity) == (
        pytest.approx(0.5 / 20),
        pytest.approx(0.5 * 5 / 20),
        0.5,
    )


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("rows", [BATCH // 2, 1])
def test_micro_batches_make_the_same_step(name, rows):
    """In float64, where what the order of sums changes is far below what a wrong selection would."""
    states = []
    for micro_batch in (None, rows):
        learner = trainer(name, clip_norm=1e9, micro_batch=micro_batch)  # clipping, which takes the dense step
        learner.sae.double()
        learner = Trainer(learner.sae, learner.config, variance=VARIANCE, micro_batch=micro_batch)
        for step in range(4):
            learner.step(batch(step).double(), target(name, batch(step).double()))
        states.append(learner.state_dict())
    for which, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][which], rtol=1e-9, atol=1e-9)


def test_a_micro_batch_that_does_not_divide_the_share_is_refused():
    with pytest.raises(ValueError, match="share of 128 rows cannot be split into micro-batches of 48"):
        trainer("relu", micro_batch=48)


@pytest.mark.parametrize("name", ["multi_topk", "batch_topk", "relu", "gated"])
def test_the_average_of_the_weights_follows_them_and_resumes_with_them(name):
    plain, kept = trainer(name), trainer(name, average_decay=0.9)
    expected = {which: tensor.detach().double().clone() for which, tensor in kept.sae.named_parameters()}
    for step in range(30):
        advance(name, kept, step + 1)
        decay = min(0.9, (1 + step) / (10 + step))
        for which, tensor in kept.sae.named_parameters():
            expected[which].mul_(decay).add_(tensor.detach().double(), alpha=1 - decay)
    averaged = kept.averaged()
    if averaged.unit_decoder:
        expected["W_dec"] /= expected["W_dec"].norm(dim=1, keepdim=True)
    for which, tensor in averaged.named_parameters():
        torch.testing.assert_close(tensor.double(), expected[which], rtol=1e-5, atol=1e-6)
    advance(name, plain, 30)
    state = kept.state_dict()
    assert all(torch.equal(tensor, state[which]) for which, tensor in plain.state_dict().items())
    assert not torch.equal(averaged.W_enc, kept.sae.W_enc)
    assert torch.equal(plain.averaged().W_enc, plain.sae.W_enc)
    resumed = trainer(name, average_decay=0.9)
    resumed.load_state_dict(kept.state_dict())
    assert same(advance(name, resumed, 40), advance(name, kept, 40))


def run_rank(rank: int, world: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=60)
    )
    share, found = BATCH // world, {}
    for name, per_rank in [*((name, False) for name in CONFIGS), ("batch_topk", True)]:
        micro_batch = share // 2 if name in ("batch_topk", "matryoshka", "relu") and not per_rank else None
        settings = {"select_per_rank": per_rank, "average_decay": 0.9 if name == "relu" else None}
        learner = trainer(name, seed=rank, group=dist.group.WORLD, micro_batch=micro_batch, **settings)
        for step in range(5):
            mine_BD = batch(step)[rank * share : (rank + 1) * share]
            learner.step(mine_BD, target(name, mine_BD))
        found[f"{name} {per_rank}"] = learner.state_dict()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads have been seen to abort an interpreter that takes its time to end


def test_ranks_stay_bit_equal_and_near_the_single_process(tmp_path):
    multiprocessing.spawn(run_rank, args=(2, str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for which, state in ranks[0].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, ranks[1][which][name]), (which, name)
    for name in CONFIGS:
        alone, together = advance(name, trainer(name), 5).state_dict(), ranks[0][f"{name} False"]
        torch.testing.assert_close(together["sums"], alone["sums"], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(together["sae.W_enc"], alone["sae.W_enc"], rtol=1e-2, atol=2e-3)
    thresholds = [ranks[0][f"batch_topk {per_rank}"]["sae.threshold"] for per_rank in (False, True)]
    assert float(thresholds[0]) == pytest.approx(
        float(advance("batch_topk", trainer("batch_topk"), 5).state_dict()["sae.threshold"]), rel=1e-4
    )
    assert not torch.equal(*thresholds)  # each rank by itself selects otherwise
