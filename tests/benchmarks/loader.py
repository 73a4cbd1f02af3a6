"""Feeding the training step: reading a batch against one copy of the same bytes, and a step that is fed against one
that has its batch already. The files are in the page cache.
"""

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from sae_core import Feed, Rows
from tests.benchmarks import train_step

SHAPES = {"loader_bf16_d512": (2048, 512), "loader_bf16_d64": (1024, 64)}  # name: rows of a batch, d
FED = "d64_n1024_k16"  # the shortest step, where a wait shows most
BYTES = 1 << 28  # of activations: more than the caches hold
AHEAD = (0, 2)


def measure(wanted: str = "") -> Iterator[dict[str, Any]]:
    """A row for each shape, then for the fed step, whose name contains `wanted`."""
    torch.set_num_threads(train_step.THREADS)
    for name, (size, d) in SHAPES.items():
        if wanted in name:
            with tempfile.TemporaryDirectory() as folder:
                yield _read(name, _rows(Path(folder), d), size)
    for ahead in AHEAD:
        name = f"loader_ahead{ahead}_step_{FED}"
        if wanted in name:
            with tempfile.TemporaryDirectory() as folder:
                yield _fed(name, Path(folder), ahead)


def _rows(folder: Path, d: int) -> Rows:
    for i in range(4):
        table = torch.randn(BYTES // (8 * d), d, generator=torch.Generator().manual_seed(i)).bfloat16()
        save_file({"activations": table}, folder / f"train-{i:05}.safetensors")
    return Rows(sorted(folder.glob("*.safetensors")))


def _read(name: str, rows: Rows, size: int) -> dict[str, Any]:
    out_BD = torch.empty(size, rows.d, dtype=torch.bfloat16)
    table, into = np.ones((len(rows), rows.d), np.int16), np.empty((size, rows.d), np.int16)
    steps, starts = itertools.count(), itertools.cycle(range(0, len(rows) - size, size))

    def copy() -> None:
        start = next(starts)
        np.copyto(into, table[start : start + size])

    return train_step.row(name, lambda: rows.batch(next(steps), size, out=out_BD), copy)


def _fed(name: str, folder: Path, ahead: int) -> dict[str, Any]:
    size, d, n, k = train_step.SHAPES[f"train_step_cpu_{FED}"]
    step = train_step.stepper(size, d, n, k)
    x_BD = train_step.batch(size, d)
    with Feed(_rows(folder, d), range(1 << 40), batch_size=size, ahead=ahead) as feed:
        batches = iter(feed)
        return train_step.row(name, lambda: step(next(batches)), lambda: step(x_BD))
