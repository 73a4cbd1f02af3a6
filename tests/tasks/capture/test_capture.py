"""Capture on real actors and a small real model, against what transformers itself says."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_core import hooks
from sae_core.errors import SiteError
from sae_core.statistics import Moments
from tasks.artifacts import Artifact, Spec, Stage, Store, Workspace, open_store
from tasks.capture import CAPTURE, KINDS, CaptureSpec, ShardSpec
from tasks.capture.worker import CaptureWorker, last_layer
from tasks.cluster import Cluster
from tasks.errors import InputError
from tasks.prompts import batches
from tasks.runtime import Runtime

WORDS = ["<s>", "<unk>", *(f"w{i}" for i in range(62))]
TEXTS = [" ".join(WORDS[2 + (7 * row + i * i) % 62] for i in range(row % 11)) for row in range(37)]
SITES = ("resid_post.1", "mlp_in.0")
WHOLE = CaptureSpec(sites=SITES, shards=1, tokens_per_batch=64).part(0)


class Empty(Spec):
    """Nothing to choose."""


def save_model(folder: Path, bos: bool = True) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    given = {"bos_token": "<s>"} if bos else {}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **given).save_pretrained(folder)


def write_corpus(path: Path, texts: list[str]) -> None:
    table = pa.table({"doc_id": pa.array(range(len(texts)), pa.int64()),
                      "row_id": pa.array(range(len(texts)), pa.int64()), "text": pa.array(texts, pa.string())})
    pq.write_table(table, path / "rows.parquet", row_group_size=5)


def made(store: Store, name: str, fill: Callable[[Path], None]) -> Artifact:
    def run(spec: Empty, out: Workspace) -> dict[str, Any]:
        fill(out.path)
        return {"source": name}

    return Stage(name, version=1, spec=Empty, run=run).build(store, Empty()).artifact


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """In a place of its own for all tests, so that the actors that hold it serve all of them."""
    return made(open_store(str(tmp_path_factory.mktemp("models"))), "model", save_model)


@pytest.fixture
def corpus(store: Store) -> Artifact:
    return made(store, "corpus", lambda path: write_corpus(path, TEXTS))


Shards = Callable[..., Artifact]


@pytest.fixture
def shard(ray_cluster: Cluster, store: Store, model: Artifact, corpus: Artifact) -> Shards:
    def build(spec: ShardSpec = WHOLE, runtime: Runtime | None = None, **arguments: Any) -> Artifact:
        return CAPTURE.build(store, spec, runtime, model=model, corpus=corpus, **arguments).artifact

    return build


def rows_of(artifact: Artifact, site: str) -> list[tuple[int, list[int], torch.Tensor]]:
    """(row_id, tokens, activations) of each row of a shard."""
    data = load_file(artifact.path(f"{site}.safetensors"))
    spans = itertools.pairwise(data["row_offsets"].tolist())
    return [
        (row, data["token_ids"][a:b].tolist(), data["activations"][a:b])
        for row, (a, b) in zip(data["row_ids"].tolist(), spans, strict=True)
    ]


def test_activations_are_those_of_the_model_to_the_bit(shard: Shards, model: Artifact) -> None:
    captured = shard()
    reference = LlamaForCausalLM.from_pretrained(model.folder())
    found = rows_of(captured, "resid_post.1")
    assert [row for row, _, _ in found] == list(range(len(TEXTS)))
    lengths = [1 + len(text.split()) for text in TEXTS]
    for batch in batches(lengths, WHOLE.tokens_per_batch):
        prompts = [[0, *(WORDS.index(word) for word in TEXTS[row].split())] for row in batch]
        padded = torch.tensor([prompt + [0] * (len(prompts[0]) - len(prompt)) for prompt in prompts])
        with torch.no_grad():
            hidden = reference(input_ids=padded, output_hidden_states=True).hidden_states[2].bfloat16()
        for row, prompt, states in zip(batch, prompts, hidden, strict=True):
            assert found[row][1] == prompt[1:]  # BOS is fed and not stored
            assert torch.equal(found[row][2], states[1 : len(prompt)])


def test_files_have_the_agreed_form(shard: Shards) -> None:
    captured = shard()
    assert captured.names() == ["capture.json", "mlp_in.0.safetensors", "resid_post.1.safetensors", "statistics.json"]
    with safe_open(captured.path("mlp_in.0.safetensors"), "pt") as file:
        slices = {name: file.get_slice(name) for name in ("activations", "token_ids", "row_offsets", "row_ids")}
        forms = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    tokens = sum(len(text.split()) for text in TEXTS)
    assert forms == {
        "activations": ("BF16", [tokens, 32]), "token_ids": ("I32", [tokens]),
        "row_offsets": ("I64", [len(TEXTS) + 1]), "row_ids": ("I64", [len(TEXTS)]),
    }
    assert captured.summary == {"rows": len(TEXTS), "tokens": tokens, "rows_cut": 0, "d": 32}
    assert captured.json("capture.json") == {
        "bos": "add", "bos_token_id": 0, "bos_stored": False, "max_tokens": 32, "dtype": "float32",
        "sites": list(SITES), "d": 32,
    }


def test_statistics_are_those_of_the_stored_activations(shard: Shards) -> None:
    captured = shard()
    for site in SITES:
        x_TD = load_file(captured.path(f"{site}.safetensors"))["activations"]
        exact, found = Moments.of(x_TD), captured.json("statistics.json")[site]
        assert found["count"] == exact.count
        assert found["mean"] == pytest.approx(exact.mean_D.tolist(), rel=1e-10, abs=1e-12)
        assert found["m2"] == pytest.approx(exact.m2_D.tolist(), rel=1e-10)
        assert found["mean_norm"] == pytest.approx(float(x_TD.double().norm(dim=1).mean()), rel=1e-12)


def test_shards_together_are_the_whole(shard: Shards) -> None:
    whole = rows_of(shard(), "resid_post.1")
    spec = CaptureSpec(sites=SITES, shards=4, tokens_per_batch=64)
    parts = [rows_of(shard(spec.part(i)), "resid_post.1") for i in range(4)]
    together = [row for part in parts for row in part]
    assert [row[:2] for row in together] == [row[:2] for row in whole]
    a, b = torch.cat([row[2] for row in together]).float(), torch.cat([row[2] for row in whole]).float()
    assert (a - b).norm() / b.norm() < 2**-8  # batches are padded differently, then rounded to bfloat16


def test_a_full_disk_ends_in_one_error(shard: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    from tasks.errors import StoreError

    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StoreError, match="disk is full"):
        shard()


def test_bits_do_not_depend_on_the_workers(shard: Shards, ray_cluster: Cluster) -> None:
    first = shard(runtime=Runtime(capture_workers=1))
    ray_cluster.close_actors()
    again = shard(runtime=Runtime(capture_workers=2), force=True)
    assert first.manifest.attempt != again.manifest.attempt
    assert first.digest == again.digest
    assert [file.sha256 for file in first.manifest.files] == [file.sha256 for file in again.manifest.files]


def test_more_shards_than_rows_gives_valid_empty_shards(
    ray_cluster: Cluster, store: Store, model: Artifact
) -> None:
    corpus = made(store, "corpus", lambda path: write_corpus(path, ["w1 w2", ""]))
    spec = CaptureSpec(shards=3, sites=("resid_post.1",))
    found = [CAPTURE.build(store, spec.part(i), model=model, corpus=corpus).artifact for i in range(3)]
    assert [(part.summary["rows"], part.summary["tokens"]) for part in found] == [(0, 0), (1, 2), (1, 0)]
    data = load_file(found[0].path("resid_post.1.safetensors"))
    assert data["activations"].shape == (0, 32) and data["row_offsets"].tolist() == [0]
    assert found[0].json("statistics.json")["resid_post.1"]["count"] == 0


def test_rows_are_cut_at_the_limit_and_at_the_models_context(
    ray_cluster: Cluster, store: Store, model: Artifact
) -> None:
    corpus = made(store, "corpus", lambda path: write_corpus(path, ["w1 " * 50, "w2 " * 5, "<s> w3"]))
    for limit, lengths, cut in [(4, [3, 3, 1], 2), (512, [31, 5, 1], 1)]:
        spec = CaptureSpec(shards=1, sites=("resid_post.1",), max_tokens=limit).part(0)
        captured = CAPTURE.build(store, spec, model=model, corpus=corpus).artifact
        assert [len(tokens) for _, tokens, _ in rows_of(captured, "resid_post.1")] == lengths
        assert captured.summary["rows_cut"] == cut


def test_bos_can_be_stored_or_not_fed(shard: Shards) -> None:
    kept = rows_of(shard(WHOLE.model_copy(update={"drop_bos": False})), "resid_post.1")
    without = rows_of(shard(WHOLE.model_copy(update={"bos": "none"})), "resid_post.1")
    assert [tokens for _, tokens, _ in kept] == [[0, *tokens] for _, tokens, _ in without]


def test_a_tokenizer_without_bos_is_an_error_with_a_way_out(store: Store, corpus: Artifact) -> None:
    model = made(store, "model", lambda path: save_model(path, bos=False))
    worker = CaptureWorker(model, SITES, "auto", "cpu", torch.get_num_threads())
    with pytest.raises(InputError, match=r"no BOS token; set capture\.bos=none"):
        next(worker.capture(WHOLE, corpus))
    rows = next(worker.capture(WHOLE.model_copy(update={"bos": "none"}), corpus))
    assert rows.bos_token_id is None and len(rows.ids) == len(TEXTS)


def test_only_the_layers_that_are_asked_for_are_loaded(model: Artifact, corpus: Artifact) -> None:
    threads = torch.get_num_threads()
    whole = CaptureWorker(model, ("mlp_in.0", "resid_post.2"), "auto", "cpu", threads)
    short = CaptureWorker(model, ("mlp_in.0",), "auto", "cpu", threads)
    assert [worker.model.config.num_hidden_layers for worker in (whole, short)] == [3, 1]
    weights = [sum(p.numel() for p in worker.model.parameters()) for worker in (whole, short)]
    assert weights[1] < weights[0] * 0.7
    spec = WHOLE.model_copy(update={"sites": ("mlp_in.0",)})
    for one, other in zip(whole.capture(spec, corpus), short.capture(spec, corpus), strict=True):
        if hasattr(one, "activations"):
            assert (one.activations == other.activations).all()


def test_a_layer_that_does_not_exist_is_told_before_the_weights_are_read(
    ray_cluster: Cluster, store: Store, corpus: Artifact
) -> None:
    def damaged(path: Path) -> None:
        save_model(path)
        (path / "model.safetensors").write_bytes(b"no weights")

    model = made(store, "model", damaged)
    with pytest.raises(SiteError, match=r"resid_post.9 asks for layer 9, but the model has 3 layers"):
        CAPTURE.build(store, WHOLE.model_copy(update={"sites": ("resid_post.9",)}), model=model, corpus=corpus)


def test_a_killed_actor_is_replaced_and_the_shard_is_the_same(
    shard: Shards, ray_cluster: Cluster, model: Artifact
) -> None:
    import ray

    undisturbed = shard()
    pool = ray_cluster._pools[f"capture {model.location} auto to layer {last_layer(SITES)}"]
    killed = []

    def kill_once(done: float, total: float, unit: str) -> None:
        if done and not killed:
            killed.append(unit)
            for actor in list(pool._living):
                ray.kill(actor)

    again = shard(WHOLE, force=True, on_report=kill_once)
    assert killed == ["tokens"]
    assert again.digest == undisturbed.digest


@given(st.integers(1, 50), st.integers(0, 200))
def test_shards_cover_the_corpus_in_order(shards: int, rows: int) -> None:
    spec = CaptureSpec(shards=shards)
    assert [row for i in range(shards) for row in spec.part(i).rows(rows)] == list(range(rows))


@pytest.mark.parametrize(
    "wrong", [{"sites": ("resid.1",)}, {"sites": ()}, {"sites": ("resid_pre.1",) * 2}, {"shards": 2, "shard": 1}]
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CaptureSpec(**wrong)
    with pytest.raises(ValidationError, match="0 to 1"):
        CaptureSpec(shards=2).part(2)


def test_the_kinds_are_those_of_the_core() -> None:
    assert KINDS == hooks.KINDS


def test_a_real_trained_model(ray_cluster: Cluster, store: Store, shared: Path) -> None:
    from tasks.model import MODEL, ModelSpec

    model = MODEL.build(store, ModelSpec(path=str(shared / "models" / "stories260K"))).artifact
    texts = ["Once upon a time there was a little girl named Lily.", "She liked to play with her red ball."]
    corpus = made(store, "corpus", lambda path: write_corpus(path, texts))
    captured = CAPTURE.build(store, CaptureSpec(shards=1).part(0), model=model, corpus=corpus).artifact
    assert captured.summary["tokens"] > 20
    assert json.loads(captured.path("capture.json").read_text())["bos_token_id"] == 1
