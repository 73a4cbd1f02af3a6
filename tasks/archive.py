"""archive: a captured shard becomes one deterministic tar.gz in the store; everything after starts from these alone.

Every tar entry is a gzip member of its own: `tar xzf` opens the whole, and `index.json` gives (offset, length) of each
member for reading one alone. Entries are .npy and .json files; activations lie in chunks, their bytes split into two
planes, because the high bytes of bf16 (sign, exponent) pack well and the low ones (mantissa) hardly at all: together
0.68 to 0.73 of the raw size against 0.81 unsplit. By hand, after `tar xzf`:

    high, low = np.load("resid_post.2/00000.high.npy"), np.load("resid_post.2/00000.low.npy")   # uint8 (tokens, d)
    bits = high.astype(np.uint32) << 24 | low.astype(np.uint32) << 16
    activations = bits.view(np.float32)

The artifact's digest is that of the plain tar: builds of zlib and isal differ in their packed bytes.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field

from tasks.artifacts import Artifact, Spec, Stage, Summary, Workspace, canonical_json
from tasks.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np
    import torch

ARCHIVE_FILE = "shard.tar.gz"
CHUNK_BYTES = 16 << 20  # of one byte plane: bounds memory, and is what a reader must unpack to get at one row
NPY_HEADER = 128  # bytes before the values of an .npy file
ROWS = ("row_ids", "row_offsets", "token_ids")  # the same for every site of a shard


class ArchiveSpec(Spec):
    """How a shard is packed."""

    codec: Literal["size", "speed"] = Field(
        "size",
        title="Codec",
        description="size: zlib, Huffman codes only (0.68 of raw); speed: isal level 1 (0.73, three times as fast).",
        json_schema_extra={"position": 0},
    )


def archive_shard(spec: ArchiveSpec, out: Workspace, *, captured: Artifact) -> Summary:
    """Packs one captured shard and reads it back before it returns."""
    sites = sorted(name.removesuffix(".safetensors") for name in captured.names() if name.endswith(".safetensors"))
    path = out.path / ARCHIVE_FILE
    plain, members, total = hashlib.sha256(), [], sum(file.size for file in captured.manifest.files)
    raw = 0
    with path.open("wb") as file:
        for name, data in _entries(captured, sites):
            entry = _tar_entry(name, data)
            plain.update(entry)
            packed = _pack(entry, spec.codec)
            members.append(
                {"name": name, "offset": file.tell(), "length": len(packed), "size": len(data), "sha256": _sha256(data)}
            )
            file.write(packed)
            raw += len(data)
            out.report(min(raw, total), total, "bytes")
        end = b"\0" * 1024  # two empty blocks end a tar
        plain.update(end)
        file.write(_pack(end, spec.codec))
    _read_back(path, members)
    index = {"codec": spec.codec, "sites": sites, "tar_sha256": plain.hexdigest(), "members": members}
    (out.path / "index.json").write_text(json.dumps(index, sort_keys=True, indent=1) + "\n")
    out.content(ARCHIVE_FILE, plain.hexdigest())
    meaning = [[member["name"], member["size"], member["sha256"]] for member in members]
    out.content("index.json", _sha256(canonical_json(meaning).encode()))
    packed_bytes = path.stat().st_size
    return {"tokens": int(captured.summary["tokens"]), "raw_bytes": raw, "packed_bytes": packed_bytes}


ARCHIVE = Stage("archive", version=1, spec=ArchiveSpec, run=archive_shard)


class OpenShard:
    """Sites of an archived shard, verified, to be read by the chunk; from several threads if one likes.

        with OpenShard(archive, "mlp_in.3", "mlp_out.3") as shard:
            for chunk in range(shard.chunks): begin, bits_TD = shard.read(chunk)

    `rows` are `token_ids` int32 (T), `row_offsets` int64 (rows + 1), `row_ids` int64 (rows); `d` is the width of each
    site. Raises ArtifactError when the archive is damaged, does not hold a site, or has not as many activations as
    tokens.
    """

    def __init__(self, archive: Artifact, *sites: str) -> None:
        index = archive.json("index.json")
        for site in sites:
            if site not in index["sites"]:
                raise ArtifactError(
                    f"The archive {archive.key[:12]} has no site {site!r}; it holds {', '.join(index['sites'])}. "
                    "Capture the site too (capture.sites)."
                )
        self._members = {member["name"]: member for member in index["members"]}
        names = (name for name in self._members if name.startswith(f"{sites[0]}/") and name.endswith(".high.npy"))
        self._names = sorted(name.rpartition("/")[2].removesuffix(".high.npy") for name in names)
        self._sites = sites
        self.chunks = len(self._names)
        with contextlib.ExitStack() as opened:
            path = opened.enter_context(archive.local(ARCHIVE_FILE))  # size and sha256 are verified here
            self._file = opened.enter_context(path.open("rb"))
            self.rows = {name: _member(self._file, self._members[f"rows/{name}.npy"]) for name in ROWS}
            self.d = int(json.loads(_unpack(self._file, self._members[f"{sites[0]}/shape.json"]))["d"])
            self._begins = self._places(archive)
            self._open = opened.pop_all()  # from here on `close` ends it

    def _places(self, archive: Artifact) -> list[int]:
        """The first token of each chunk, from the sizes of their files."""
        sizes = [self._members[f"{self._sites[0]}/{name}.high.npy"]["size"] - NPY_HEADER for name in self._names]
        *begins, found = itertools.accumulate((size // self.d for size in sizes), initial=0)
        tokens = len(self.rows["token_ids"])
        if found != tokens:
            raise ArtifactError(
                f"The archive {archive.key[:12]} has {found} activations for {tokens} tokens; make it again with "
                "--force archive."
            )
        return begins

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends reading; a downloaded copy goes, and what was kept of it in memory."""
        self._open.close()
        self.rows, self._members = {}, {}

    def read(self, chunk: int) -> "tuple[int, np.ndarray]":
        """(first token, activations as uint16 views of bf16 (tokens, sites x d)) of a chunk, the sites side by side."""
        import numpy as np

        ends = [*self._begins[1:], len(self.rows["token_ids"])]
        begin, tokens = self._begins[chunk], ends[chunk] - self._begins[chunk]
        bits = np.empty((tokens, len(self._sites), self.d, 2), np.uint8)  # little-endian bf16: the low byte comes first
        for number, site in enumerate(self._sites):
            for place, plane in ((1, "high"), (0, "low")):
                bits[:, number, :, place] = _member(
                    self._file, self._members[f"{site}/{self._names[chunk]}.{plane}.npy"]
                )
        return begin, bits.reshape(tokens, 2 * len(self._sites) * self.d).view("<u2")


def read_shard(archive: Artifact, site: str) -> "dict[str, torch.Tensor]":
    """One site of an archived shard as captured, verified.

    Returns `activations` bf16 (T, d) and the `rows` of OpenShard, as tensors; raises what OpenShard does.
    """
    import numpy as np
    import torch

    with OpenShard(archive, site) as shard:
        found = {name: torch.from_numpy(rows) for name, rows in shard.rows.items()}
        bits = np.empty((len(found["token_ids"]), shard.d), np.uint16)
        for chunk in range(shard.chunks):
            begin, part = shard.read(chunk)
            bits[begin : begin + len(part)] = part
    return found | {"activations": torch.from_numpy(bits).view(torch.bfloat16)}


def read_description(archive: Artifact, name: Literal["capture.json", "statistics.json"]) -> Any:
    """One of the shard's JSON files."""
    index = archive.json("index.json")
    member = next(member for member in index["members"] if member["name"] == name)
    with archive.local(ARCHIVE_FILE) as path, path.open("rb") as file:
        return json.loads(_unpack(file, member))


def _entries(captured: Artifact, sites: list[str]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the tar's entries, in their order; one chunk is in memory at a time."""
    from safetensors import safe_open

    for name in sorted(set(captured.names()) - {f"{site}.safetensors" for site in sites}):
        yield name, captured.path(name).read_bytes()
    for number, site in enumerate(sites):
        with captured.local(f"{site}.safetensors") as path, safe_open(path, framework="pt") as tensors:
            if number == 0:
                for name in ROWS:
                    yield f"rows/{name}.npy", _npy(tensors.get_tensor(name).numpy())
            activations = tensors.get_slice("activations")
            tokens, d = activations.get_shape()
            step = max(1, CHUNK_BYTES // d)
            for chunk, begin in enumerate(range(0, tokens, step)):
                yield from _planes(f"{site}/{chunk:05}", activations[begin : begin + step])
            yield f"{site}/shape.json", canonical_json({"d": d, "tokens": tokens}).encode()


def _planes(name: str, chunk_TD: "torch.Tensor") -> Iterator[tuple[str, bytes]]:
    import numpy as np
    import torch

    pairs = chunk_TD.contiguous().view(torch.uint8).numpy().reshape(*chunk_TD.shape, 2)
    yield f"{name}.high.npy", _npy(np.ascontiguousarray(pairs[:, :, 1]))
    yield f"{name}.low.npy", _npy(np.ascontiguousarray(pairs[:, :, 0]))


def _npy(values: "np.ndarray") -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, values, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _tar_entry(name: str, data: bytes) -> bytes:
    """Header, content and padding of one entry, without times or owners."""
    info = tarfile.TarInfo(name)  # mtime, uid and gid are 0, the mode is 0644
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + b"\0" * (-len(data) % tarfile.BLOCKSIZE)


def _pack(data: bytes, codec: str) -> bytes:
    if codec == "speed":
        from isal import igzip

        return bytes(igzip.compress(data, compresslevel=1, mtime=0))
    packer = zlib.compressobj(9, zlib.DEFLATED, 31, 9, zlib.Z_HUFFMAN_ONLY)  # 31: a gzip header, without time
    return packer.compress(data) + packer.flush()


def _unpack(file: Any, member: dict[str, Any]) -> bytes:
    """The content of one entry (bytes), read by its place."""
    from isal import isal_zlib

    packed = os.pread(file.fileno(), member["length"], member["offset"])  # moves no file position: threads may share it
    entry = isal_zlib.decompress(packed, wbits=31)
    return bytes(entry[tarfile.BLOCKSIZE : tarfile.BLOCKSIZE + member["size"]])


def _member(file: Any, member: dict[str, Any]) -> "np.ndarray":
    import numpy as np

    return np.lib.format.read_array(io.BytesIO(_unpack(file, member)), allow_pickle=False)


def _read_back(path: Path, members: list[dict[str, Any]]) -> None:
    with path.open("rb") as file:
        for member in members:
            if _sha256(_unpack(file, member)) != member["sha256"]:
                raise ArtifactError(
                    f"{path.name} does not give back {member['name']} as it was written; memory or disk are at fault, "
                    "run the same command again."
                )


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
