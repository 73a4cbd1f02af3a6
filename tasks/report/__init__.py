"""Report: one offline HTML file with the run's figures, its training curves and a searchable table of features.

    REPORT.build(store, ReportSpec(), model=..., corpus=..., archives=[...], rows=..., sae=..., metrics=...,
                 examples=..., labels=..., scores=...)

The page asks for nothing outside itself and opens from a file. Its texts come from an untrusted corpus: the template
escapes them, JSON is embedded so that it cannot end its script element, and page.js makes text nodes only.
The same inputs give the same bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import Field

from tasks.artifacts import Artifact, Spec, Stage, Summary, Workspace

Json = dict[str, Any]
FOLDER = Path(__file__).parent
# metrics.json -> name, what it means, how it is written. Others are shown under "Further figures".
FIGURES = {
    "fvu": (
        "Variance unexplained",
        "Share of the activations' variance that the reconstruction misses (FVU); 1 is no better than their mean.",
        "share",
    ),
    "l0": ("Latents per token", "How many latents are active on a token, on average (L0).", "number"),
    "ce_recovered": (
        "Prediction kept",
        "How much of the model's predictive power survives on the reconstruction; zeroed activations are 0%.",
        "percent",
    ),
    "ce_spliced": (
        "Loss on the reconstruction",
        "Cross-entropy per token, in nats, when the reconstruction replaces the activations.",
        "number",
    ),
    "kl": (
        "Change of prediction",
        "KL divergence, in nats per token, from the model's own predictions to those on the reconstruction.",
        "number",
    ),
    "dead_share": ("Dead latents", "Share of the latents that fired on no token of the measurement.", "percent"),
}
CURVES = {
    "fvu": ("Variance unexplained", "Share of the variance the reconstruction misses, per batch"),
    "loss": ("Loss", "What the training minimises, per batch"),
    "l0": ("Latents per token", "Active latents per token, per batch"),
    "dead_share": ("Dead latents", "Share of latents that have not fired for a while"),
    "dead_share_quarter": ("Silent latents", "Share of latents that have not fired for a quarter of that while"),
    "deaths": ("Deaths", "How often a latent has died so far"),
    "revivals": ("Revivals", "How often a dead latent has fired again so far"),
    "auxiliary": ("Auxiliary loss", "What dead latents are trained on"),
    "lr": ("Learning rate", "Step size of the optimizer"),
}


class ReportSpec(Spec):
    """How much text the page carries."""

    features_with_texts: int = Field(
        3000, ge=0, title="Features with texts", json_schema_extra={"position": 0},
        description="Features whose texts are in the file, best scores first; the table lists all.",
    )  # fmt: skip
    texts_per_kind: int = Field(
        8, ge=1, le=50, title="Texts of each kind", json_schema_extra={"position": 1},
        description="Strongest texts and typical texts of each such feature.",
    )  # fmt: skip
    curve_points: int = Field(
        400, ge=10, title="Points of a curve", json_schema_extra={"position": 2},
        description="Longer training histories are thinned to so many points.",
    )  # fmt: skip


def report(
    spec: ReportSpec,
    out: Workspace,
    *,
    model: Artifact,
    corpus: Artifact,
    archives: list[Artifact],
    rows: Artifact,
    sae: Artifact,
    metrics: Artifact,
    examples: Artifact,
    labels: Artifact,
    scores: Artifact,
) -> Summary:
    """Writes report.html."""
    from tasks.report.data import feature_table, feature_texts

    inputs = {
        "model": model, "corpus": corpus, "rows": rows, "sae": sae, "metrics": metrics,
        "examples": examples, "labels": labels, "scores": scores,
    }  # fmt: skip
    table = feature_table(examples, labels, scores)
    out.report(1, 3, "parts")
    strings, blocks, table["block"] = feature_texts(examples, table, spec.features_with_texts, spec.texts_per_kind)
    out.report(2, 3, "parts")
    data = {
        "features": table,
        "strings": strings,
        "history": _history(sae, spec.curve_points),
        "labeller": labels.summary.get("labeller", "an unknown labeller"),
    }
    page = _page(inputs, archives, table)
    html = render(page, data, blocks)
    (out.path / "report.html").write_text(html, encoding="utf-8", newline="\n")
    out.report(3, 3, "parts")
    size = (out.path / "report.html").stat().st_size
    return {"features": len(table["latent"]), "with_texts": sum(map(len, blocks)), "megabytes": round(size / 1e6, 2)}


def render(page: Json, data: Json, blocks: list[Json]) -> str:
    """The page as one HTML text; everything in `page` and `data` may hold any characters at all."""
    import jinja2
    from markupsafe import Markup

    loader = jinja2.FileSystemLoader(FOLDER)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.jinja").render(
        page=page,
        data=Markup(embedded_json(data)),
        blocks=[Markup(embedded_json(block)) for block in blocks],
        css=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        js=Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
    )


def embedded_json(value: Any) -> str:
    """Compact JSON that is inert inside a script element: no `<`, so neither `</script>` nor `<!--` can occur.

    Lone surrogates, which UTF-8 cannot carry, stay escaped; NaN and infinity are refused because JSON has none.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return "".join(c if not "\ud800" <= c <= "\udfff" else f"\\u{ord(c):04x}" for c in text)


def _history(sae: Artifact, points: int) -> Json:
    """Training curves, thinned evenly; the last step is always there."""
    import pyarrow.parquet as pq

    with sae.local("history.parquet") as path:
        table = pq.read_table(path)
    stride = max(1, -(-len(table) // points))
    kept = [index for index in range(len(table)) if (len(table) - 1 - index) % stride == 0]
    columns = {name: _plain(table[name].take(kept).to_pylist()) for name in table.column_names}
    steps = columns.pop("step")
    named = [name for name in CURVES if name in columns]
    series = [{"name": CURVES[name][0], "explanation": CURVES[name][1], "values": columns[name]} for name in named]
    return {"step": steps, "series": [one for one in series if any(value is not None for value in one["values"])]}


def _plain(values: list[Any]) -> list[Any]:
    """Finite numbers to five digits; None for the rest."""
    return [None if value is None or value - value != 0 else float(f"{value:.5g}") for value in values]


def _page(inputs: dict[str, Artifact], archives: list[Artifact], table: Json) -> Json:
    """What the template shows as text."""
    from tasks.report.text import facts, figures, headline, lede, notes

    config = inputs["sae"].json("cfg.json")
    measured = inputs["metrics"].json("metrics.json")
    title = headline(config, inputs["model"])
    return {
        "title": title,
        "headline": title,
        "lede": lede(config, inputs, table, measured),
        "notes": notes(inputs["labels"], table),
        "figures": figures(measured, FIGURES),
        "facts": facts(config, inputs, archives, measured, FIGURES),
        "inputs": [(name, artifact.digest[:12]) for name, artifact in sorted(inputs.items())],
    }


REPORT = Stage("report", version=1, spec=ReportSpec, run=report)
