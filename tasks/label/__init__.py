"""The label stage: a phrase for every latent that fires often enough, or the reason why there is none.

    LABEL.build(store, LabelSpec(labeller="claude", max_latents=500), runtime, examples=found)

Reads only the label half of the examples; what `score` tests a label on is never seen here. With `keywords` the same
examples give the same bytes; with `claude` the artifact is what came back, and a killed run goes on at the request.
labels.parquet has one row for each latent: `tasks.label.labellers.Label` says what its columns mean.
"""

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tasks.artifacts import Artifact, Spec, Stage, Summary, Workspace
from tasks.examples.table import Example, examples_by_latent
from tasks.label.labellers import ClaudeLabeller, KeywordLabeller, Labeller, unlabelled
from tasks.row_table import write_rows
from tasks.settings import settings

if TYPE_CHECKING:
    from collections.abc import Iterator

ROLES = ("top", "label_positive", "label_negative_same_row", "label_negative_random")
COLUMNS = {
    "latent": "int32", "label": "string", "certainty": "float32", "labeller": "string", "keywords": "[string]",
    "previous_keywords": "[string]", "status": "string", "reason": "string", "examples": "int32",
}  # fmt: skip


class LabelSpec(Spec):
    """Who labels, which latents, and from how many examples."""

    labeller: Literal["keywords", "claude"] | None = Field(
        None, title="Labeller", json_schema_extra={"position": 0},
        description="keywords: over-represented tokens, no language model; claude: Message Batches (needs a key); "
        "empty: the run's labeller, or keywords.",
    )  # fmt: skip
    model: str = Field(
        "claude-haiku-4-5", title="Claude model", json_schema_extra={"position": 1},
        description="Claude model that labels; not used by keywords.",
    )  # fmt: skip
    max_latents: int | None = Field(
        None, ge=1, title="Latents at most", json_schema_extra={"position": 2},
        description="Label at most so many latents, drawn evenly at random; empty labels all that can be.",
    )  # fmt: skip
    min_examples: int = Field(
        5, ge=1, title="Fewest activations", json_schema_extra={"position": 3},
        description="Latents with fewer activations in the label half get no label.",
    )  # fmt: skip
    examples_per_latent: int = Field(
        16, ge=4, title="Examples for Claude", json_schema_extra={"position": 4},
        description="Active examples shown to Claude for one latent.",
    )  # fmt: skip
    max_tokens: int = Field(
        500, ge=100, title="Longest answer", json_schema_extra={"position": 5},
        description="Tokens of Claude's answer at most, thinking included; bounds the cost.",
    )  # fmt: skip
    prompt: Literal[1] = Field(
        1, title="Prompt version", json_schema_extra={"position": 6},
        description="Version of the prompt; a changed prompt is a new version.",
    )  # fmt: skip
    seed: int = Field(
        0, ge=0, lt=2**32, title="Seed", json_schema_extra={"position": 7},
        description="Seed of the draw when there are more latents than may be labelled.",
    )  # fmt: skip


def label(spec: LabelSpec, out: Workspace, *, examples: Artifact) -> Summary:
    """Writes labels.parquet; raises InputError before anything is paid when key or budget do not allow it."""
    labeller = _labeller(spec)
    positives = _label_half_counts(examples)
    enough = [latent for latent, count in enumerate(positives) if count >= spec.min_examples]
    chosen = set(_draw(enough, spec))
    rows = {row.latent: row for row in labeller.label(_given(examples, chosen), len(chosen), out)}
    for latent, count in enumerate(positives):
        if latent not in rows:
            rows[latent] = unlabelled(latent, labeller.name, *_why_not(count, spec))
    write_rows([rows[latent] for latent in sorted(rows)], COLUMNS, "labels.parquet", out)
    counts = {"latents": len(rows), "labelled": sum(row.status == "labelled" for row in rows.values())}
    for row in rows.values():
        if row.status != "labelled":
            name = row.status.replace(" ", "_")
            counts[name] = counts.get(name, 0) + 1
    return {"labeller": labeller.name, "why": _why(spec), **counts, **labeller.summary()}


def label_dollars(spec: LabelSpec, latents: int) -> float:
    """Upper estimate of the bill before there are examples; 0 for the keywords labeller."""
    return _labeller(spec).dollars(min(latents, spec.max_latents or latents))


def _labeller(spec: LabelSpec) -> Labeller:
    if spec.labeller == "claude":
        return ClaudeLabeller(spec.model, spec.examples_per_latent, spec.max_tokens)
    return KeywordLabeller()


def _label_half_counts(examples: Artifact) -> list[int]:
    """Activations in the label half, by latent."""
    import pyarrow.parquet as pq

    with examples.local("features.parquet") as path:
        table = pq.read_table(path, columns=["latent", "count", "score_count"]).sort_by("latent")
    counts, held_out = table["count"].to_pylist(), table["score_count"].to_pylist()
    return [whole - score for whole, score in zip(counts, held_out, strict=True)]


def _draw(enough: list[int], spec: LabelSpec) -> list[int]:
    import numpy as np

    if spec.max_latents is None or len(enough) <= spec.max_latents:
        return enough
    drawn = np.random.default_rng(spec.seed).choice(len(enough), spec.max_latents, replace=False)
    return [enough[index] for index in drawn]


def _given(examples: Artifact, chosen: set[int]) -> "Iterator[tuple[int, list[Example]]]":
    for latent, found in examples_by_latent(examples, ROLES):
        if latent in chosen:
            yield latent, [example for example in found if example.half == "label"]  # `top` spans both halves


def _why_not(count: int, spec: LabelSpec) -> tuple[str, str, int]:
    if count < spec.min_examples:
        reason = f"it fires {count} times in the label half, a label needs {spec.min_examples}"
        return "too few examples", reason, count
    return "not chosen", f"max_latents = {spec.max_latents} latents were drawn", 0


def _why(spec: LabelSpec) -> str:
    if spec.labeller == "claude":
        return f"{spec.model} was asked in Message Batches"
    if settings().anthropic_api_key is None:
        return "no language model was asked: ANTHROPIC_API_KEY is not set"
    return "no language model was asked: the settings say keywords"


LABEL = Stage("label", version=1, spec=LabelSpec, run=label, progress=True)
