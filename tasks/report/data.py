"""What the report page holds besides its figures: the table of features and the texts of a bounded number of them.

    table = feature_table(examples, labels, scores)         # columns, one value a latent
    strings, blocks = feature_texts(examples, table, limit=3000, per_kind=8)

Everything is compact JSON values: columns instead of records, token strings by number, activations as levels 1-100 of
the latent's maximum, given only where a token fires.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from tasks.examples.table import Example, examples_by_latent

if TYPE_CHECKING:
    from tasks.artifacts import Artifact

Json = dict[str, Any]
WORDS = 6  # distinct words of the strongest texts, shown beside the label
BLOCK = 32  # features whose texts the page parses together, when the first of them is opened
NEIGHBOURS = 6


def feature_table(examples: Artifact, labels: Artifact, scores: Artifact) -> Json:
    """Columns of equal length, by latent; None where there is no value."""
    features = _columns(examples, "features.parquet", ("latent", "firing_rate", "score_count", "max", "mean"))
    label = _by_latent(labels, "labels.parquet", ("label", "certainty"), features["latent"])
    score = _by_latent(scores, "scores.parquet", ("status", "score", "low", "high", "baseline"), features["latent"])
    words = _top_words(examples)
    return {
        "latent": features["latent"],
        "label": label["label"],
        "certainty": _rounded(label["certainty"], 2),
        "status": score["status"],
        **{name: _rounded(score[name], 3) for name in ("score", "low", "high", "baseline")},
        "held": features["score_count"],
        "rate": _significant(features["firing_rate"]),
        "max": _significant(features["max"]),
        "mean": _significant(features["mean"]),
        "words": [words.get(latent, "") for latent in features["latent"]],
    }


def feature_texts(
    examples: Artifact, table: Json, limit: int, per_kind: int
) -> tuple[list[str], list[Json], list[int | None]]:
    """Token strings, blocks {latent: texts, tokens, neighbours}, and for each row of the table its block or None.

    The features are those with the best scores, then the most frequent; a file of any dictionary stays readable.
    """
    chosen = _most_telling(table, limit)
    block_of = {latent: place // BLOCK for place, latent in enumerate(sorted(chosen))}
    strings = Strings()
    blocks: list[Json] = [{} for _ in range(-(-len(block_of) // BLOCK))]
    maximum = dict(zip(table["latent"], table["max"], strict=True))
    more = _by_latent(
        examples,
        "features.parquet",
        ("neighbours", "neighbour_cosines", "promoted", "promoted_effects", "suppressed", "suppressed_effects"),
        sorted(chosen),
    )
    for place, latent in enumerate(sorted(chosen)):
        cosines = zip(more["neighbours"][place], _rounded(more["neighbour_cosines"][place], 2), strict=True)
        blocks[block_of[latent]][str(latent)] = {"top": [], "sample": [], "near": list(cosines)[:NEIGHBOURS]} | {
            name: [
                [strings.number(token), effect]
                for token, effect in zip(more[name][place], _rounded(more[f"{name}_effects"][place], 2), strict=True)
            ]
            for name in ("promoted", "suppressed")
        }
    for latent, found in examples_by_latent(examples, ("top", "label_positive")):
        if latent in chosen:
            texts = blocks[block_of[latent]][str(latent)]
            for example in found:
                kind = texts["top" if example.role == "top" else "sample"]
                if len(kind) < per_kind:
                    kind.append(_text(example, maximum[latent], strings))
            texts["sample"].sort(key=lambda text: -text[0])
    return strings.known, blocks, [block_of.get(latent) for latent in table["latent"]]


class Strings:
    """Numbers for strings, in the order of their first use."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, text: str) -> int:
        """The number of a string; the same for equal strings."""
        return self._numbers.setdefault(text, len(self._numbers))

    @property
    def known(self) -> list[str]:
        """All strings, by number."""
        return list(self._numbers)


def _text(example: Example, maximum: float, strings: Strings) -> list[Any]:
    """[activation, hit, word start, word end, row, first position, token numbers, pairs of index and level]."""
    heat = []
    for index, activation in enumerate(example.activations):
        if activation > 0 and maximum > 0:
            heat += [index, max(1, min(100, round(100 * activation / maximum)))]
    tokens = [strings.number(token) for token in example.tokens]
    activation = _significant([example.activation])[0]
    start = example.position - example.hit
    return [activation, example.hit, example.word_start, example.word_end, example.row_id, start, tokens, heat]


def _most_telling(table: Json, limit: int) -> set[int]:
    rows = zip(table["score"], table["rate"], table["latent"], strict=True)
    ranked = sorted((-(score or 0), -rate, latent) for score, rate, latent in rows if rate > 0)
    return {latent for *_, latent in ranked[:limit]}


def _top_words(examples: Artifact) -> dict[int, str]:
    """The commonest distinct words of each latent's strongest texts."""
    found = {}
    for latent, rows in examples_by_latent(examples, ("top",)):
        words = Counter(" ".join(row.word.split()) or row.token.replace("\n", "↵").strip() for row in rows)
        found[latent] = " · ".join(word for word, _ in words.most_common(WORDS) if word)
    return found


def _columns(artifact: Artifact, name: str, columns: tuple[str, ...]) -> dict[str, list[Any]]:
    import pyarrow.parquet as pq

    with artifact.local(name) as path:
        return pq.read_table(path, columns=list(columns)).to_pydict()


def _by_latent(artifact: Artifact, name: str, columns: tuple[str, ...], latents: list[int]) -> dict[str, list[Any]]:
    """Columns in the order of `latents`, None where the file has no row of a latent."""
    found = _columns(artifact, name, ("latent", *columns))
    place = {latent: index for index, latent in enumerate(found["latent"])}
    places = [place.get(latent) for latent in latents]
    return {column: [None if at is None else found[column][at] for at in places] for column in columns}


def _rounded(values: list[Any] | None, digits: int) -> list[Any]:
    return [None if value is None else round(value, digits) for value in values or []]


def _significant(values: list[Any]) -> list[Any]:
    """Four digits: more than anyone reads, half of the bytes."""
    return [None if value is None else float(f"{value:.4g}") for value in values]
