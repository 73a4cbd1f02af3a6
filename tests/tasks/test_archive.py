"""archive: what goes in comes out, by our reader and by plain tar; digests repeat; damage is told."""

import gzip
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tasks import archive
from tasks.archive import ARCHIVE, ArchiveSpec, OpenShard, read_description, read_shard
from tasks.artifacts import Artifact, Spec, Stage, Store, Summary, Workspace
from tasks.errors import ArtifactError

SITES = ("attn_in.0", "resid_post.1")


class FakeCaptureSpec(Spec):
    """A shard of random bits: every bf16 pattern, NaN and infinities too."""

    lengths: tuple[int, ...] = (3, 0, 5, 1)
    d: int = 6
    seed: int = 0


def fake_capture(spec: FakeCaptureSpec, out: Workspace) -> Summary:
    draw = np.random.default_rng(spec.seed)
    tokens = sum(spec.lengths)
    for site in SITES:
        bits = torch.from_numpy(draw.integers(-(2**15), 2**15, (tokens, spec.d), dtype=np.int16))
        offsets = torch.tensor(np.cumsum([0, *spec.lengths]), dtype=torch.int64)
        tensors = {
            "activations": bits.view(torch.bfloat16),
            "token_ids": torch.arange(tokens, dtype=torch.int32),
            "row_offsets": offsets,
            "row_ids": torch.arange(len(spec.lengths), dtype=torch.int64) + 40,
        }
        save_file(tensors, out.path / f"{site}.safetensors")
    (out.path / "statistics.json").write_text('{"count":1}')
    return {"tokens": tokens}


CAPTURED = Stage("capture", 1, FakeCaptureSpec, fake_capture)


def packed(folder: Path, spec: FakeCaptureSpec, codec: str = "size") -> tuple[Artifact, Artifact]:
    store = Store(str(folder))
    captured = CAPTURED.build(store, spec).artifact
    return captured, ARCHIVE.build(store, ArchiveSpec(codec=codec), captured=captured).artifact


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.dtype == torch.bfloat16:  # NaN is equal to nothing, its bits are
        first, second = first.view(torch.int16), second.view(torch.int16)
    return first.dtype == second.dtype and torch.equal(first, second)


@given(lengths=st.lists(st.integers(0, 9), max_size=8), d=st.integers(1, 9), codec=st.sampled_from(["size", "speed"]))
def test_every_bit_comes_back(lengths: list[int], d: int, codec: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "CHUNK_BYTES", 12)  # several chunks in a small shard
        captured, archived = packed(folder, FakeCaptureSpec(lengths=tuple(lengths), d=d), codec)
        for site in SITES:
            before, after = load_file(captured.path(f"{site}.safetensors")), read_shard(archived, site)
            assert before.keys() == after.keys()
            assert all(same(before[name], after[name]) for name in before)
    assert read_description(archived, "statistics.json") == {"count": 1}


def test_chunks_are_found_where_they_were_put_whatever_their_size_is_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = packed(tmp_path / "whole", FakeCaptureSpec())[1]
    with monkeypatch.context() as patch:
        patch.setattr(archive, "CHUNK_BYTES", 12)
        parted = packed(tmp_path / "parted", FakeCaptureSpec())[1]
    assert same(read_shard(whole, SITES[0])["activations"], read_shard(parted, SITES[0])["activations"])
    with OpenShard(parted, SITES[0]) as shard:
        assert [shard.read(chunk)[0] for chunk in range(shard.chunks)] == [0, 2, 4, 6, 8]


def test_two_sites_are_read_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "CHUNK_BYTES", 12)
    _, archived = packed(tmp_path, FakeCaptureSpec())
    with OpenShard(archived, *reversed(SITES)) as shard:
        found = np.concatenate([shard.read(chunk)[1] for chunk in range(shard.chunks)])
    each = [read_shard(archived, site)["activations"].view(torch.int16).numpy() for site in reversed(SITES)]
    np.testing.assert_array_equal(found.view(np.int16), np.concatenate(each, axis=1))


def test_activations_that_are_missing_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, archived = packed(tmp_path, FakeCaptureSpec())
    index = archived.json("index.json")
    for member in index["members"]:
        member["size"] -= 6 * member["name"].endswith(".high.npy")
    monkeypatch.setattr(Artifact, "json", lambda *_: index)
    with pytest.raises(ArtifactError, match=r"has 8 activations for 9 tokens; make it again with --force archive"):
        OpenShard(archived, SITES[0])


def test_plain_tar_opens_it_and_the_recipe_of_the_docstring_works(tmp_path: Path) -> None:
    _, archived = packed(tmp_path / "store", FakeCaptureSpec())
    subprocess.run(["tar", "xzf", archived.path("shard.tar.gz"), "-C", tmp_path], check=True)
    high, low = (np.load(tmp_path / f"resid_post.1/00000.{plane}.npy") for plane in ("high", "low"))
    activations = (high.astype(np.uint32) << 24 | low.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(activations, read_shard(archived, "resid_post.1")["activations"].float().numpy())


def test_the_digest_repeats_and_is_the_same_for_both_codecs_content(tmp_path: Path) -> None:
    first = packed(tmp_path / "a", FakeCaptureSpec())[1]
    again = packed(tmp_path / "b", FakeCaptureSpec())[1]
    fast = packed(tmp_path / "c", FakeCaptureSpec(), "speed")[1]
    other = packed(tmp_path / "d", FakeCaptureSpec(seed=1))[1]
    assert first.digest == again.digest == fast.digest != other.digest
    assert gzip.decompress(first.path("shard.tar.gz").read_bytes()) == gzip.decompress(
        fast.path("shard.tar.gz").read_bytes()
    )


def test_a_flipped_byte_is_told(tmp_path: Path) -> None:
    _, archived = packed(tmp_path, FakeCaptureSpec())
    path = archived.path("shard.tar.gz")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"shard\.tar\.gz .* is damaged: its sha256 .*--force archive"):
        read_shard(archived, SITES[0])


def test_a_site_that_was_not_captured_is_told(tmp_path: Path) -> None:
    _, archived = packed(tmp_path, FakeCaptureSpec())
    with pytest.raises(ArtifactError, match=r"no site 'mlp_out\.9'; it holds attn_in\.0, resid_post\.1"):
        read_shard(archived, "mlp_out.9")


def test_real_activations_are_packed_to_less_than_three_quarters(tmp_path: Path) -> None:
    def smooth(spec: FakeCaptureSpec, out: Workspace) -> Summary:
        fake_capture(spec, out)
        x_TD = torch.randn(sum(spec.lengths), spec.d, generator=torch.Generator().manual_seed(0)).bfloat16()
        for site in SITES:
            from safetensors.torch import load_file

            tensors = load_file(out.path / f"{site}.safetensors") | {"activations": x_TD}
            save_file(tensors, out.path / f"{site}.safetensors")
        return {"tokens": len(x_TD)}

    store = Store(str(tmp_path))
    spec = FakeCaptureSpec(lengths=(2000,), d=64)
    captured = Stage("capture", 2, FakeCaptureSpec, smooth).build(store, spec).artifact
    summary = ARCHIVE.build(store, ArchiveSpec(), captured=captured).artifact.summary
    assert summary["packed_bytes"] < 0.75 * summary["raw_bytes"]
