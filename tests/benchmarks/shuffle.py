"""preprocess on archived shards, against one thread that reads them and writes their rows once, unshuffled.

A shuffle on disk writes and reads everything once more; threads make up for it where there are cores.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tasks import threads
from tasks.archive import ARCHIVE, ArchiveSpec, read_shard
from tasks.artifacts import Artifact, Spec, Stage, Store, Summary, Workspace
from tasks.preprocess import PREPROCESS, PreprocessSpec

SITE, D, ROWS, LENGTH, SHARDS = "resid_post.0", 2048, 500, 64, 4  # 524 MB of activations
REPEATS = 3


class RowsSpec(Spec):
    """Rows of a corpus that is not there."""

    first: int = 0


def made_up(spec: RowsSpec, out: Workspace) -> Summary:
    """A captured shard of normal activations."""
    tokens = ROWS * LENGTH
    tensors = {
        "activations": torch.randn(tokens, D, generator=torch.Generator().manual_seed(spec.first)).bfloat16(),
        "token_ids": torch.zeros(tokens, dtype=torch.int32),
        "row_offsets": torch.arange(0, tokens + 1, LENGTH),
        "row_ids": torch.arange(ROWS) + spec.first,
    }
    save_file(tensors, out.path / f"{SITE}.safetensors")
    (out.path / "capture.json").write_text(f'{{"sites":["{SITE}"]}}')
    return {"tokens": tokens}


CAPTURED = Stage("capture", 1, RowsSpec, made_up)


def measure(wanted: str = "") -> Iterator[dict[str, Any]]:
    """A row with as many threads as there are cores, then one with one, whose name contains `wanted`."""
    names = {"preprocess": threads.MOST, "preprocess_one_thread": 1}
    if not any(wanted in name for name in names):
        return
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/store")
        shards = [CAPTURED.build(store, RowsSpec(first=i * ROWS)).artifact for i in range(SHARDS)]
        archives = [ARCHIVE.build(store, ArchiveSpec(codec="speed"), captured=shard).artifact for shard in shards]
        for name, most in names.items():
            if wanted in name:
                yield _row(name, most, archives, Path(folder))


def _row(name: str, most: int, archives: list[Artifact], folder: Path) -> dict[str, Any]:
    usual, threads.MOST = threads.MOST, most
    took: dict[str, list[float]] = {"ours": [], "floor": []}
    try:
        for number in range(REPEATS):
            store = Store(f"{folder}/{name}-{number}")
            for which, work in (
                ("floor", lambda: _plain(archives, folder)),
                ("ours", lambda: PREPROCESS.build(store, PreprocessSpec(site=SITE), archives=archives)),  # noqa: B023
            ):
                began = time.perf_counter()
                work()
                took[which].append(time.perf_counter() - began)
    finally:
        threads.MOST = usual
    value, reference = (1000 * min(took[which]) for which in ("ours", "floor"))
    return {"name": name, "value": value, "unit": "ms", "reference": reference, "ratio": value / reference}


def _plain(archives: list[Artifact], folder: Path) -> None:
    for number, archive in enumerate(archives):
        save_file({"activations": read_shard(archive, SITE)["activations"]}, folder / f"plain-{number}.safetensors")
