"""preprocess: archived shards become one table of activations in a global shuffle, split by row, with statistics.

Every token gets a priority, a 64-bit hash of (seed, row, position); the table is all tokens sorted by it. So the order
is a shuffle of everything at once, and depends neither on the order of reading, nor on the number of shards, nor on
how much memory there was. Two passes keep memory bounded: tokens are dealt to partition files by their priority's
first bits, then each partition is sorted alone and written out.

    train-00000.safetensors, ..., validation-00000.safetensors, ...    `activations` bf16 (rows, d)
    index.json                 site, d, rows of each kind, files with their rows, mean norm, mean squared norm
    statistics.safetensors     `mean`, `variance` fp32 (d), of the training rows (Chan's merge)

One process does it all in this version; partitions are independent, so the second pass can be spread later.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tasks.artifacts import Artifact, Spec, Stage, Summary, Workspace
from tasks.errors import InputError

if TYPE_CHECKING:
    import numpy as np

PARTITION_BYTES = 128 << 20  # of one partition in memory while it is sorted; memory peaks at about three times this
MOST_PARTITIONS = 1024  # open files at once
ARCHIVED_SHARE = 0.6  # an archive is at least this share of its activations (their entropy is 0.68)
KINDS = ("train", "validation")


class PreprocessSpec(Spec):
    """Which site, how rows are split, and how large the files are."""

    site: str | None = Field(
        None, title="Site", json_schema_extra={"position": 0},
        description="The captured site to train on, such as resid_post.2; empty takes the first of capture.sites.",
    )  # fmt: skip
    validation_fraction: float = Field(
        0.05, gt=0, lt=1, title="Validation share", json_schema_extra={"position": 1},
        description="Share of the corpus rows kept out of training; a row's tokens stay together.",
    )  # fmt: skip
    rows_per_group: int = Field(
        65536, ge=1, title="Rows per file", json_schema_extra={"position": 2},
        description="Activations in each file; the last file of a kind holds the rest.",
    )  # fmt: skip
    seed: int = Field(
        0, ge=0, lt=2**32, title="Seed", json_schema_extra={"position": 3},
        description="Seed of the shuffle and of the split.",
    )  # fmt: skip


def preprocess(spec: PreprocessSpec, out: Workspace, *, archives: list[Artifact]) -> Summary:
    """Shuffles and splits; raises InputError when there is nothing to train or to validate on."""
    from tasks.archive import read_description

    capture = read_description(archives[0], "capture.json")
    site = spec.site or capture["sites"][0]
    tables = {kind: _Table(out.path, kind, spec.rows_per_group) for kind in KINDS}
    partitions = _Partitions(out.scratch, _partition_count(archives))
    d = _deal(spec, out, site, archives, partitions)
    for number, (priorities, validation, activations) in enumerate(partitions.read(d)):
        import numpy as np

        order = np.argsort(priorities, kind="stable")
        for kind, wanted in zip(KINDS, (~validation[order], validation[order]), strict=True):
            tables[kind].add(activations[order[wanted]])
        out.report(len(archives) + number + 1, len(archives) + partitions.count, "passes")
    for table in tables.values():
        table.close()
    counts = {kind: table.rows for kind, table in tables.items()}
    if not all(counts.values()):
        raise InputError(
            f"The split left {counts['train']} activations to train on and {counts['validation']} to validate on "
            f"(preprocess.validation_fraction {spec.validation_fraction}); take more text or another fraction."
        )
    return _describe(out.path, site, d, spec, tables, capture)


PREPROCESS = Stage("preprocess", version=1, spec=PreprocessSpec, run=preprocess)


def _deal(
    spec: PreprocessSpec, out: Workspace, site: str, archives: list[Artifact], partitions: "_Partitions"
) -> int:
    """First pass: every token into its partition. Returns the width d."""
    import numpy as np
    import torch

    from tasks.archive import read_shard
    from tasks.split import is_validation, shuffle_key

    d = 0
    for number, archive in enumerate(archives):
        shard = read_shard(archive, site)
        d = shard["activations"].shape[1]
        lengths = np.diff(shard["row_offsets"].numpy())
        row_ids = np.repeat(shard["row_ids"].numpy(), lengths)
        positions = np.arange(len(row_ids)) - np.repeat(shard["row_offsets"].numpy()[:-1], lengths)
        priorities = shuffle_key(row_ids, positions, spec.seed)
        validation = is_validation(row_ids, spec.validation_fraction, spec.seed)
        partitions.add(priorities, validation, shard["activations"].view(torch.uint16).numpy())
        out.report(number + 1, len(archives) + partitions.count, "passes")
    return d


def _partition_count(archives: list[Artifact]) -> int:
    """Enough partitions for one to fit in memory; the result does not depend on it."""
    expected = sum(archive.manifest.size for archive in archives) / ARCHIVED_SHARE
    count = 1
    while expected / count > PARTITION_BYTES and count < MOST_PARTITIONS:
        count *= 2
    return count


class _Partitions:
    """Files of (priority, validation?, activation) records, one per range of priorities."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        self._paths = [(folder / f"{i}.keys", folder / f"{i}.rows") for i in range(count)]

    def add(self, priorities: "np.ndarray", validation: "np.ndarray", activations: "np.ndarray") -> None:
        import numpy as np

        bits = self.count.bit_length() - 1
        owner = priorities >> np.uint64(64 - bits) if bits else np.zeros(len(priorities), np.uint64)
        order = np.argsort(owner, kind="stable")
        ends = np.searchsorted(owner[order], np.arange(self.count, dtype=np.uint64), side="right")
        begin = 0
        for (keys, rows), end in zip(self._paths, ends, strict=True):
            chosen = order[begin:end]
            begin = int(end)
            record = np.empty(len(chosen), [("priority", "<u8"), ("validation", "?")])
            record["priority"], record["validation"] = priorities[chosen], validation[chosen]
            with keys.open("ab") as file:
                file.write(record.tobytes())
            with rows.open("ab") as file:
                file.write(activations[chosen].tobytes())

    def read(self, d: int) -> Iterator[tuple["np.ndarray", "np.ndarray", "np.ndarray"]]:
        """(priorities, validation?, activations as uint16 (rows, d)) of each partition in the order of priorities."""
        import numpy as np

        for keys, rows in self._paths:
            record = np.fromfile(keys, [("priority", "<u8"), ("validation", "?")])
            activations = np.fromfile(rows, np.uint16).reshape(len(record), d)
            keys.unlink()
            rows.unlink()
            yield record["priority"], record["validation"], activations


class _Table:
    """Writes rows into files of a fixed number of rows; the last one holds the rest."""

    def __init__(self, folder: Path, kind: str, rows_per_group: int) -> None:
        from sae_core.statistics import Moments

        self.rows = 0
        self.groups: list[dict[str, Any]] = []
        self.moments: Moments | None = None
        self.norm_sum = self.squared_norm_sum = 0.0
        self._folder, self._kind, self._size = folder, kind, rows_per_group
        self._waiting: list[np.ndarray] = []
        self._waiting_rows = 0

    def add(self, activations: "np.ndarray") -> None:
        """Takes the next rows, uint16 views of bf16 (rows, d)."""
        while len(activations):
            taken = activations[: self._size - self._waiting_rows]
            activations = activations[len(taken) :]
            self._waiting.append(taken)
            self._waiting_rows += len(taken)
            if self._waiting_rows == self._size:
                self._write()

    def close(self) -> None:
        """Writes what is left."""
        if self._waiting_rows:
            self._write()

    def _write(self) -> None:
        import numpy as np
        import torch
        from safetensors.torch import save_file

        from sae_core.statistics import Moments

        x_BD = torch.from_numpy(np.concatenate(self._waiting)).view(torch.bfloat16)
        name = f"{self._kind}-{len(self.groups):05}.safetensors"
        save_file({"activations": x_BD}, self._folder / name)
        for block_BD in x_BD.split(8192):  # statistics in blocks that lie the same however the rows arrived
            found = Moments.of(block_BD)
            self.moments = found if self.moments is None else self.moments.merge(found)
            norms_B = block_BD.double().norm(dim=1)
            self.norm_sum += float(norms_B.sum())
            self.squared_norm_sum += float(norms_B.square().sum())
        self.groups.append({"name": name, "rows": len(x_BD)})
        self.rows += len(x_BD)
        self._waiting, self._waiting_rows = [], 0


def _describe(
    folder: Path, site: str, d: int, spec: PreprocessSpec, tables: dict[str, _Table], capture: dict[str, Any]
) -> Summary:
    from safetensors.torch import save_file

    train, validation = (tables[kind] for kind in KINDS)
    assert train.moments is not None
    mean_D, variance_D = train.moments.mean_D.float(), train.moments.variance().float()
    save_file({"mean": mean_D, "variance": variance_D}, folder / "statistics.safetensors")
    index = {
        "site": site,
        "d": d,
        "train_rows": train.rows,
        "validation_rows": validation.rows,
        "validation_fraction": spec.validation_fraction,
        "seed": spec.seed,
        "rows_per_group": spec.rows_per_group,
        "groups": [*train.groups, *validation.groups],
        "mean_norm": train.norm_sum / train.rows,
        "mean_squared_norm": train.squared_norm_sum / train.rows,
        "capture": capture,  # how the tokens were read: what evaluates the result must read text the same way
    }
    (folder / "index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    return {
        "site": site,
        "d": d,
        "train_rows": train.rows,
        "validation_rows": validation.rows,
        "mean_norm": index["mean_norm"],
    }
