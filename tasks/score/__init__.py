"""The score stage: how well each label predicts held-out activations, by the hard protocol.

    SCORE.build(store, ScoreSpec(scorer="keywords"), runtime, labels=labelled, examples=found)

The unit is a token in its context, from the score half of the rows, which no labeller has seen. Positives are a
uniform sample of all activations, strong and weak; half of the negatives are silent tokens of the same rows, half are
silent tokens of random rows. The score is the balanced accuracy of the scorer's guesses, with a bootstrap interval;
beside it stands the token look-up: a table of the tokens that fire in the label half. (Strong positives against
random negatives are told apart by the look-up alone at 0.93: such a score says nothing about a label.)
Under 20 held-out activations there is no number, and the status says "too few".
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

from pydantic import Field

from tasks.artifacts import Artifact, Spec, Stage, Summary, Workspace
from tasks.examples.table import ENOUGH, Example, examples_by_latent
from tasks.label.keywords import lookup
from tasks.row_table import write_rows
from tasks.score.detection import Accuracy, balanced_accuracy
from tasks.score.scorers import ClaudeScorer, Guesses, KeywordScorer, Scorer, Task

LABEL_ROLES = ("label_positive", "label_negative_same_row", "label_negative_random")
SCORE_ROLES = ("score_positive", "score_negative_same_row", "score_negative_random")
COLUMNS = {
    "latent": "int32", "status": "string", "reason": "string", "scorer": "string", "score": "float32", "low": "float32",
    "high": "float32", "baseline": "float32", "baseline_low": "float32", "baseline_high": "float32",
    "n_positive": "int32", "n_negative": "int32",
}  # fmt: skip
LEAST_NEGATIVES = 10  # with fewer silent tokens half of the score would rest on a handful
EXAMPLES = 80  # held-out examples of a latent by the default ExamplesSpec, for estimates


class ScoreSpec(Spec):
    """Who guesses, and when there are enough held-out examples for a number."""

    scorer: Literal["keywords", "claude"] | None = Field(
        None, title="Scorer", json_schema_extra={"position": 0},
        description="keywords: the label's key words decide; claude: asks in Message Batches (needs a key); "
        "empty: the run's labeller, or keywords.",
    )  # fmt: skip
    model: str = Field(
        "claude-haiku-4-5", title="Claude model", json_schema_extra={"position": 1},
        description="Claude model that guesses; not used by keywords.",
    )  # fmt: skip
    min_positives: int = Field(
        ENOUGH, ge=2, title="Fewest activations", json_schema_extra={"position": 2},
        description="Latents with fewer held-out activations get no number but 'too few'.",
    )  # fmt: skip
    resamples: int = Field(
        1000, ge=100, title="Bootstrap draws", json_schema_extra={"position": 3},
        description="Bootstrap draws for the 95% interval.",
    )  # fmt: skip
    examples_per_request: int = Field(
        20, ge=1, le=100, title="Tokens in a question", json_schema_extra={"position": 4},
        description="Marked tokens in one question to Claude.",
    )  # fmt: skip
    max_tokens: int = Field(
        300, ge=50, title="Longest answer", json_schema_extra={"position": 5},
        description="Tokens of Claude's answer at most, thinking included; bounds the cost.",
    )  # fmt: skip
    prompt: Literal[1] = Field(
        1, title="Prompt version", json_schema_extra={"position": 6},
        description="Version of the prompt; a changed prompt is a new version.",
    )  # fmt: skip
    seed: int = Field(
        0, ge=0, lt=2**32, title="Seed", json_schema_extra={"position": 7},
        description="Seed of the bootstrap and of the order in a question.",
    )  # fmt: skip


class Held(NamedTuple):
    """What is known of one latent's held-out tokens without asking anyone; arrays of equal length."""

    active: Any  # bool
    row_id: Any  # int64
    by_lookup: Any  # bool: the baseline's guesses


class Score(NamedTuple):
    """One row of scores.parquet: a score, or the reason why there is none."""

    latent: int
    status: str  # scored, too few, no label, unanswered
    reason: str | None
    scorer: str
    score: float | None
    low: float | None
    high: float | None
    baseline: float | None  # the token look-up; also where there is no label
    baseline_low: float | None
    baseline_high: float | None
    n_positive: int
    n_negative: int


def score(spec: ScoreSpec, out: Workspace, *, labels: Artifact, examples: Artifact) -> Summary:
    """Writes scores.parquet, one row for each latent; raises InputError before anything is paid that is not allowed."""
    scorer, rows = _scorer(spec), _labels(labels)
    held: dict[int, Held] = {}
    guesses = scorer.guess(_tasks(spec, rows, examples, held), len(rows), out)
    scores = [_score(spec, scorer.name, row, held.get(row["latent"]), guesses.get(row["latent"])) for row in rows]
    write_rows(scores, COLUMNS, "scores.parquet", out)
    out.report(len(rows), len(rows), "latents")
    return {**_figures(scores), "scorer": scorer.name, **scorer.summary()}


def score_dollars(spec: ScoreSpec, latents: int) -> float:
    """Upper estimate of the bill before there are examples; 0 for the keywords scorer."""
    return _scorer(spec).dollars(latents, EXAMPLES)


def _scorer(spec: ScoreSpec) -> Scorer:
    if spec.scorer == "claude":
        return ClaudeScorer(spec.model, spec.examples_per_request, spec.max_tokens, spec.seed)
    return KeywordScorer()


def _labels(labels: Artifact) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    with labels.local("labels.parquet") as path:
        return pq.read_table(path).sort_by("latent").to_pylist()


def _tasks(
    spec: ScoreSpec, rows: list[dict[str, Any]], examples: Artifact, held: dict[int, Held]
) -> Iterator[Task]:
    """Yields what a scorer may see of each labelled latent with enough held-out tokens; fills `held` on the way."""
    import numpy as np

    by_latent = {row["latent"]: row for row in rows}
    for latent, found in examples_by_latent(examples, {*LABEL_ROLES, *SCORE_ROLES}):
        test = held_out(found)
        fitted = [example for example in found if example.role in LABEL_ROLES]
        table = lookup([e for e in fitted if e.role == "label_positive"], [e for e in fitted if "negative" in e.role])
        active = np.array([example.role == "score_positive" for example in test], dtype=bool)
        row_id = np.array([example.row_id for example in test], dtype=np.int64)
        held[latent] = Held(active, row_id, np.array([table(example) for example in test], dtype=bool))
        label = by_latent.get(latent)
        if label is not None and label["status"] == "labelled" and _too_few(spec, active) is None:
            yield Task(latent, label, test)


def held_out(found: list[Example]) -> list[Example]:
    """Positives and negatives of the score half; as many negatives from the same rows as from random ones."""
    beside = [example for example in found if example.role == "score_negative_same_row"]
    far = [example for example in found if example.role == "score_negative_random"]
    each = min(len(beside), len(far))
    return [example for example in found if example.role == "score_positive"] + beside[:each] + far[:each]


def _too_few(spec: ScoreSpec, active: Any) -> str | None:
    positives, negatives = int(active.sum()), int((~active).sum())
    if positives < spec.min_positives:
        return f"{positives} held-out activations, a score needs {spec.min_positives}"
    if negatives < LEAST_NEGATIVES:
        return f"{negatives} held-out silent tokens, half of them from the same rows; a score needs {LEAST_NEGATIVES}"
    return None


def _score(spec: ScoreSpec, scorer: str, row: dict[str, Any], held: Held | None, guesses: Guesses | None) -> Score:
    import numpy as np

    latent = row["latent"]
    if held is None:
        none = np.zeros(0, dtype=bool)
        held = Held(none, np.zeros(0, dtype=np.int64), none)
    counts = int(held.active.sum()), int((~held.active).sum())
    nothing: tuple[None, None, None] = (None, None, None)
    if (reason := _too_few(spec, held.active)) is not None:
        return Score(latent, "too few", reason, scorer, *nothing, *nothing, *counts)
    baseline = _accuracy(spec, latent, held, held.by_lookup)
    if row["status"] != "labelled":
        return Score(latent, "no label", row["status"], scorer, *nothing, *baseline, *counts)
    answered = np.array([guess is not None for guess in guesses or ()], dtype=bool)
    told = Held(*(column[answered] for column in held)) if len(answered) else held
    if not len(answered) or _too_few(spec, told.active) is not None:
        reason = f"{int((~answered).sum())} of {sum(counts)} guesses did not come back"
        return Score(latent, "unanswered", reason, scorer, *nothing, *baseline, *counts)
    guessed = np.array([guess for guess in guesses or () if guess is not None], dtype=bool)
    counts = int(told.active.sum()), int((~told.active).sum())
    return Score(latent, "scored", None, scorer, *_accuracy(spec, latent, told, guessed), *baseline, *counts)


def _accuracy(spec: ScoreSpec, latent: int, held: Held, guessed: Any) -> Accuracy:
    """The same draws for score and baseline, so that they differ by their guesses alone."""
    return balanced_accuracy(held.active, guessed, held.row_id, spec.resamples, (spec.seed, latent))


def _figures(scores: list[Score]) -> dict[str, Any]:
    """What people want to see: how many, and how far above the look-up."""
    import statistics

    scored = [row for row in scores if row.score is not None and row.baseline is not None]
    above = [row for row in scored if (row.score or 0) > (row.baseline or 0)]
    statuses = {status: sum(row.status == status for row in scores) for status in ("too few", "no label", "unanswered")}
    return {
        "median_score": round(statistics.median(row.score or 0 for row in scored), 4) if scored else None,
        "median_baseline": round(statistics.median(row.baseline or 0 for row in scored), 4) if scored else None,
        "share_above_baseline": round(len(above) / len(scored), 4) if scored else None,
        "latents": len(scores),
        "scored": len(scored),
        **{status.replace(" ", "_"): count for status, count in statuses.items()},
    }


SCORE = Stage("score", version=1, spec=ScoreSpec, run=score, progress=True)
