"""Labels without a language model: the current or previous tokens that are over-represented where a latent fires.

    found = keywords(positives, negatives)          # of the label half
    matches(found, example)                         # does it predict that the latent fires on this token?

What a person can read off the tokens alone is the floor: a labeller that does not beat it, or the token look-up
beside it, has learnt nothing from the context.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from tasks.examples.table import Example

MOST = 8  # keywords in a label
OVER_REPRESENTED = 2.0  # times its share among silent tokens
LEAST_GAIN = 0.04  # of the activation mass; below it a keyword explains single examples
WORDS_SHOWN = 2
DIGITS = 9  # sums are compared rounded: added up in another order they must not decide otherwise


class Keywords(NamedTuple):
    """A label made of tokens, each exactly as the tokenizer has it, strongest first."""

    current: list[str]
    previous: list[str]
    certainty: float  # activation mass they cover - share of silent tokens they match, both on the label half
    text: str


class Lookup(NamedTuple):
    """The token look-up baseline: fires exactly on the tokens that are commoner among positives than negatives."""

    tokens: frozenset[str]

    def __call__(self, example: Example) -> bool:
        """Its prediction for one token."""
        return example.token in self.tokens


def keywords(positives: Sequence[Example], negatives: Sequence[Example]) -> Keywords | None:
    """The fewest keywords that cover most activation mass; None when no token stands out."""
    mass = sum(example.activation for example in positives)
    share: dict[tuple[str, str], float] = defaultdict(float)  # kind, token -> its share of the mass
    often: Counter[tuple[str, str]] = Counter()
    for example in positives:
        for keyword in _of(example):
            share[keyword] += example.activation / mass
            often[keyword] += 1
    silent = Counter(keyword for example in negatives for keyword in _of(example))

    def over(keyword: tuple[str, str]) -> float:
        return round(share[keyword] - OVER_REPRESENTED * (silent[keyword] + 0.5) / (len(negatives) + 1), DIGITS)

    stands_out = [keyword for keyword in share if often[keyword] >= min(2, len(positives)) and over(keyword) >= 0]
    chosen: list[tuple[str, str]] = []
    left = list(positives)
    while left and len(chosen) < MOST:
        gain: dict[tuple[str, str], float] = defaultdict(float)
        for example in left:
            for keyword in _of(example):
                gain[keyword] += example.activation / mass
        worth = {
            keyword: round(gain[keyword] - silent[keyword] / max(len(negatives), 1), DIGITS) for keyword in stands_out
        }
        best = max(sorted(worth), key=lambda keyword: worth[keyword], default=None)
        if best is None or worth[best] < LEAST_GAIN:
            break
        chosen.append(best)
        left = [example for example in left if best not in _of(example)]
    if not chosen:
        return None
    covered = 1 - sum(example.activation for example in left) / mass
    wrong = sum(any(keyword in chosen for keyword in _of(example)) for example in negatives) / max(len(negatives), 1)
    current = [token for kind, token in chosen if kind == "current"]
    previous = [token for kind, token in chosen if kind == "previous"]
    return Keywords(current, previous, max(0.0, covered - wrong), _text(current, previous, positives))


def matches(current: Sequence[str], previous: Sequence[str], example: Example) -> bool:
    """Whether the token or the one before it is a keyword."""
    return example.token in current or (bool(example.previous) and example.previous in previous)


def lookup(positives: Sequence[Example], negatives: Sequence[Example]) -> Lookup:
    """The look-up table of one latent, from the label half."""
    fires = Counter(example.token for example in positives)
    silent = Counter(example.token for example in negatives)
    more = [t for t in fires if fires[t] * max(len(negatives), 1) > silent[t] * len(positives)]
    return Lookup(frozenset(more))


def _of(example: Example) -> list[tuple[str, str]]:
    """The keywords an example could be explained by; `current` sorts first and so wins a tie."""
    found = [("current", example.token), ("previous", example.previous)]
    return [keyword for keyword in found if keyword[1]]


def _text(current: Sequence[str], previous: Sequence[str], positives: Sequence[Example]) -> str:
    """For people: “ing” (string, using), “the”; after “of”."""
    shown = []
    for token in current:
        words = Counter(example.word for example in positives if example.token == token)
        longer = [word for word, _ in words.most_common(WORDS_SHOWN) if word and word != token.strip()]
        shown.append(f"{_quoted(token)} ({', '.join(longer)})" if longer else _quoted(token))
    parts = [", ".join(shown)] if shown else []
    if previous:
        parts.append("after " + ", ".join(_quoted(token) for token in previous))
    return "; ".join(parts)


def _quoted(token: str) -> str:
    body = token.strip()
    if not body:
        body = {" ": "space", "\n": "line break", "\t": "tab"}.get(token, f"{len(token)} blanks")
        return body
    return f"“{body}”"
