"""The GPU's step against the float64 reference, in Triton's interpreter on the CPU.

    TRITON_INTERPRET=0 python -m pytest tests/sae_core/kernels/test_gpu*.py       the same on a GPU

Shapes are small, because a program takes the interpreter up to 50 ms.
"""

import datetime
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

from sae_core import ActivationError, Trainer, TrainerConfig
from sae_core.architectures import BatchTopKSAE
from sae_core.kernels import StepOptions
from sae_core.kernels.reference import DenseStep
from tests.benchmarks import gpu as bench
from tests.sae_core.kernels import made_steps
from tests.sae_core.kernels.made_steps import V, found_by, made, relative_error, some_latents

pytest.importorskip("triton", reason="triton is not installed (it is there for Linux only)")
from sae_core.kernels import gpu, gpu_batch_top_k, gpu_update  # after conftest.py has chosen the interpreter

INTERPRETED = os.environ["TRITON_INTERPRET"] == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
KINDS = (gpu.TritonStep, DenseStep)
EACH = pytest.mark.parametrize(
    "architecture",
    [
        "topk", "topk without pre-bias", "batch_topk", "matryoshka", "matryoshka by row", "transcoder",
        "transcoder with skip",
    ],
)
SHAPES = [(9, 21, 5, 7), (20, 18, 3, 5), (3, 8, 8, 5), (1, 5, 2, 1)]  # d, n, k, rows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several tiles of latents and of rows, programs of latents, and stretches of pairs in small shapes too."""
    monkeypatch.setattr(gpu, "TILE_LATENTS", 16)
    monkeypatch.setattr(gpu, "TILE_ELEMENTS", 64)
    monkeypatch.setattr(gpu_update, "PROGRAMS", 8)
    monkeypatch.setattr(gpu_update, "LONG", 2)
    monkeypatch.setattr(gpu_batch_top_k, "FIRST_ROWS", 2)
    monkeypatch.setattr(gpu_batch_top_k, "PIECE", 8)


def prepared(kind: type, d: int, n: int, k: int, rows: int, architecture: str = "topk", **changes):
    return made_steps.prepared(kind, d, n, k, rows, architecture, DEVICE, **changes)


def batch(rows: int, d: int, number: int) -> torch.Tensor:
    return made_steps.batch(rows, d, number, DEVICE)


@EACH
@pytest.mark.parametrize("dead", [0, 1, 5, "all"])
@pytest.mark.parametrize(("d", "n", "k", "rows"), SHAPES)
def test_gradients_equal_the_float64_reference(d, n, k, rows, dead, architecture):
    """With beta1 = 0 the mean gradient after an update is the gradient."""
    (step, _, moments), (dense, _, expected) = (
        prepared(kind, d, n, k, rows, architecture, beta1=0.0) for kind in KINDS
    )
    x_BD, numbers = batch(rows, d, 0), some_latents(n, dead)
    found, wanted = found_by(step, x_BD, numbers), found_by(dense, x_BD.double(), numbers)
    torch.testing.assert_close(found.sums, wanted.sums, rtol=1e-6, atol=0)
    assert found.fired_N.tolist() == wanted.fired_N.tolist()
    step.update(1e-3, 1)
    dense.update(1e-3, 1)
    for name in moments:
        assert relative_error(moments[name].exp_avg, expected[name].exp_avg) <= 1e-6, name


@EACH
@pytest.mark.parametrize(("d", "n", "k", "rows"), SHAPES[1:3])
def test_several_steps_end_where_the_float64_reference_ends(d, n, k, rows, architecture):
    (step, sae, moments), (dense, twin, expected) = (prepared(kind, d, n, k, rows, architecture) for kind in KINDS)
    for number in range(1, 5):
        x_BD, dead = batch(rows, d, number), list(range(0, n, 3))
        found, wanted = found_by(step, x_BD, dead), found_by(dense, x_BD.double(), dead)
        torch.testing.assert_close(found.sums, wanted.sums, rtol=1e-5, atol=0)
        step.update(1e-2 / number, number)
        dense.update(1e-2 / number, number)
    for name in moments:
        assert relative_error(getattr(sae, name).detach(), getattr(twin, name).detach()) <= 1e-6, name
        assert relative_error(moments[name].exp_avg_sq, expected[name].exp_avg_sq) <= 1e-5, name
    if sae.unit_decoder:
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(n, device=DEVICE))
    if isinstance(sae, BatchTopKSAE):
        torch.testing.assert_close(sae.threshold.double(), twin.threshold, rtol=1e-5, atol=1e-7)


@EACH
def test_in_bf16_products_are_rounded_and_copies_follow_the_weights(monkeypatch, architecture):
    if INTERPRETED:  # the CPU's matmul has no sums wider than its factors
        monkeypatch.setattr(gpu, "product", lambda x, W, out, _: torch.mm(x.float(), W.float().t(), out=out))
    copied = {"rtol": 2**-7, "atol": 0, "check_dtype": False}  # the interpreter cuts off where a GPU rounds
    changes = {"architecture": architecture, "auxiliary": 0.0, "beta1": 0.0}
    step, sae, moments = prepared(gpu.TritonStep, 9, 21, 5, 7, precision="bf16", **changes)
    dense, twin, expected = prepared(DenseStep, 9, 21, 5, 7, **changes)
    with torch.no_grad():
        for parameter, double in zip(sae.parameters(), twin.parameters(), strict=True):
            parameter.copy_(parameter.bfloat16())  # so that rounding changes no selection
            double.copy_(parameter)
        sae.b_pre.zero_()
        twin.b_pre.zero_()
    x_BD = batch(7, 9, 0).bfloat16().float()
    for number in (1, 2):
        found, exact = found_by(step, x_BD, []), found_by(dense, x_BD.double(), [])
        assert relative_error(found.sums, exact.sums) <= 1e-2
        step.update(1e-3, number)
        dense.update(1e-3, number)
        for name in moments if number == 1 else ():
            error = relative_error(moments[name].exp_avg, expected[name].exp_avg)
            assert error <= 1e-2, name
            assert error > 1e-7 or (name in ("b_pre", "W_skip") and not sae.config.subtracts_pre_bias), name
        torch.testing.assert_close(step._halves.W_enc, sae.W_enc.detach(), **copied)
        torch.testing.assert_close(step._halves.W_dec, sae.W_dec.detach(), **copied)
    for tensor in sae.state_dict().values():  # as the trainer takes over a checkpoint
        tensor.add_(1)
    found_by(step, x_BD, [])
    torch.testing.assert_close(step._halves.W_dec, sae.W_dec.detach(), **copied)


def test_a_latent_that_has_died_takes_part_two_steps_later_and_one_that_lives_again_does_not():
    step, _, _ = prepared(gpu.TritonStep, 3, 8, 2, 4)
    auxiliary = []
    for number, dead in enumerate(([], [1, 2], [1, 2], [1, 2], [], [1, 2]), start=1):
        auxiliary.append(float(found_by(step, batch(4, 3, 0), dead).sums[1]) > 0)
        step.update(0.0, number)
    assert auxiliary == [False, False, False, True, False, True]


def test_batch_selection_goes_on_after_rows_that_are_not_finite():
    step, _, _ = prepared(gpu.TritonStep, 3, 64, 2, 4, "batch_topk")
    clean = found_by(step, batch(4, 3, 0), [])
    places = step._selection.values_BK.shape[1]
    assert not found_by(step, batch(4, 3, 0) * torch.inf, []).sums.isfinite().all()
    assert torch.equal(found_by(step, batch(4, 3, 0), []).sums, clean.sums)
    assert step._selection.values_BK.shape[1] == places, "they take no memory"


@EACH
@pytest.mark.filterwarnings("ignore:invalid value encountered")  # numpy's, of infinity times zero
@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_shows_in_the_figures(value, architecture):
    x_BD = batch(4, 3, 0)
    x_BD[2, 1] = value
    assert not found_by(prepared(gpu.TritonStep, 3, 8, 2, 4, architecture)[0], x_BD, []).sums.isfinite().all()
    step, sae, _ = prepared(gpu.TritonStep, 3, 8, 2, 4, architecture)
    with torch.no_grad():
        sae.W_enc[5] = value
    assert not found_by(step, batch(4, 3, 0), []).sums[0].isfinite() or value == -torch.inf


def steps_of_a_rank(rank: int, world: int, store: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=datetime.timedelta(seconds=60)
    )
    for kind in KINDS_OF_RANKS:
        state = some_steps(dist.group.WORLD, slice(rank * 4 // world, (rank + 1) * 4 // world), *kind)
        torch.save(state, f"{folder}/{'-'.join(map(str, kind))}-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads have been seen to abort an interpreter that takes its time to end


KINDS_OF_RANKS = [("topk", False), ("batch_topk", False), ("batch_topk", True), ("matryoshka", False)]


def some_steps(
    group: "dist.ProcessGroup | None", own: slice, architecture: str, select_per_rank: bool
) -> list[torch.Tensor]:
    """Weights, moments and figures after two steps on this share of the rows."""
    _, sae, moments = prepared(gpu.TritonStep, 3, 8, 2, 4, architecture)
    options = StepOptions(4, V, 0.25, 2, 0.9, 0.99, 1e-8, 0.0, select_per_rank=select_per_rank)
    step = gpu.TritonStep(sae, moments, options, group)
    for number in (1, 2):
        found = found_by(step, batch(4, 3, number)[own], [1, 3, 4])
        step.update(1e-2, number)
    return [found.sums, found.fired_N, *sae.state_dict().values(), *(t for pair in moments.values() for t in pair)]


@pytest.mark.skipif(not INTERPRETED, reason="gloo's ranks are on the CPU")
def test_ranks_stay_bit_equal_and_near_the_single_process(tmp_path):
    multiprocessing.spawn(steps_of_a_rank, args=(2, str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    for kind in KINDS_OF_RANKS:
        name = "-".join(map(str, kind))
        first, second = (torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2))
        assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
        for shared, alone in zip(first, some_steps(None, slice(4), *kind), strict=True):
            if kind != ("batch_topk", True):  # where ranks choose by themselves, they choose otherwise
                torch.testing.assert_close(shared, alone, rtol=1e-5, atol=1e-7)


def test_who_gets_this_step():
    assert gpu.sparse_wins(65536, 64, 8192, world=1) and gpu.sparse_wins(65536, 64, 8192, world=8)
    assert not gpu.sparse_wins(65536, 64, 65536, world=8)  # each rank would sum up the pairs of all
    assert not gpu.sparse_wins(2**17, 2**13, 16, world=1)


def test_the_benchmark_says_that_it_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        bench.main()
    assert ended.value.code == 2 and "There is no GPU" in capsys.readouterr().err


def test_an_update_without_gradients_is_refused():
    step = prepared(gpu.TritonStep, 3, 8, 2, 4)[0]
    with pytest.raises(RuntimeError, match="call gradients"):
        step.update(1e-3, 1)


COMPILED = """
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from sae_core import SAEConfig, make_sae
from sae_core.kernels import Moments, StepOptions, gpu

class H100:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device: 0)

def compile_only(function, grid):
    def call(*args, **kwargs):
        kernel = function.warmup(*args, grid=grid, **kwargs)
        print(kernel.metadata.name, len(kernel.asm["cubin"]))
    return call

driver.set_active(H100())
JITFunction.__getitem__ = compile_only
gpu.product = lambda *_: None
x_BD = torch.zeros(64, 100)
for architecture in ("topk", "batch_topk", "matryoshka"):
    sae = make_sae(SAEConfig(d_in=100, n_latents=300, k=4, architecture=architecture))
    moments = {name: Moments(*torch.zeros(2, *p.shape)) for name, p in sae.named_parameters()}
    for precision in ("fp32", "bf16"):
        step = gpu.TritonStep(sae, moments, StepOptions(64, 1.0, 0.0, 1, 0.9, 0.999, 1e-8, 0.0, precision=precision))
        if architecture != "topk":
            step._selection.holds = lambda: True  # nothing has run
        step.gradients(x_BD, x_BD, torch.zeros(300, dtype=torch.bool), 0.0)
        step.update(1e-3, 1)
"""


def test_every_kernel_compiles_for_a_gpu_without_one():
    run = subprocess.run(
        [sys.executable, "-c", COMPILED],
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    sizes = [line.split() for line in run.stdout.splitlines()]
    rest = ["_errors", "_stretches", "_update"]
    assert [name for name, _ in sizes] == 2 * ["_take", *rest] + 4 * ["_reaching", "_keep", *rest]
    assert min(int(size) for _, size in sizes) > 0


@pytest.mark.skipif(not INTERPRETED or not torch.cuda.is_available(), reason="no GPU, or already on it")
def test_all_of_this_on_a_gpu():
    files = (str(path) for path in sorted(Path(__file__).parent.glob("test_gpu*.py")))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    run = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "0"}, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


@EACH
@pytest.mark.skipif(INTERPRETED, reason="needs a GPU")
@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_a_training_on_a_gpu_learns_without_making_the_host_wait(precision, architecture):
    sae = made(64, 1024, 8, architecture).to(DEVICE)
    config = TrainerConfig(batch_size=256, steps=60, dead_after_rows=2048, precision=precision)
    trainer = Trainer(sae, config, variance=64.0)
    assert type(trainer._step) is gpu.TritonStep
    fvu, batches = [], [batch(256, 64, number) for number in range(3)]
    for number in range(60):
        trainer.step(batches[number % 3])
        if number == 5:
            torch.cuda.set_sync_debug_mode("error")
        if number in (4, 59):
            torch.cuda.set_sync_debug_mode("default")
            fvu.append(trainer.figures()["fvu"])
    assert fvu[1] < 0.5 * fvu[0]
    trainer.step(batches[0] * torch.nan)
    with pytest.raises(ActivationError, match="not finite"):
        trainer.figures()
