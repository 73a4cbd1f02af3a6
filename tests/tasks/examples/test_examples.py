"""Examples from real archives and a real tokenizer, with an autoencoder whose codes are its inputs.

The encoder is the identity, so the made-up activations say exactly where each latent fires.
"""

import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import sae_core
from tasks.archive import ARCHIVE, ArchiveSpec
from tasks.artifacts import open_store
from tasks.errors import InputError
from tasks.examples import EXAMPLES, ExamplesSpec, codes
from tasks.examples.firings import in_score_half
from tasks.model import load_tokenizer
from tasks.model.language_model import LanguageModelSpec, train_language_model
from tests.tasks.report_inputs import given

SITE = "resid_post.0"
D = 16  # width of the model and number of latents
SPEC = ExamplesSpec(
    top=4, label_positives=6, label_negatives=6, score_positives=8, score_negatives=8, before=5, after=3, neighbours=3
)
TEXTS = [
    f"The number {n} comes after {n - 1}, naïve café No. {n * 7}." if n % 5 else f"日本語 {n} 😀 and so on\nagain {n}"
    for n in range(80)
]
TINY = LanguageModelSpec(
    vocabulary=300, d_model=D, layers=1, heads=2, d_mlp=16, context=16, batch=2, steps=1, threads=1
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A store, the model artifact, the tokenised rows, and where each latent fires at each token."""
    folder, store = tmp_path_factory.mktemp("model"), open_store(str(tmp_path_factory.mktemp("store")))
    train_language_model(TINY, ["\n\n".join(TEXTS[:60])], folder, lambda *_: None)
    model = given(store, "model", {path.name: path.read_bytes() for path in folder.iterdir()}, {"source": "tiny"})
    tokenizer = load_tokenizer(model)
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    dice = np.random.default_rng(0)
    x = [dice.uniform(0.5, 4, (len(row), D)) * (dice.random((len(row), D)) < 0.15) for row in rows]
    for row in x:
        row[:, 0] = 1.0  # fires everywhere
        row[:, 1] = 0.0  # dead
    x = [torch.tensor(row).bfloat16() for row in x]
    x[3][:] = 0.0  # a row in which nothing fires, latent 0 apart
    x[3][:, 0] = 1.0
    sae = sae_core.TopKSAE(sae_core.SAEConfig(d_in=D, n_latents=D, k=D))
    sae.W_enc.data = torch.eye(D)
    sae_core.save_sae(sae, folder / "sae", {"site": SITE})
    trained = given(store, "train", {path.name: path.read_bytes() for path in (folder / "sae").iterdir()})
    corpus = given(store, "corpus", {"rows.parquet": {"doc_id": pa.array(range(100, 180), pa.int64())}})
    return store, model, tokenizer, rows, x, {"sae": trained, "corpus": corpus, "model": model}


def archives(store, folder, rows, x, edges, site=SITE):
    """Real archives of captured shards; shard i holds rows [edges[i], edges[i + 1])."""
    made = []
    for first, last in itertools.pairwise(edges):
        tensors = {
            "activations": torch.cat([*x[first:last], torch.zeros(0, D, dtype=torch.bfloat16)]),
            "token_ids": torch.tensor([token for row in rows[first:last] for token in row], dtype=torch.int32),
            "row_offsets": torch.tensor([0, *(len(row) for row in rows[first:last])]).cumsum(0),
            "row_ids": torch.arange(first, last),
        }
        save_file(tensors, folder / "shard.safetensors")
        files = {f"{site}.safetensors": (folder / "shard.safetensors").read_bytes(), "statistics.json": {site: first}}
        captured = given(store, "capture", files, {"tokens": len(tensors["token_ids"])})
        made.append(ARCHIVE.build(store, ArchiveSpec(), captured=captured).artifact)
    return made


def build(run, folder, edges=(0, 80), spec=SPEC):
    store, _, _, rows, x, inputs = run
    shards = archives(store, folder, rows, x, edges)
    return EXAMPLES.build(store, spec, archives=shards, **inputs).artifact


def table(artifact, name):
    return pq.read_table(artifact.path(name)).to_pylist()


@pytest.fixture(scope="module")
def built(run, tmp_path_factory):
    artifact = build(run, tmp_path_factory.mktemp("shards"))
    return artifact, table(artifact, "features.parquet"), table(artifact, "examples.parquet")


def test_features_count_what_fires(run, built):
    x = torch.cat(run[4]).float()
    halves = in_score_half(np.arange(len(run[4])), SPEC.seed)
    held_out = torch.cat([torch.full((len(row),), bool(half)) for half, row in zip(halves, run[4], strict=True)])
    for latent, row in enumerate(built[1]):
        fires = x[:, latent] > 0
        assert row["latent"] == latent
        assert row["count"] == int(fires.sum())
        assert row["score_count"] == int((fires & held_out).sum())
        assert row["firing_rate"] == pytest.approx(float(fires.float().mean()))
        assert row["max"] == float(x[:, latent].max())
        assert row["mean"] == pytest.approx(float(x[fires, latent].mean()) if fires.any() else 0)
        assert row["dead"] == (latent == 1)
        assert len(row["neighbours"]) == 3
        assert not {1, latent} & set(row["neighbours"])
        assert len(row["promoted"]) == len(row["suppressed"]) == 10
        assert row["promoted_effects"][0] > 0 > row["suppressed_effects"][0]


def test_every_example_is_what_its_role_says(run, built):
    x, rows = run[4], run[3]
    assert {example["role"] for example in built[2]} == {
        "top", "label_positive", "label_negative_same_row", "label_negative_random",
        "score_positive", "score_negative_same_row", "score_negative_random",
    }  # fmt: skip
    positive_rows = {(e["latent"], e["role"][:5], e["row_id"]) for e in built[2] if e["role"].endswith("positive")}
    for e in built[2]:
        true = float(x[e["row_id"]][e["position"], e["latent"]])
        assert e["activation"] == true
        assert (true > 0) == (not e["role"].endswith(("same_row", "random")))
        assert e["half"] == ("score" if in_score_half(np.array([e["row_id"]]), 0)[0] else "label")
        assert e["role"] == "top" or e["role"].startswith(e["half"])
        assert e["doc_id"] == e["row_id"] + 100
        assert e["token_id"] == rows[e["row_id"]][e["position"]]
        if e["role"].endswith("same_row"):
            assert (e["latent"], e["role"][:5], e["row_id"]) in positive_rows


def test_no_example_is_given_twice_and_counts_are_kept(built):
    limits = {"top": 4, "label_positive": 6, "label_negative_same_row": 3, "label_negative_random": 3,
              "score_positive": 8, "score_negative_same_row": 4, "score_negative_random": 4}  # fmt: skip
    places = [(e["latent"], e["role"], e["row_id"], e["position"]) for e in built[2]]
    assert len(set(places)) == len(places)
    groups = [place[:2] for place in places]
    assert all(groups.count(group) <= limits[group[1]] for group in set(groups))
    full = {role: groups.count((5, role)) for role in limits}
    assert full == limits
    assert groups == sorted(groups, key=lambda group: (group[0], list(limits).index(group[1])))
    assert 1 not in {latent for latent, _ in groups}
    assert {role for latent, role in groups if latent == 0} == {"top", "label_positive", "score_positive"}


def test_windows_show_the_text_and_its_activations(run, built):
    x, rows, tokenizer = run[4], run[3], run[2]
    for e in built[2]:
        start, length = e["position"] - e["hit"], len(e["tokens"])
        ids = rows[e["row_id"]][start : start + length]
        assert "".join(e["tokens"]) == tokenizer.decode(ids)
        assert e["activations"] == x[e["row_id"]][start : start + length, e["latent"]].float().tolist()
        assert min(e["position"], SPEC.before) <= e["hit"]
        assert e["word_start"] <= e["hit"] < e["word_end"] <= length


def test_words_are_whole(built):
    words = {
        "".join(e["tokens"][e["word_start"] : e["word_end"]]).strip() for e in built[2] if "The" in "".join(e["tokens"])
    }
    assert {"comes", "after", "naïve", "café"} & words
    assert not {"com", "naï", "ve", "caf", "numb"} & words


@pytest.mark.parametrize("edges", [(0, 0, 31, 32, 80), (0, 79, 80, 80)])
def test_shards_change_nothing(run, built, tmp_path, edges, monkeypatch):
    monkeypatch.setattr(codes, "CHUNK_TOKENS", 50)
    monkeypatch.setattr(codes, "ENCODE_TOKENS", 7)
    sharded = build(run, tmp_path, edges)
    assert sharded.digest == built[0].digest
    assert sharded.summary == built[0].summary


def test_codes_of_varying_length_give_the_same_examples(run, built, tmp_path):
    store, _, _, rows, x, inputs = run
    sae = sae_core.make_sae(sae_core.SAEConfig(d_in=D, n_latents=D, architecture="relu", decoder_norm=1.0))
    sae.W_enc.data = torch.eye(D)
    sae_core.save_sae(sae, tmp_path / "sae", {"site": SITE})
    trained = given(store, "train", {path.name: path.read_bytes() for path in (tmp_path / "sae").iterdir()})
    again = EXAMPLES.build(
        store, SPEC, archives=archives(store, tmp_path, rows, x, (0, 80)), **(inputs | {"sae": trained})
    )
    assert again.artifact.key != built[0].key
    assert again.artifact.digest == built[0].digest


def test_strongest_rows_come_first_one_entry_each(run, built):
    x = run[4]
    for latent in (0, 5, 9):
        top = [e for e in built[2] if e["latent"] == latent and e["role"] == "top"]
        best = sorted(((-float(row[:, latent].max()), n) for n, row in enumerate(x)))[:4]
        assert [(-e["activation"], e["row_id"]) for e in top] == best


@pytest.mark.parametrize("target", [None, "mlp_out.0"])
def test_a_site_behind_a_norm_promotes_nothing_but_a_transcoders_target_may(run, tmp_path, target):
    store, _, _, rows, x, inputs = run
    files = {path: inputs["sae"].path(path).read_bytes() for path in inputs["sae"].names()}
    config = json.loads(files["cfg.json"])
    config["metadata"] |= {"site": "mlp_in.0"} | ({"target": target} if target else {})
    sae = given(store, "train", files | {"cfg.json": json.dumps(config).encode()})
    shards = archives(store, tmp_path, rows, x, (0, 80), site="mlp_in.0")
    artifact = EXAMPLES.build(store, SPEC, archives=shards, **{**inputs, "sae": sae}).artifact
    for row in table(artifact, "features.parquet"):
        effects = [row[name] for name in ("promoted", "suppressed", "promoted_effects", "suppressed_effects")]
        assert all(len(found) > 0 for found in effects) if target else effects == [[], [], [], []]
        assert len(row["neighbours"]) == 3


def test_no_tokens_at_all_is_told(run, tmp_path):
    store, _, _, rows, x, inputs = run
    with pytest.raises(InputError, match="None of the 2 archived shards holds a token"):
        EXAMPLES.build(store, SPEC, archives=archives(store, tmp_path, rows, x, (0, 0, 0)), **inputs)
