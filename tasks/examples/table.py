"""Reading the examples artifact latent by latent, as labellers and scorers see it.

    for latent, found in examples_by_latent(examples, {"label_positive", "label_negative_random"}): ...
"""

from collections.abc import Collection, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tasks.artifacts import Artifact

BATCH_ROWS = 16_384
COLUMNS = ("latent", "role", "half", "row_id", "position", "activation", "tokens", "activations", "hit",
           "word_start", "word_end")  # fmt: skip
ENOUGH = 20  # activations in the score half: with fewer a score means little, and by default there is none


class Example(NamedTuple):
    """One token in its context; the fields are the columns of examples.parquet."""

    latent: int
    role: str
    half: str
    row_id: int
    position: int
    activation: float
    tokens: list[str]
    activations: list[float]
    hit: int
    word_start: int
    word_end: int

    @property
    def token(self) -> str:
        """The token in question."""
        return self.tokens[self.hit]

    @property
    def previous(self) -> str:
        """The token before it; empty at the beginning of a row."""
        return self.tokens[self.hit - 1] if self.hit else ""

    @property
    def word(self) -> str:
        """The whole word it belongs to."""
        return "".join(self.tokens[self.word_start : self.word_end]).strip()

    def text(self, marks: Collection[int], left: str = "<<", right: str = ">>") -> str:
        """The window on one line, with some of its tokens marked."""
        pieces = []
        for index, token in enumerate(self.tokens):
            if index in marks and token.strip():
                body = token.strip()
                before, after = token[: token.index(body)], token[token.index(body) + len(body) :]
                token = f"{before}{left}{body}{right}{after}"
            elif index in marks:  # a space or a line break that counts
                token = f"{left}{token}{right}"
            pieces.append(token)
        return "".join(pieces).replace("\r", "").replace("\n", "↵")


def examples_by_latent(examples: "Artifact", roles: Collection[str]) -> Iterator[tuple[int, list[Example]]]:
    """(latent, its examples of the roles in the order of the file), latents ascending; without any it is left out."""
    with examples.local("examples.parquet") as path:
        for latent, found in groupby(_rows(str(path), roles), key=lambda example: example.latent):
            yield latent, list(found)


def _rows(path: str, roles: Collection[str]) -> Iterator[Example]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    wanted = pa.array(sorted(roles), pa.string())
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(BATCH_ROWS, columns=list(COLUMNS)):
            table = pa.table(batch)
            kept = table.filter(pc.is_in(pc.cast(table["role"], pa.string()), value_set=wanted))
            columns = [kept[name].to_pylist() for name in COLUMNS]
            yield from map(Example._make, zip(*columns, strict=True))
