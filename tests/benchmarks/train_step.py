"""One training step on the CPU against one encoder matmul of the same shape, measured in turn around it."""

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from sae_core import SAEConfig, Trainer, TrainerConfig, make_sae
from sae_core.config import Architecture

THREADS = 2
SHAPES = {  # name: rows, d, n, k
    "train_step_cpu_d512_n8192_k32": (2048, 512, 8192, 32),
    "train_step_cpu_d2048_n32768_k64": (1024, 2048, 32768, 64),
    "train_step_cpu_d64_n1024_k16": (1024, 64, 1024, 16),
    "train_step_cpu_batch_topk_d512_n8192_k32": (2048, 512, 8192, 32),
    "train_step_cpu_matryoshka_d512_n8192_k32": (2048, 512, 8192, 32),
    "train_step_cpu_transcoder_d512_n8192_k32": (2048, 512, 8192, 32),
}
SECONDS = 20.0  # for each shape
FEWEST = 5


def measure(wanted: str = "") -> Iterator[dict[str, Any]]:
    """A row for each shape whose name contains `wanted`."""
    torch.set_num_threads(THREADS)
    for name, (rows, d, n, k) in SHAPES.items():
        if wanted in name:
            yield step_row(name, stepper(rows, d, n, k, architecture_of(name)), rows, d, n)


def step_row(name: str, step: Callable[[torch.Tensor], Any], rows: int, d: int, n: int) -> dict[str, Any]:
    """What `make bench` prints of a training step.

    Each step gets other rows, made before its time begins: one that sees the same rows again learns them by heart.
    """
    x_BD, generator = batch(rows, d), torch.Generator().manual_seed(1)
    return row(name, lambda: step(x_BD), floor(x_BD, n), lambda: x_BD.normal_(generator=generator))


def architecture_of(name: str) -> Architecture:
    """What a row's name says, or topk."""
    named: tuple[Architecture, ...] = ("batch_topk", "matryoshka", "transcoder")
    return next((architecture for architecture in named if architecture in name), "topk")


def batch(rows: int, d: int) -> torch.Tensor:
    """Rows without anything in them that could be learnt."""
    return torch.randn(rows, d, generator=torch.Generator().manual_seed(0))


def floor(x_BD: torch.Tensor, n: int) -> Callable[[], Any]:
    """One encoder matmul of these rows into memory that is there."""
    weight_DN, pre_BN = torch.randn(n, x_BD.shape[1]).t(), torch.empty(len(x_BD), n)
    return lambda: torch.mm(x_BD, weight_DN, out=pre_BN)


def row(
    name: str, work: Callable[[], Any], below: Callable[[], Any], before: Callable[[], Any] = lambda: None
) -> dict[str, Any]:
    """What `make bench` prints of work and its floor; `before` is called ahead of both and not measured."""
    value, reference = in_turn(work, below, before)
    return {"name": name, "value": value, "unit": "ms", "reference": reference, "ratio": value / reference}


def in_turn(work: Callable[[], Any], floor: Callable[[], Any], before: Callable[[], Any]) -> tuple[float, float]:
    """Median milliseconds of both, taken alternately so that a busy machine slows both alike."""
    for _ in range(2):
        work()
        floor()
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end or len(times[0]) < FEWEST:
        before()
        for taken, call in zip(times, (work, floor), strict=True):
            begin = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times[0]), statistics.median(times[1])


def stepper(
    rows: int, d: int, n: int, k: int, architecture: Architecture = "topk"
) -> Callable[[torch.Tensor], None]:
    """A whole step of a training of this shape."""
    sae = make_sae(SAEConfig(d_in=d, n_latents=n, k=k, architecture=architecture))
    config = TrainerConfig(batch_size=rows, steps=1_000_000, lr=1e-4, dead_after_rows=10_000_000)
    trainer = Trainer(sae, config, variance=float(d))
    if architecture != "transcoder":
        return trainer.step
    target_BD = batch(rows, d).roll(1, 1)
    return lambda x_BD: trainer.step(x_BD, target_BD)
