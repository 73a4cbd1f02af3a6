"""Labellers: from examples of a latent to a sentence that says what it fires on.

A labeller takes (latent, examples of the label half) and gives a `Label` for each; `keywords` asks nobody, `claude`
asks a language model in batches. The prompt goes the way of llama3_interpretability_sae (key words, groups, outliers,
then the label), with examples from across the distribution of activations and silent tokens beside them.
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tasks.claude.prices import estimate_dollars, tokens_of
from tasks.examples.table import Example

if TYPE_CHECKING:
    from tasks.artifacts import Workspace
    from tasks.claude.requests import Outcome

LEVELS = 10
LONGEST_LABEL = 300  # characters; more is no label but an essay
BYTES_PER_EXAMPLE = 180  # a window of 33 tokens with its marks, for estimates before there are examples

SYSTEM = """\
You study one feature of a sparse autoencoder that was trained on the activations of a language model. The feature is \
active on some tokens of a text and silent on all others. Your task is to find out what its active tokens have in \
common.

You get examples from across the range of its activations, one per line. Active tokens stand in << >>; the level \
before each example tells how strongly the feature fired there, from 1 (weakest) to 10 (strongest). Tokens in [[ ]] \
come from examples where the feature stayed silent at that token although it may look similar. ↵ is a line break. \
Tokens may be parts of words; the text to the left of a token is all that the model had seen when it fired.

Go step by step and fill in the fields of the answer in this order:
1. key_words: up to eight tokens or words that are most typical of the marked places, as they are written.
2. groups: which groups the examples fall into: by the token itself, by what comes before it, by meaning, by grammar \
or by position. Strong examples are the better evidence; weak ones tell how far the pattern reaches.
3. outliers: which examples fit no group, and whether the silent tokens contradict your groups.
4. common_semantic: one short phrase that names the pattern, as narrow as the examples allow and as wide as they \
need: from it alone someone must be able to tell, for any token in any text, whether the feature fires. Do not \
describe the feature or the examples as such; name what they are about.
5. certainty: a number from 0 (the examples have nothing in common) to 1 (each example, strong or weak, fits and no \
silent token does).
"""

ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "key_words": {"type": "array", "items": {"type": "string"}},
        "groups": {"type": "string"},
        "outliers": {"type": "string"},
        "common_semantic": {"type": "string"},
        "certainty": {"type": "number"},
    },
    "required": ["key_words", "groups", "outliers", "common_semantic", "certainty"],
    "additionalProperties": False,
}


class Label(NamedTuple):
    """One row of labels.parquet: a label, or the reason why there is none."""

    latent: int
    label: str | None
    certainty: float | None  # 0 to 1
    labeller: str
    keywords: list[str]  # tokens that make it fire; exact for `keywords`, as written by Claude for `claude`
    previous_keywords: list[str]  # tokens after which it fires (`keywords` only)
    status: str  # labelled, too few examples, not chosen, no pattern, refused, malformed, errored, expired, canceled
    reason: str | None
    examples: int  # that the labeller was given


class Labeller(Protocol):
    """Anything that can name what the active tokens of a latent have in common."""

    name: str

    def label(self, given: Iterable[tuple[int, list[Example]]], total: int, out: "Workspace") -> list[Label]:
        """A label, or a reason, for each latent; `total` latents are coming."""
        ...

    def summary(self) -> dict[str, Any]:
        """Figures for people, such as what it cost."""
        ...

    def dollars(self, latents: int) -> float:
        """Upper estimate of the bill before there are examples."""
        ...


def unlabelled(latent: int, labeller: str, status: str, reason: str, examples: int = 0) -> Label:
    """A row that says why there is no label."""
    return Label(latent, None, None, labeller, [], [], status, reason, examples)


class KeywordLabeller:
    """Over-represented current or previous tokens, ordered by activation mass."""

    name = "keywords"

    def label(self, given: Iterable[tuple[int, list[Example]]], total: int, out: "Workspace") -> list[Label]:
        """Exact and repeatable; asks nobody."""
        from tasks.label.keywords import keywords

        rows = []
        for latent, examples in given:
            positives = [example for example in examples if example.role == "label_positive"]
            found = keywords(positives, [example for example in examples if "negative" in example.role])
            if found is None:
                reason = "no current or previous token is over-represented where it fires"
                rows.append(unlabelled(latent, self.name, "no pattern", reason, len(positives)))
            else:
                rows.append(Label(latent, found.text, found.certainty, self.name, found.current, found.previous,
                                  "labelled", None, len(positives)))  # fmt: skip
            out.report(len(rows), total, "latents")
        return rows

    def summary(self) -> dict[str, Any]:
        """Nothing was paid."""
        return {}

    def dollars(self, latents: int) -> float:
        """Free."""
        return 0.0


class ClaudeLabeller:
    """One request of a Message Batch per latent."""

    name = "claude"

    def __init__(self, model: str, examples_per_latent: int, max_tokens: int) -> None:
        self.model, self.examples_per_latent, self.max_tokens = model, examples_per_latent, max_tokens
        self._summary: dict[str, Any] = {}

    def label(self, given: Iterable[tuple[int, list[Example]]], total: int, out: "Workspace") -> list[Label]:
        """Raises InputError before anything is sent when the key or the budget does not allow it."""
        from tasks.claude import run_batches
        from tasks.claude.requests import Request

        shown = {latent: show(examples, self.examples_per_latent) for latent, examples in given}
        asked = [Request(f"{latent}", self.params(text)) for latent, (text, _) in shown.items()]
        answers = run_batches(asked, parse_label, out)
        self._summary = answers.summary
        return [_label(latent, answers.outcomes[f"{latent}"], number) for latent, (_, number) in shown.items()]

    def params(self, text: str) -> dict[str, Any]:
        """The parameters of one request; the instructions are the same in all of them and read from the cache."""
        return claude_params(self.model, self.max_tokens, SYSTEM, text, ANSWER_SCHEMA)

    def summary(self) -> dict[str, Any]:
        """Outcomes, tokens and dollars."""
        return self._summary

    def dollars(self, latents: int) -> float:
        """Upper estimate before there are examples."""
        size = len(json.dumps(self.params(""))) + self.examples_per_latent * BYTES_PER_EXAMPLE
        return latents * estimate_dollars(self.model, tokens_of(size), self.max_tokens)


def claude_params(model: str, max_tokens: int, system: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a message with structured output and instructions that are cached for an hour."""
    instructions = {"type": "text", "text": system, "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    return {
        "model": model,
        "max_tokens": max_tokens,
        "system": [instructions],
        "messages": [{"role": "user", "content": text}],
        "output_config": {"format": {"type": "json_schema", "schema": schema}},
    }


def show(examples: Sequence[Example], most: int) -> tuple[str, int]:
    """The examples of one latent as text, and how many are active ones.

    A third are the strongest rows, the rest come from evenly spaced ranks of the uniform sample.
    """
    top = [example for example in examples if example.role == "top"][: most // 3]
    taken = {(example.row_id, example.position) for example in top}
    sample = [e for e in examples if e.role == "label_positive" and (e.row_id, e.position) not in taken]
    sample.sort(key=lambda example: (-example.activation, example.row_id, example.position))
    active = sorted(top + _spaced(sample, most - len(top)), key=lambda example: -example.activation)
    silent = _spaced([example for example in examples if example.role == "label_negative_same_row"], most // 4)
    strongest = max(max(example.activations) for example in active)
    lines = []
    for number, example in enumerate(active, 1):
        level = max(1, math.ceil(LEVELS * example.activation / strongest))
        fires = [index for index, value in enumerate(example.activations) if value > 0]
        lines.append(f"Example {number} (level {level}): {example.text(fires)}")
    lines += [f"Silent {number}: {example.text([example.hit], '[[', ']]')}" for number, example in enumerate(silent, 1)]
    return "\n".join(lines), len(active)


def parse_label(text: str) -> tuple[str, float, list[str]]:
    """Label, certainty and key words of an answer, checked; raises ValueError that says what is wrong with it."""
    answer = json.loads(text)
    if not isinstance(answer, dict):
        raise ValueError(f"the answer is no object: {text[:80]!r}")
    label, certainty, key_words = (answer.get(name) for name in ("common_semantic", "certainty", "key_words"))
    if not isinstance(label, str) or not 0 < len(label.strip()) <= LONGEST_LABEL:
        raise ValueError(f"common_semantic is {str(label)[:80]!r}, not a phrase of 1 to {LONGEST_LABEL} characters")
    if isinstance(certainty, bool) or not isinstance(certainty, int | float) or not 0 <= certainty <= 1:
        raise ValueError(f"certainty is {certainty!r}, not a number from 0 to 1")
    if not isinstance(key_words, list) or not all(isinstance(word, str) for word in key_words):
        raise ValueError(f"key_words is {str(key_words)[:80]!r}, not a list of words")
    return " ".join(label.split()), float(certainty), [word for word in key_words if word.strip()]


def _label(latent: int, outcome: "Outcome", examples: int) -> Label:
    if outcome.status != "answered":
        return unlabelled(latent, "claude", outcome.status, outcome.reason, examples)
    label, certainty, key_words = outcome.value
    return Label(latent, label, certainty, "claude", key_words, [], "labelled", None, examples)


def _spaced(examples: Sequence[Example], most: int) -> list[Example]:
    """`most` of them at evenly spaced ranks, first and last included."""
    if len(examples) <= most:
        return list(examples)
    if most <= 1:
        return list(examples[:most])
    return [examples[round(rank * (len(examples) - 1) / (most - 1))] for rank in range(most)]
