"""What two ranks on this machine tell each other in a step: rows and codes, beside dense gradients of the same step."""

import datetime
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch import multiprocessing

from sae_core.kernels import ranks
from tests.benchmarks.train_step import SHAPES

WORLD = 2
REPEATS = 15


def measure(wanted: str = "") -> Iterator[dict[str, Any]]:
    """A row for each shape of the training step."""
    for name, shape in SHAPES.items():
        name = name.replace("train_step_cpu", "exchange_cpu")
        if wanted in name and "batch_topk" not in name:
            with tempfile.TemporaryDirectory() as folder:
                multiprocessing.spawn(_measure, args=(shape, folder), nprocs=WORLD)
                value, reference = torch.load(Path(folder) / "times", weights_only=True)
            yield {"name": name, "value": value, "unit": "ms", "reference": reference, "ratio": value / reference}


def _measure(rank: int, shape: tuple[int, int, int, int], folder: str) -> None:
    """One rank: both, taken alternately."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD, timeout=datetime.timedelta(minutes=5)
    )
    group, (rows, d, n, k) = dist.group.WORLD, shape
    own = ranks.share(rows, group)
    codes = [torch.zeros(rows, width) for width in (d, k, k)] + [torch.zeros(rows)]
    dense = torch.zeros(2, n, d)

    def exchange() -> None:
        for tensor in codes:
            ranks.gather(tensor, own, group)

    calls: tuple[Callable[[], Any], ...] = (exchange, lambda: dist.all_reduce(dense, group=group))
    times: list[list[float]] = [[], []]
    for _ in range(REPEATS):
        for taken, call in zip(times, calls, strict=True):
            dist.barrier(group=group)
            begin = time.perf_counter()
            call()
            taken.append(1e3 * (time.perf_counter() - begin))
    if rank == 0:
        torch.save([statistics.median(taken) for taken in times], Path(folder) / "times")
    dist.barrier(group=group)
    dist.destroy_process_group()
