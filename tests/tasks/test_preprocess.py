"""preprocess: a permutation of every token, the same however it was read; no token of a validation row in training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from flows.config import PipelineConfig
from tasks import preprocess
from tasks.archive import ARCHIVE, ArchiveSpec
from tasks.artifacts import Artifact, Spec, Stage, Store, Summary, Workspace
from tasks.capture import CaptureSpec, _write
from tasks.capture.worker import CaptureWorker
from tasks.errors import InputError
from tasks.preprocess import PREPROCESS, PreprocessSpec
from tasks.split import is_validation
from tests.tasks.capture.test_capture import TEXTS, made, save_model, write_corpus

D = 3


class RowsSpec(Spec):
    """Some rows of a corpus; the activation of token p of row r says (r, p) itself."""

    first_row: int = 0
    lengths: tuple[int, ...] = ()


def capture_rows(spec: RowsSpec, out: Workspace) -> Summary:
    rows = [(spec.first_row + i, p) for i, length in enumerate(spec.lengths) for p in range(length)]
    x_TD = torch.tensor([[row, position, 1.0] for row, position in rows]).reshape(-1, D)
    tensors = {
        "activations": x_TD.bfloat16(),
        "token_ids": torch.zeros(len(rows), dtype=torch.int32),
        "row_offsets": torch.tensor(np.cumsum([0, *spec.lengths]), dtype=torch.int64),
        "row_ids": torch.arange(len(spec.lengths), dtype=torch.int64) + spec.first_row,
    }
    save_file(tensors, out.path / "resid_post.0.safetensors")
    tensors["activations"] = -2 * tensors["activations"]
    save_file(tensors, out.path / "mlp_in.1.safetensors")
    (out.path / "capture.json").write_text('{"sites":["resid_post.0","mlp_in.1"]}')
    return {"tokens": len(rows)}


CAPTURED = Stage("capture", 1, RowsSpec, capture_rows)


def capture_here(spec: CaptureSpec, out: Workspace, *, model: Artifact, corpus: Artifact) -> Summary:
    """What an actor finds, without the actor."""
    worker = CaptureWorker(model, spec.sites, spec.dtype, "cpu", torch.get_num_threads())
    return _write(worker.capture(spec, corpus), spec, out)


CAPTURE_HERE = Stage("capture", 1, CaptureSpec, capture_here)


def archives(store: Store, lengths: list[int], shards: int) -> list[Artifact]:
    """The same rows in a number of shards."""
    found = []
    for i in range(shards):
        begin, end = i * len(lengths) // shards, (i + 1) * len(lengths) // shards
        captured = CAPTURED.build(store, RowsSpec(first_row=begin, lengths=tuple(lengths[begin:end]))).artifact
        found.append(ARCHIVE.build(store, ArchiveSpec(), captured=captured).artifact)
    return found


def table(artifact: Artifact, kind: str) -> torch.Tensor:
    files = [group["name"] for group in artifact.json("index.json")["groups"] if group["name"].startswith(kind)]
    return torch.cat([load_file(artifact.path(name))["activations"] for name in files])


SPEC = PreprocessSpec(site="resid_post.0", validation_fraction=0.3, rows_per_group=7)


@given(lengths=st.lists(st.integers(0, 6), min_size=20, max_size=40), shards=st.integers(1, 4), bits=st.integers(0, 3))
def test_it_is_a_permutation_split_by_row_whatever_the_shards_and_the_memory(
    lengths: list[int], shards: int, bits: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    held_out = is_validation(np.arange(len(lengths)), SPEC.validation_fraction, SPEC.seed)
    kept = sum(length for length, out in zip(lengths, held_out, strict=True) if not out)
    if not 0 < kept < sum(lengths):
        return  # refused, as another test says
    whole, parted = (Store(str(tmp_path_factory.mktemp("store"))) for _ in range(2))
    first = PREPROCESS.build(whole, SPEC, archives=archives(whole, lengths, 1)).artifact
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preprocess, "_partition_count", lambda _: 2**bits)
        second = PREPROCESS.build(parted, SPEC, archives=archives(parted, lengths, shards)).artifact
    assert first.digest == second.digest
    train, validation = table(second, "train"), table(second, "validation")
    expected = sorted((row, position) for row, length in enumerate(lengths) for position in range(length))
    assert sorted((int(x[0]), int(x[1])) for x in torch.cat([train, validation])) == expected
    assert not held_out[train[:, 0].long().numpy()].any()
    assert held_out[validation[:, 0].long().numpy()].all()


def test_statistics_are_those_of_the_training_rows(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    artifact = PREPROCESS.build(store, SPEC, archives=archives(store, [5] * 40, 2)).artifact
    train = table(artifact, "train").double()
    found, index = load_file(artifact.path("statistics.safetensors")), artifact.json("index.json")
    torch.testing.assert_close(found["mean"].double(), train.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(found["variance"].double(), train.var(0, correction=0), rtol=1e-5, atol=1e-6)
    assert index["mean_norm"] == pytest.approx(float(train.norm(dim=1).mean()))
    assert index["mean_squared_norm"] == pytest.approx(float(train.norm(dim=1).square().mean()))
    assert index["train_rows"] == len(train)


def test_a_target_lies_beside_its_token_in_the_same_order_and_has_statistics_of_its_own(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    shards = archives(store, [5] * 40, 2)
    alone = PREPROCESS.build(store, SPEC, archives=shards).artifact
    paired = PREPROCESS.build(store, SPEC.model_copy(update={"target": "mlp_in.1"}), archives=shards).artifact
    for kind in ("train", "validation"):
        assert torch.equal(table(paired, kind)[:, :D], table(alone, kind))
        assert torch.equal(table(paired, kind)[:, D:], -2 * table(alone, kind))
    index = paired.json("index.json")
    target = index.pop("target")
    assert index == alone.json("index.json")
    norms = {name: index[name] * factor for name, factor in (("mean_norm", 2), ("mean_squared_norm", 4))}
    assert target == {"site": "mlp_in.1", "d": D, **{name: pytest.approx(value) for name, value in norms.items()}}
    assert paired.summary == alone.summary | {"target": "mlp_in.1"}
    ours, theirs = (load_file(artifact.path("statistics.safetensors")) for artifact in (paired, alone))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    torch.testing.assert_close(ours["target_mean"], -2 * theirs["mean"])
    torch.testing.assert_close(ours["target_variance"], 4 * theirs["variance"])


def test_files_hold_a_fixed_number_of_rows_and_the_last_one_the_rest(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    artifact = PREPROCESS.build(store, SPEC, archives=archives(store, [5] * 40, 2)).artifact
    sizes = [group["rows"] for group in artifact.json("index.json")["groups"] if group["name"].startswith("train")]
    assert set(sizes[:-1]) == {7} and 0 < sizes[-1] <= 7


def test_neighbours_in_the_text_are_no_neighbours_in_the_table(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    spec = SPEC.model_copy(update={"rows_per_group": 4096})
    rows = table(PREPROCESS.build(store, spec, archives=archives(store, [4] * 250, 3)).artifact, "train")[:, 0]
    assert float((rows[1:] == rows[:-1]).float().mean()) < 0.02  # 0.75 in the text, 0.004 by chance


def test_another_seed_is_another_order_of_the_same_tokens(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    shards = archives(store, [5] * 40, 2)
    specs = [SPEC.model_copy(update={"seed": seed}) for seed in (0, 1)]
    found = [PREPROCESS.build(store, spec, archives=shards).artifact for spec in specs]
    first, second = (torch.cat([table(artifact, "train"), table(artifact, "validation")]) for artifact in found)
    assert not torch.equal(first, second)
    assert sorted(first.tolist()) == sorted(second.tolist())


def test_without_a_site_it_takes_the_first_that_was_captured(tmp_path: Path) -> None:
    """On shards as capture and archive really make them; the sites are not in the order of their names."""
    store = Store(str(tmp_path))
    model, corpus = made(store, "model", save_model), made(store, "corpus", lambda path: write_corpus(path, TEXTS))
    spec = CaptureSpec(sites=("resid_post.1", "mlp_in.0"), shards=2)
    shards = []
    for shard in range(2):
        captured = CAPTURE_HERE.build(store, spec.part(shard), model=model, corpus=corpus).artifact
        shards.append(ARCHIVE.build(store, ArchiveSpec(), captured=captured).artifact)
    half = PreprocessSpec(validation_fraction=0.5)
    found = PREPROCESS.build(store, half, archives=shards).artifact
    named = PREPROCESS.build(store, half.model_copy(update={"site": "resid_post.1"}), archives=shards).artifact
    assert found.summary["site"] == found.json("index.json")["site"] == "resid_post.1"
    assert found.digest == named.digest
    assert PipelineConfig(capture=spec).site == "resid_post.1"


def test_a_split_with_nothing_on_one_side_is_refused(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    spec = PreprocessSpec(site="resid_post.0", validation_fraction=1e-9)
    with pytest.raises(InputError, match="0 to validate on"):
        PREPROCESS.build(store, spec, archives=archives(store, [5] * 10, 1))
