"""Scorers: from a label and tokens in their contexts to a guess which of them make the latent fire.

A scorer sees the label and the held-out examples, never their activations. `keywords` matches tokens; `claude` asks a
language model in batches, several examples of one latent in each request.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from tasks.claude.prices import estimate_dollars, tokens_of
from tasks.examples.table import Example
from tasks.label.labellers import BYTES_PER_EXAMPLE, claude_params

if TYPE_CHECKING:
    from tasks.artifacts import Workspace

SYSTEM = """\
You check the description of a feature of a language model. The feature fires on some tokens of a text and is silent \
on all others. You get the description (Label) and numbered lines of text; in each line one token is marked with \
<< >>. Say for each line whether the feature fires on the marked token there, judged by the description alone. The \
same token may make the feature fire in one line and not in another: look at its context, above all at the text to \
its left. Only the marked token counts, even if another one in the line fits better. Any number of lines may be \
right, also none or all. ↵ is a line break; tokens may be parts of words.

Answer with the numbers of the lines in which the feature fires on the marked token.
"""

ANSWER_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"active": {"type": "array", "items": {"type": "integer"}}},
    "required": ["active"],
    "additionalProperties": False,
}


class Task(NamedTuple):
    """One latent to be scored: its row of labels.parquet and the held-out examples."""

    latent: int
    label: Mapping[str, Any]
    examples: Sequence[Example]


Guesses = list[bool | None]  # one for each example; None where no answer came


class Scorer(Protocol):
    """Anything that can guess from a label where a latent fires."""

    name: str

    def guess(self, tasks: Iterable[Task], total: int, out: "Workspace") -> dict[int, Guesses]:
        """The guesses by latent; `total` latents are coming at most."""
        ...

    def summary(self) -> dict[str, Any]:
        """Figures for people, such as what it cost."""
        ...

    def dollars(self, latents: int, examples: int) -> float:
        """Upper estimate of the bill for so many latents with so many held-out examples each."""
        ...


class KeywordScorer:
    """Guesses active where the token, or the one before it, is a keyword of the label."""

    name = "keywords"

    def guess(self, tasks: Iterable[Task], total: int, out: "Workspace") -> dict[int, Guesses]:
        """Asks nobody. The key words of a Claude label match a token or its whole word, whatever its case."""
        found: dict[int, Guesses] = {}
        for task in tasks:
            found[task.latent] = [_matches(task.label, example) for example in task.examples]
            out.report(len(found), total, "latents")
        return found

    def summary(self) -> dict[str, Any]:
        """Nothing was paid."""
        return {}

    def dollars(self, latents: int, examples: int) -> float:
        """Free."""
        return 0.0


class ClaudeScorer:
    """Requests of a Message Batch: `per_request` marked tokens each, positives and negatives mixed."""

    name = "claude"

    def __init__(self, model: str, per_request: int, max_tokens: int, seed: int) -> None:
        self.model, self.per_request, self.max_tokens, self.seed = model, per_request, max_tokens, seed
        self._summary: dict[str, Any] = {}

    def guess(self, tasks: Iterable[Task], total: int, out: "Workspace") -> dict[int, Guesses]:
        """Raises InputError before anything is sent when the key or the budget does not allow it."""
        from tasks.claude import run_batches
        from tasks.claude.requests import Request

        places: dict[str, list[int]] = {}  # request -> which examples stand on its lines
        found: dict[int, Guesses] = {}
        asked = []
        for latent, label, examples in tasks:
            found[latent] = [None] * len(examples)
            for number, group in enumerate(self._groups(latent, len(examples))):
                name = f"{latent}-{number}"
                places[name] = group
                asked.append(Request(name, self.params(label["label"], [examples[index] for index in group])))
        answers = run_batches(asked, parse_active, out)
        self._summary = answers.summary
        for name, outcome in answers.outcomes.items():
            if outcome.status == "answered":
                latent = int(name.partition("-")[0])
                for line, index in enumerate(places[name], 1):
                    found[latent][index] = line in outcome.value
        return found

    def params(self, label: str, examples: Sequence[Example]) -> dict[str, Any]:
        """The parameters of one request."""
        lines = [f"{number}. {example.text([example.hit])}" for number, example in enumerate(examples, 1)]
        text = "\n".join([f"Label: {label}", "", *lines])
        return claude_params(self.model, self.max_tokens, SYSTEM, text, ANSWER_SCHEMA)

    def summary(self) -> dict[str, Any]:
        """Outcomes, tokens and dollars."""
        return self._summary

    def dollars(self, latents: int, examples: int) -> float:
        """Upper estimate before there are examples."""
        requests = latents * -(-examples // self.per_request)
        size = len(json.dumps(self.params("x" * 100, []))) + self.per_request * BYTES_PER_EXAMPLE
        return requests * estimate_dollars(self.model, tokens_of(size), self.max_tokens)

    def _groups(self, latent: int, count: int) -> list[list[int]]:
        """The examples in a random order, cut into requests: no place tells a positive."""
        import numpy as np

        order = np.random.default_rng([self.seed, latent]).permutation(count).tolist()
        return [order[start : start + self.per_request] for start in range(0, count, self.per_request)]


def parse_active(text: str) -> set[int]:
    """The numbers of an answer; raises ValueError that says what is wrong with it."""
    answer = json.loads(text)
    active = answer.get("active") if isinstance(answer, dict) else None
    if not isinstance(active, list) or not all(type(number) is int for number in active):
        raise ValueError(f"active is {str(active)[:80]!r}, not a list of line numbers")
    return set(active)


def _matches(label: Mapping[str, Any], example: Example) -> bool:
    from tasks.label.keywords import matches

    if label["labeller"] == "keywords":
        return matches(label["keywords"], label["previous_keywords"], example)
    words = {word.strip().casefold() for word in label["keywords"]}
    return example.token.strip().casefold() in words or example.word.casefold() in words
