"""The sentences and figures at the head of the report, made from summaries, the SAE's config and metrics.json."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tasks.artifacts import Artifact

Json = dict[str, Any]
ARCHITECTURES = {  # name, and how many latents a token is written as
    "topk": ("TopK", "at most {k}"),
    "batch_topk": ("BatchTopK", "{k} on average"),
    "matryoshka": ("Matryoshka", "{k} on average"),
    "relu": ("ReLU", "{l0} on average"),
    "jumprelu": ("JumpReLU", "{l0} on average"),
    "gated": ("gated", "{l0} on average"),
    "transcoder": ("transcoder", "at most {k}"),
}
SITES = {
    "resid_pre": "the residual stream before layer {}",
    "resid_post": "the residual stream after layer {}",
    "attn_in": "the input of the attention in layer {}, after its norm",
    "attn_out": "the output of the attention in layer {}",
    "mlp_in": "the input of the MLP in layer {}",
    "mlp_out": "the output of the MLP in layer {}",
}


def headline(config: Json, model: Artifact) -> str:
    """One line: how many features of which model."""
    return f"{config['sae']['n_latents']:,} latents of {_model_name(model)}, {sites(config)}"


def lede(config: Json, inputs: Mapping[str, Artifact], table: Json, measured: Json) -> str:
    """What was done and what came out, in three sentences."""
    sae, tokens = config["sae"], inputs["examples"].summary["tokens"]
    site, target = (_in_words(config["metadata"].get(name)) for name in ("site", "target"))
    does = f"reads {site} (counted from 0)"
    labelled = sum(label is not None for label in table["label"])
    scored = [row for row in zip(table["score"], table["baseline"], strict=True) if None not in row]
    name, many = _architecture(sae)
    many = many.format(k=sae["k"], l0=write(estimate(measured.get("l0"))[0]))
    who = f"A {name} sparse autoencoder"
    if target:
        who, does = "A transcoder", f"{does}, predicts {target}"
    text = (
        f"{who} {does} and writes each of {tokens:,} tokens as {many} "
        f"of {sae['n_latents']:,} latents. {labelled:,} of them have a label, and {len(scored):,} fire "
        "often enough on held-out text for the label to be scored"
    )
    if not scored:
        return text + "."
    score, baseline = (statistics.median(column) for column in zip(*scored, strict=True))
    above = sum(score > baseline for score, baseline in scored) / len(scored)
    return (
        f"{text}: the median label reaches {score:.2f} balanced accuracy where a mere look-up of the token reaches "
        f"{baseline:.2f}, and {above:.0%} of the labels beat it."
    )


def sites(config: Json) -> str:
    """The site that an autoencoder's cfg.json names, and a transcoder's target."""
    return " → ".join(config["metadata"][name] for name in ("site", "target") if name in config["metadata"])


def _in_words(site: str | None) -> str:
    kind, _, layer = (site or "").partition(".")
    return SITES.get(kind, "the site {}").format(layer) if site else ""


def _architecture(sae: Json) -> tuple[str, str]:
    """Its name, and how many latents a token is written as, with {k} or {l0}."""
    name, many = ARCHITECTURES[sae.get("architecture", "topk")]
    return name, "at most {k}" if sae.get("selection") == "row" else many


def notes(labels: Artifact, table: Json) -> list[str]:
    """What a reader must know before believing the labels."""
    found = []
    if labels.summary.get("labeller") == "keywords":
        why = labels.summary.get("why", "no language model was asked")
        found.append(
            f"The labels are key words: {why}. They name the words a feature fires on, not what these have in common."
        )
    few = sum(score is None and rate > 0 for score, rate in zip(table["score"], table["rate"], strict=True))
    if few:
        found.append(f"{few:,} living features have no score, most often for too few held-out activations.")
    return found


def figures(measured: Json, known: Mapping[str, tuple[str, str, str]]) -> list[Json]:
    """The tiles: name, value, spread, explanation."""
    tiles = []
    for key, (name, explanation, form) in known.items():
        value, low, high = estimate(measured.get(key))
        if value is not None:
            spread = f"{write(low, form)} to {write(high, form)}" if low is not None and high is not None else ""
            tiles.append({"name": name, "value": write(value, form), "unit": "", "spread": spread,
                          "explanation": explanation})  # fmt: skip
    return tiles


def estimate(found: Any) -> tuple[float | None, float | None, float | None]:
    """(value, low, high) of a number, of {"value", "low", "high"}, or of nothing."""
    if isinstance(found, dict) and "value" in found:
        return found["value"], found.get("low"), found.get("high")
    if isinstance(found, int | float) and not isinstance(found, bool):
        return found, None, None
    return None, None, None


def write(value: float | None, form: str = "number") -> str:
    """A figure as people read it."""
    if value is None:
        return ""
    if form == "percent":
        return f"{100 * value:.1f}%"
    if form == "share":
        return f"{value:.3f}"
    if isinstance(value, int) or (value == int(value) and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


# Which figures of each stage's summary are told, and under which name. Others stay out: some describe how a run went
# (trusted files, rates), and the page must have the same bytes whenever its inputs have the same digests.
MODEL = {
    "parameters": "Parameters", "layers": "Layers", "d_model": "Width", "vocabulary": "Vocabulary",
    "validation_bits_per_byte": "Bits per byte, held out", "bigram_bits_per_byte": "Bits per byte, bigram",
}  # fmt: skip
CORPUS = {"documents": "Documents", "rows": "Rows", "bytes": "Bytes"}
TRAINING = {"steps": "Training steps", "activations": "Activations seen", "tokens": "Activations seen",
            "batch_size": "Activations per step"}  # fmt: skip
LABELS = {"labeller": "Labeller", "labelled": "Labelled", "too_few_examples": "Too few examples",
          "no_pattern": "No pattern found", "not_chosen": "Not chosen"}  # fmt: skip
FURTHER = {
    "ce": "Loss of the model itself", "ce_ablated": "Loss with zeros instead", "cosine_similarity": "Mean cosine",
    "paired_share": "Share with a near twin",
    "activations": "Activations measured", "text_rows": "Rows of text measured", "text_tokens": "Tokens predicted",
}  # fmt: skip
SCORES = {"scorer": "Scorer", "scored": "Scored", "too_few": "Too few examples", "unanswered": "Unanswered",
          "median_score": "Median score", "median_baseline": "Median token look-up"}  # fmt: skip


def facts(
    config: Json, inputs: Mapping[str, Artifact], archives: list[Artifact], measured: Json, known: Mapping[str, Any]
) -> list[Json]:
    """Small tables: where everything came from, and what else was measured."""
    sae = config["sae"]
    further = [(FURTHER.get(key, key.replace("_", " ")), write(estimate(value)[0])) for key, value in measured.items()
               if key not in known and estimate(value)[0] is not None]  # fmt: skip
    groups = [
        ("Model", [("Name", _model_name(inputs["model"])), *_told(inputs["model"], MODEL)]),
        ("Text", [*_told(inputs["corpus"], CORPUS), ("Archived shards", write(len(archives)))]),
        (
            "Autoencoder",
            [
                ("Site", sites(config)),
                ("Latents", write(sae["n_latents"])),
                *_sparsity(sae),
                ("Width of the activations", write(sae["d_in"])),
                ("Normalisation", sae["normalization"].replace("_", " ")),
                *_told(inputs["sae"], TRAINING),
            ],
        ),
        ("Labels and scores", [*_told(inputs["labels"], LABELS), *_told(inputs["scores"], SCORES)]),
        ("Further figures", further),
    ]
    return [{"name": name, "rows": rows} for name, rows in groups if rows]


def _sparsity(sae: Json) -> list[tuple[str, str]]:
    name, many = _architecture(sae)
    how = "at most" if many.startswith("at most") else "on average"
    kept = [(f"Active per token, {how} (k)", write(sae["k"]))] if sae["k"] else []
    if sae.get("skip"):
        name += " with a linear skip"
    return kept if name == "TopK" else [("Architecture", name), *kept]


def _told(artifact: Artifact, names: Mapping[str, str]) -> list[tuple[str, str]]:
    found = [(name, artifact.summary.get(key)) for key, name in names.items()]
    return [(name, value if isinstance(value, str) else write(value)) for name, value in found if value]


def _model_name(model: Artifact) -> str:
    """The last part of its source, which is a hub name or a path; what was trained here has no name of its own."""
    source = str(model.summary.get("source", ""))
    if source in ("", "trained here"):
        return "a model trained here"
    return source.rstrip("/").rpartition("/")[2]
