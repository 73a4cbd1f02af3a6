"""Evaluate with autoencoders whose figures are known: one that loses nothing, one that loses everything."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from sae_core import SAEConfig, capture, make_sae, metrics, save_sae, splice
from tasks.artifacts import Artifact, Store
from tasks.errors import InputError
from tasks.evaluate import EVALUATE, EvaluateSpec
from tasks.split import is_validation
from tests.tasks.capture.test_capture import TEXTS, WORDS, made, save_model, write_corpus

D, SITE, FRACTION, SEED = 32, "resid_post.1", 0.5, 3


def prompts() -> list[list[int]]:
    return [[0, *(WORDS.index(word) for word in text.split())] for text in TEXTS]


def held_out() -> list[list[int]]:
    chosen = is_validation(np.arange(len(TEXTS)), FRACTION, SEED)
    return [prompt for prompt, wanted in zip(prompts(), chosen, strict=True) if wanted]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def inputs(store) -> dict[str, Artifact]:
    model = made(store, "model", save_model)
    language_model = LlamaForCausalLM.from_pretrained(model.folder()).eval()
    with capture(language_model, [SITE]) as forward:
        x_BD = torch.cat([forward(input_ids=torch.tensor([prompt]))[SITE][0, 1:] for prompt in held_out()]).bfloat16()

    def write_rows(path) -> None:
        save_file({"activations": x_BD[:40].clone()}, path / "validation-00000.safetensors")
        save_file({"activations": x_BD[40:].clone()}, path / "validation-00001.safetensors")
        groups = [{"name": f"validation-{i:05}.safetensors"} for i in range(2)]
        read = {"bos": "add", "bos_stored": False, "max_tokens": 32}
        index = {"site": SITE, "d": D, "groups": groups, "validation_fraction": FRACTION, "seed": SEED, "capture": read}
        (path / "index.json").write_text(json.dumps(index))

    corpus = made(store, "corpus", lambda path: write_corpus(path, TEXTS))
    return {"rows": made(store, "preprocess", write_rows), "corpus": corpus, "model": model}


def autoencoder(store: Store, name: str, keeps: bool, **settings) -> Artifact:
    """With latents +e_i and -e_i and k = d, or relu, it returns its input exactly; with a decoder of zeros, nothing."""
    sae = make_sae(SAEConfig(d_in=D, n_latents=2 * D, **(settings or {"k": D}))).requires_grad_(False)
    sae.W_enc.copy_(torch.cat([torch.eye(D), -torch.eye(D)]))
    sae.W_dec.copy_(sae.W_enc if keeps else torch.zeros_like(sae.W_enc))
    return made(store, name, lambda path: save_sae(sae, path))


def evaluated(store: Store, inputs: dict[str, Artifact], sae: Artifact, **settings) -> dict:
    return EVALUATE.build(store, EvaluateSpec(**settings), sae=sae, **inputs).artifact.json("metrics.json")


@pytest.mark.parametrize(("name", "settings"), [("perfect", {"k": D}), ("perfect-relu", {"architecture": "relu"})])
def test_an_autoencoder_that_loses_nothing(store, inputs, name, settings):
    found = evaluated(store, inputs, autoencoder(store, name, True, **settings))
    assert found["fvu"]["value"] == pytest.approx(0, abs=1e-9)
    assert found["cosine_similarity"]["value"] == pytest.approx(1)
    assert found["ce_recovered"]["value"] == pytest.approx(1, abs=1e-4)
    assert found["kl"]["value"] == pytest.approx(0, abs=1e-6)
    assert found["ce_spliced"]["value"] == pytest.approx(found["ce"]["value"], abs=1e-6)
    assert found["l0"]["value"] == pytest.approx(D)
    assert found["dead_share"] == 0
    assert found["activations"] == sum(len(prompt) - 1 for prompt in held_out())
    assert sum(found["density"]["counts"]) == 2 * D


def test_an_autoencoder_that_loses_everything(store, inputs):
    found = evaluated(store, inputs, autoencoder(store, "nothing", False))
    assert found["ce_spliced"]["value"] == pytest.approx(found["ce_ablated"]["value"], abs=1e-6)
    assert found["ce_recovered"]["value"] == pytest.approx(0, abs=1e-4)
    assert found["fvu"]["value"] >= 1
    assert found["kl"]["value"] > 1e-4


@pytest.mark.parametrize("keeps", [True, False])
def test_a_transcoder_is_measured_at_its_target(store, inputs, keeps):
    """A layer's input is the output of the one before: its skip can copy it, and a transcoder of zeros loses it."""
    target = "resid_pre.1"
    index = inputs["rows"].json("index.json") | {"site": "resid_post.0", "target": {"site": target, "d": D}}
    language_model = LlamaForCausalLM.from_pretrained(inputs["model"].folder()).eval()
    with capture(language_model, [target]) as forward:
        x_BD = torch.cat([forward(input_ids=torch.tensor([prompt]))[target][0, 1:] for prompt in held_out()])

    def write_rows(path) -> None:
        rows_BD = torch.cat([x_BD, x_BD], dim=1).bfloat16()
        save_file({"activations": rows_BD}, path / "validation-00000.safetensors")
        (path / "index.json").write_text(json.dumps(index | {"groups": [{"name": "validation-00000.safetensors"}]}))

    sae = make_sae(SAEConfig(d_in=D, n_latents=8, k=2, architecture="transcoder", skip=True)).requires_grad_(False)
    if keeps:
        sae.W_skip.copy_(torch.eye(D))
    transcoder = made(store, f"transcoder-{keeps}", lambda path: save_sae(sae, path))
    paired = inputs | {"rows": made(store, "preprocess-paired", write_rows)}
    found = evaluated(store, paired, transcoder)
    assert found["fvu"]["value"] == pytest.approx(0, abs=1e-9) if keeps else found["fvu"]["value"] >= 1
    reached = found["ce"] if keeps else found["ce_ablated"]
    assert found["ce_spliced"]["value"] == pytest.approx(reached["value"], abs=1e-6)
    assert found["ce_ablated"]["value"] != pytest.approx(found["ce"]["value"], abs=1e-3)
    assert found["l0"]["value"] <= 2


def test_a_transcoder_reads_its_site_and_acts_at_its_target(store, inputs):
    """An MLP's input and output have nothing in common: any matrix as the skip says which was read, which replaced."""
    site, target = "mlp_in.1", "mlp_out.1"
    index = inputs["rows"].json("index.json") | {"site": site, "target": {"site": target, "d": D}}
    M_DD = torch.randn(D, D, generator=torch.Generator().manual_seed(0)) / D**0.5
    model = LlamaForCausalLM.from_pretrained(inputs["model"].folder()).eval()
    pairs, losses = [], []
    for prompt in held_out():
        ids = torch.tensor([prompt])
        with capture(model, [site, target]) as forward:
            found = forward(input_ids=ids)
        pairs.append(torch.cat([found[site][0, 1:], found[target][0, 1:]], dim=1))
        if len(prompt) >= 3:
            made_1LD = found[target].clone()
            made_1LD[0, 1:] = found[site][0, 1:] @ M_DD.t()
            with torch.no_grad(), splice(model, target, lambda _, made_1LD=made_1LD: made_1LD):
                logits = model(input_ids=ids).logits[0, 1:-1]
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 2:], reduction="none"))
    rows_BD = torch.cat(pairs).bfloat16()

    def write_rows(path) -> None:
        save_file({"activations": rows_BD}, path / "validation-00000.safetensors")
        (path / "index.json").write_text(json.dumps(index | {"groups": [{"name": "validation-00000.safetensors"}]}))

    sae = make_sae(SAEConfig(d_in=D, n_latents=8, k=2, architecture="transcoder", skip=True)).requires_grad_(False)
    sae.W_skip.copy_(M_DD)
    transcoder = made(store, "transcoder-any", lambda path: save_sae(sae, path))
    measured = evaluated(store, inputs | {"rows": made(store, "preprocess-mlp", write_rows)}, transcoder)
    x_BD, target_BD = rows_BD.float().split(D, dim=1)
    assert measured["fvu"]["value"] == pytest.approx(metrics.fvu(target_BD, x_BD @ M_DD.t()), rel=1e-5)
    assert measured["ce_spliced"]["value"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)
    assert measured["ce_spliced"]["value"] != pytest.approx(measured["ce"]["value"], rel=1e-4)


def test_coactivation_is_that_of_the_held_out_activations(store, inputs):
    """With latents +e_i and -e_i, i and j fire together where their components are both above, or both below, zero."""
    sae = autoencoder(store, "perfect", True)
    built = EVALUATE.build(store, EvaluateSpec(), sae=sae, **inputs).artifact
    found = pq.read_table(built.path("coactivation.parquet")).to_pylist()
    files = [inputs["rows"].path(f"validation-{i:05}.safetensors") for i in range(2)]
    x_BD = torch.cat([load_file(path)["activations"] for path in files]).double()
    fires_BN = (torch.cat([x_BD, -x_BD], dim=1) > 0).double()
    both_NN, fired_N = fires_BN.T @ fires_BN, fires_BN.sum(0)
    jaccard_NN = (both_NN / (fired_N + fired_N.unsqueeze(1) - both_NN)).fill_diagonal_(0)
    assert {row["latent"] for row in found} == set(range(2 * D))
    for row in found:
        i, j = row["latent"], row["partner"]
        assert row["count"] == both_NN[i, j]
        assert row["jaccard"] == pytest.approx(float(jaccard_NN[i, j]))
        assert row["expected"] == pytest.approx(float(fired_N[i] * fired_N[j] / len(x_BD)))
    best = [max(row["jaccard"] for row in found if row["latent"] == i) for i in range(2 * D)]
    assert best == pytest.approx(jaccard_NN.max(1).values.tolist())
    share = float((jaccard_NN.max(1).values > 0.5).double().mean())
    assert built.json("metrics.json")["paired_share"] == built.summary["paired_share"] == pytest.approx(share)


def test_cross_entropy_is_that_of_the_model_on_unpadded_rows(store, inputs):
    found = evaluated(store, inputs, autoencoder(store, "perfect", True))
    model = LlamaForCausalLM.from_pretrained(inputs["model"].folder()).eval()
    losses = []
    for prompt in held_out():
        if len(prompt) >= 3:
            ids = torch.tensor([prompt])
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, 1:-1]  # from the first token after BOS on
            losses.append(torch.nn.functional.cross_entropy(logits, ids[0, 2:], reduction="none"))
    assert found["text_rows"] == len(losses)
    assert found["text_tokens"] == sum(map(len, losses))
    assert found["ce"]["value"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_every_figure_has_its_spread_and_the_spec_bounds_the_work(store, inputs):
    found = evaluated(store, inputs, autoencoder(store, "nothing", False), activations=33, text_rows=6)
    assert found["activations"] == 33
    assert found["text_rows"] <= 6
    for name in ("fvu", "l0", "ce", "ce_spliced", "ce_ablated", "ce_recovered", "kl", "cosine_similarity"):
        assert found[name]["low"] <= found[name]["value"] <= found[name]["high"], name
    assert found["ce"]["low"] < found["ce"]["high"]


def test_the_same_work_gives_the_same_bytes(store, inputs):
    sae = autoencoder(store, "perfect", True)
    first = EVALUATE.build(store, EvaluateSpec(), sae=sae, **inputs).artifact
    assert EVALUATE.build(store, EvaluateSpec(), force=True, sae=sae, **inputs).artifact.digest == first.digest


def test_text_without_anything_to_predict_is_refused(store, inputs):
    words = made(store, "words", lambda path: write_corpus(path, ["w1"] * len(TEXTS)))
    with pytest.raises(InputError, match="two tokens to predict from"):
        EVALUATE.build(
            store, EvaluateSpec(), sae=autoencoder(store, "perfect", True), **(inputs | {"corpus": words})
        )
