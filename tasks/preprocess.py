"""preprocess: archived shards become one table of activations in a global shuffle, split by row, with statistics.

Every token gets a priority, a 64-bit hash of (seed, row, position); the table is all tokens sorted by it. So the order
is a shuffle of everything at once, and depends neither on the order of reading, nor on the number of shards, nor on
how much memory there was. Two passes keep memory bounded: tokens are dealt to partition files by their priority's
first bits, then each partition is sorted alone and written out.

    train-00000.safetensors, ..., validation-00000.safetensors, ...    `activations` bf16 (rows, d)
    index.json                 site, d, rows of each kind, files with their rows, mean norm, mean squared norm
    statistics.safetensors     `mean`, `variance` fp32 (d), of the training rows (Chan's merge)

For a transcoder a row is the token's activation at the site and then that at the target, (rows, 2 d); the index tells
of the latter under `target` (site, d, mean norms), and the statistics have `target_mean` and `target_variance` too.

Threads of one process do it, as many as there are cores and memory for: shards are unpacked and partitions sorted
beside each other, but dealt and taken in their order, so that bits depend on no timing.
"""

import collections
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from tasks.artifacts import Artifact, Spec, Stage, Summary, Workspace
from tasks.errors import InputError
from tasks.threads import Threads, at_once

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np

    from sae_core.statistics import Moments
    from tasks.archive import OpenShard

PARTITION_BYTES = 128 << 20  # of one partition, in memory while it is sorted
MOST_PARTITIONS = 1024  # files that each chunk is dealt to
ARCHIVED_SHARE = 0.6  # an archive is at least this share of its activations (their entropy is 0.68)
COPIES = 3  # of a chunk or partition, in memory while it is worked on
KINDS = ("train", "validation")
RECORD = [("priority", "<u8"), ("validation", "?")]


class PreprocessSpec(Spec):
    """Which site, how rows are split, and how large the files are."""

    site: str | None = Field(
        None, title="Site", json_schema_extra={"position": 0},
        description="The captured site to train on, such as resid_post.2; empty takes the first of capture.sites.",
    )  # fmt: skip
    target: str | None = Field(
        None, title="Target", json_schema_extra={"position": 4},
        description="The captured site that a transcoder reconstructs from it, such as mlp_out.2; empty: with a "
        "transcoder the second of capture.sites, else none.",
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
    from tasks.archive import CHUNK_BYTES, read_description

    capture = read_description(archives[0], "capture.json")
    site = spec.site or capture["sites"][0]
    sites = [site] if spec.target is None else [site, spec.target]
    expected = sum(archive.manifest.size for archive in archives) / ARCHIVED_SHARE
    partitions = _Partitions(out.scratch, _partition_count(expected))
    passes = len(archives) + partitions.count
    width = done = 0
    with contextlib.ExitStack() as opened, at_once(2 * CHUNK_BYTES * COPIES) as unpacking:
        for dealt in unpacking.in_order(lambda chunk: chunk.deal(partitions), _chunks(spec, sites, archives, opened)):
            width = len(sites) * dealt.shard.d
            partitions.add(dealt)
            if dealt.last:
                dealt.shard.close()
                done += 1
                out.report(done, passes, "passes")
    with at_once(expected / partitions.count * COPIES) as sorting:
        tables = {kind: _Table(out.path, kind, spec.rows_per_group, len(sites), sorting) for kind in KINDS}
        for found in sorting.in_order(lambda i: partitions.take(i, width), range(partitions.count)):
            for table, activations in zip(tables.values(), found, strict=True):
                table.add(activations)
            done += 1
            out.report(done, passes, "passes")
        for table in tables.values():
            table.close()
    counts = {kind: table.rows for kind, table in tables.items()}
    if not all(counts.values()):
        raise InputError(
            f"The split left {counts['train']} activations to train on and {counts['validation']} to validate on "
            f"(preprocess.validation_fraction {spec.validation_fraction}); take more text or another fraction."
        )
    return _describe(out.path, sites, width // len(sites), spec, tables, capture)


PREPROCESS = Stage("preprocess", version=1, spec=PreprocessSpec, run=preprocess)


class _Dealt(NamedTuple):
    """A chunk's tokens by partition: bytes of (priority, validation?) and of activations, to be appended."""

    shard: "OpenShard"
    keys: list[bytes]
    rows: list[bytes]
    last: bool  # of its shard


class _Chunk(NamedTuple):
    """A part of a shard that is read and dealt at once; `records` are those of the whole shard."""

    shard: "OpenShard"
    records: "np.ndarray"
    number: int

    def deal(self, partitions: "_Partitions") -> _Dealt:
        """First pass: what goes into which partition."""
        begin, activations = self.shard.read(self.number)
        records = self.records[begin : begin + len(activations)]
        parts = partitions.parts(records["priority"])
        keys, rows = ([array[chosen].tobytes() for chosen in parts] for array in (records, activations))
        return _Dealt(self.shard, keys, rows, last=self.number == self.shard.chunks - 1)


def _chunks(
    spec: PreprocessSpec, sites: list[str], archives: list[Artifact], opened: contextlib.ExitStack
) -> Iterator[_Chunk]:
    """All chunks of all shards, in order; each shard is open until whoever takes them closes it."""
    import numpy as np

    from tasks.archive import OpenShard
    from tasks.split import is_validation, shuffle_key

    for archive in archives:
        shard = opened.enter_context(OpenShard(archive, *sites))
        if not shard.chunks:
            shard.close()
            continue
        lengths = np.diff(shard.rows["row_offsets"])
        row_ids = np.repeat(shard.rows["row_ids"], lengths)
        positions = np.arange(len(row_ids)) - np.repeat(shard.rows["row_offsets"][:-1], lengths)
        records = np.empty(len(row_ids), RECORD)
        records["priority"] = shuffle_key(row_ids, positions, spec.seed)
        records["validation"] = is_validation(row_ids, spec.validation_fraction, spec.seed)
        yield from (_Chunk(shard, records, number) for number in range(shard.chunks))


def _partition_count(expected_bytes: float) -> int:
    """Enough partitions for one to fit in memory; the result does not depend on it."""
    count = 1
    while expected_bytes / count > PARTITION_BYTES and count < MOST_PARTITIONS:
        count *= 2
    return count


class _Partitions:
    """Files of (priority, validation?, activation) records, one per range of priorities."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count = count
        self._paths = [(folder / f"{i}.keys", folder / f"{i}.rows") for i in range(count)]

    def parts(self, priorities: "np.ndarray") -> "list[np.ndarray]":
        """The places of each partition's tokens, in their order."""
        import numpy as np

        bits = self.count.bit_length() - 1
        owner = priorities >> np.uint64(64 - bits) if bits else np.zeros(len(priorities), np.uint64)
        order = np.argsort(owner, kind="stable")
        ends = np.searchsorted(owner[order], np.arange(self.count, dtype=np.uint64), side="right")
        return np.split(order, ends[:-1])

    def add(self, dealt: _Dealt) -> None:
        """Appends a chunk; chunks come in their order, which decides between tokens of equal priority."""
        for (keys, rows), record, activations in zip(self._paths, dealt.keys, dealt.rows, strict=True):
            with keys.open("ab") as file:
                file.write(record)
            with rows.open("ab") as file:
                file.write(activations)

    def take(self, number: int, width: int) -> "tuple[np.ndarray, np.ndarray]":
        """One partition's rows in the order of priorities, as uint16 (rows, width): of training, of validation."""
        import numpy as np

        keys, rows = self._paths[number]
        if not keys.exists():
            return np.empty((0, width), np.uint16), np.empty((0, width), np.uint16)
        record = np.fromfile(keys, RECORD)
        activations = np.fromfile(rows, np.uint16).reshape(len(record), width)
        keys.unlink()
        rows.unlink()
        order = np.argsort(record["priority"], kind="stable")
        validation = record["validation"][order]
        return activations[order[~validation]], activations[order[validation]]


class _Table:
    """Writes rows into files of a fixed number of rows; the last one holds the rest. Threads write and measure."""

    def __init__(self, folder: Path, kind: str, rows_per_group: int, sites: int, threads: Threads) -> None:
        self.rows = 0
        self.groups: list[dict[str, Any]] = []
        self.moments: Moments | None = None
        self.norms = [(0.0, 0.0)] * sites
        self._sites = sites
        self._folder, self._kind, self._size = folder, kind, rows_per_group
        self._threads = threads
        self._waiting: list[np.ndarray] = []
        self._waiting_rows = 0
        self._written: collections.deque[Future[list[_Block]]] = collections.deque()

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
        """Writes what is left, and waits for all that is being written."""
        if self._waiting_rows:
            self._write()
        while self._written:
            self._merge()

    def _write(self) -> None:
        name = f"{self._kind}-{len(self.groups):05}.safetensors"
        self.groups.append({"name": name, "rows": self._waiting_rows})
        self.rows += self._waiting_rows
        self._written.append(self._threads.submit(_write_group, self._folder / name, self._waiting, self._sites))
        self._waiting, self._waiting_rows = [], 0
        while len(self._written) > self._threads.count:
            self._merge()

    def _merge(self) -> None:
        """Takes the figures of the oldest file; in their order, whichever was ready first."""
        for block in self._written.popleft().result():
            self.moments = block.moments if self.moments is None else self.moments.merge(block.moments)
            self.norms = [(a + c, b + d) for (a, b), (c, d) in zip(self.norms, block.norms, strict=True)]


class _Block(NamedTuple):
    """Figures of some consecutive rows."""

    moments: "Moments"
    norms: list[tuple[float, float]]  # of each site: summed norms, summed squared norms


def _write_group(path: Path, parts: "list[np.ndarray]", sites: int) -> list[_Block]:
    """Writes one file of rows; its figures in blocks that lie the same however the rows arrived."""
    import numpy as np
    import torch
    from safetensors.torch import save_file

    from sae_core.statistics import Moments

    x_BD = torch.from_numpy(np.concatenate(parts)).view(torch.bfloat16)
    save_file({"activations": x_BD}, path)
    found = []
    for block_BD in x_BD.split(8192):
        block_BD = block_BD.double()
        norms_SB = [part_BD.norm(dim=1) for part_BD in block_BD.chunk(sites, dim=1)]
        norms = [(float(norms_B.sum()), float(norms_B.square().sum())) for norms_B in norms_SB]
        found.append(_Block(Moments.of(block_BD), norms))
    return found


def _describe(
    folder: Path, sites: list[str], d: int, spec: PreprocessSpec, tables: dict[str, _Table], capture: dict[str, Any]
) -> Summary:
    from safetensors.torch import save_file

    train, validation = (tables[kind] for kind in KINDS)
    assert train.moments is not None
    moments = {"mean": train.moments.mean_D.float(), "variance": train.moments.variance().float()}
    statistics, about = {}, []
    for number, (site, (norms, squares)) in enumerate(zip(sites, train.norms, strict=True)):
        for name, vector in moments.items():
            statistics["target_" * number + name] = vector[number * d : (number + 1) * d].clone()
        means = {"mean_norm": norms / train.rows, "mean_squared_norm": squares / train.rows}
        about.append({"site": site, "d": d, **means})
    save_file(statistics, folder / "statistics.safetensors")
    index = {
        **about[0],
        "train_rows": train.rows,
        "validation_rows": validation.rows,
        "validation_fraction": spec.validation_fraction,
        "seed": spec.seed,
        "rows_per_group": spec.rows_per_group,
        "groups": [*train.groups, *validation.groups],
        "capture": capture,  # how the tokens were read: what evaluates the result must read text the same way
    }
    if len(about) > 1:
        index["target"] = about[1]
    (folder / "index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    told = ("site", "d", "train_rows", "validation_rows", "mean_norm")
    return {name: index[name] for name in told} | ({"target": sites[1]} if len(sites) > 1 else {})
