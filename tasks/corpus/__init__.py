"""The corpus stage: text from wherever it lies becomes one parquet file of rows, in order, each counted or kept.

    CORPUS.build(store, CorpusSpec())                                        # the text every CPython carries
    CORPUS.build(store, CorpusSpec(path="stories/*.txt", unit="sentence"))
    CORPUS.build(store, CorpusSpec(path="s3://bucket/posts.jsonl", column="body", unit="document"))
    CORPUS.build(store, CorpusSpec(path="org/stories", max_rows=100_000))    # a data set on the hub
    CORPUS.build(store, CorpusSpec(path="lmsys/lmsys-chat-1m", column="conversation", unit="chat"))
    texts, row_ids = read_rows(artifact, 100, 200)

rows.parquet: doc_id int64, row_id int64 (0, 1, ... in order), text string. Nothing is dropped silently: the summary
counts what was empty, too short, too long, a duplicate, not UTF-8 or not JSON. Memory is bounded by one row group and
one document (with `deduplicate` also by 8 bytes and a set's overhead for each row).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from tasks.artifacts import Artifact, Spec, Stage, Summary, Workspace
from tasks.corpus.hub import is_dataset, read_dataset
from tasks.corpus.sources import Piece, Refused, Source, Text, Unit, find_files, pin_sources, read_source, split
from tasks.corpus.stdlib_text import LICENCE, stdlib_documents, stdlib_fingerprint
from tasks.errors import InputError, SpecError
from tasks.folders import home_expanded
from tasks.licence import licence_in, licence_on_hub
from tasks.model.files import hub_commit
from tasks.outside import trust_notice
from tasks.settings import Settings, settings

if TYPE_CHECKING:
    import numpy as np

ROWS = "rows.parquet"
ROWS_PER_GROUP = 8192  # what a reader of a slice must unpack at least
REASONS = ("empty", "too_short", "too_long", "duplicate", "not_utf8", "not_json")


class CorpusSpec(Spec):
    """Which text is read, and how it is cut into rows."""

    path: str | None = Field(
        None,
        description="File, folder, glob or URL of .txt, .jsonl or .parquet, or a data set's name on the hub; "
        "empty takes the text CPython carries.",
        title="Text",
        json_schema_extra={"position": 0},
    )
    column: str = Field(
        "text",
        description="Column that holds the text or the chat, of .jsonl and .parquet.",
        title="Column",
        json_schema_extra={"position": 1},
    )
    unit: Unit = Field(
        "sentence",
        description="What a row is: a sentence, a paragraph (between blank lines), a whole document, or a chat: a list "
        "of messages with role and content, which the model reads through its chat template.",
        title="Row",
        json_schema_extra={"position": 2},
    )
    max_rows: int | None = Field(
        None,
        ge=1,
        description="Stop after so many rows; empty takes all.",
        title="Most rows",
        json_schema_extra={"position": 3},
    )
    min_characters: int = Field(
        1,
        ge=1,
        description="Rows with fewer characters are left out.",
        title="Fewest characters",
        json_schema_extra={"position": 4},
    )
    max_characters: int = Field(
        20_000,
        ge=1,
        description="Rows with more characters are left out.",
        title="Most characters",
        json_schema_extra={"position": 5},
    )
    deduplicate: bool = Field(
        False,
        description="Leave out rows that came before, letter by letter.",
        title="Drop repeated rows",
        json_schema_extra={"position": 6},
    )
    invalid: Literal["error", "skip"] = Field(
        "error",
        description="A row that is not UTF-8 (or, in .jsonl, not JSON) ends the run, or is left out and counted.",
        title="Invalid rows",
        json_schema_extra={"position": 7},
    )

    subset: str | None = Field(
        None,
        description="Configuration of a hub data set; empty takes its default.",
        title="Subset",
        json_schema_extra={"position": 8},
    )
    part: str = Field("train", description="Split of a hub data set.", title="Split", json_schema_extra={"position": 9})
    revision: str | None = Field(
        None,
        description="Branch, tag or commit of a hub data set; empty takes main.",
        title="Revision",
        json_schema_extra={"position": 10},
    )

    @model_validator(mode="after")
    def _bounds(self) -> Self:
        if self.min_characters > self.max_characters:
            raise SpecError(
                f"corpus.min_characters {self.min_characters} is above corpus.max_characters {self.max_characters}, "
                "so no row could pass; lower the first."
            )
        return self

    def hashed(self) -> dict[str, Any]:
        """The fields, a local path made absolute: it names the same files wherever the command is given."""
        fields = super().hashed()
        if self.path is not None and "://" not in self.path and not is_dataset(self.path):
            fields["path"] = str(home_expanded(Path(self.path), "corpus.path").absolute())
        return fields


def pin_corpus(spec: CorpusSpec, settings: Settings) -> dict[str, Any]:
    """Facts about the text outside: the files' hashes, or the fingerprint of the standard library."""
    if spec.path is None:
        return stdlib_fingerprint()
    if is_dataset(spec.path):
        return {"commit": hub_commit(spec.path, spec.revision, "dataset")}
    facts, _ = pin_sources(find_files(spec.path), settings.cache)
    return {"files": facts}


def make_corpus(spec: CorpusSpec, out: Workspace) -> Summary:
    """Reads, cuts, filters and writes rows.parquet; raises InputError for an invalid row or when no row is left."""
    sources = find_files(spec.path) if spec.path is not None and not is_dataset(spec.path) else []
    pins, trusted = pin_sources(sources, settings().cache)
    if trusted:
        out.log(f"{spec.path}: {trust_notice(trusted, len(sources))}")
    counts: Counter[str] = Counter()
    with _Writer(out.path / ROWS) as writer:
        sizes = [int(pin["size"] or 0) for pin in pins]
        for document, text in _rows(spec, _pieces(spec, sources, sizes, out), counts):
            writer.add(document, text)
    if pin_sources(sources, settings().cache)[0] != pins:
        raise InputError(f"{spec.path} was changed while it was read; wait until it is written, then run again.")
    if not writer.rows:
        left_out = ", ".join(f"{counts[reason]} {reason.replace('_', ' ')}" for reason in REASONS if counts[reason])
        raise InputError(
            f"The corpus {spec.path or 'of the standard library'} has no row ({left_out or 'it is empty'}); "
            "check corpus.path, corpus.column and the limits of characters."
        )
    out.content(ROWS, writer.content.hexdigest())
    return {
        "source": spec.path or "the standard library's documentation",
        "rows": writer.rows,
        "documents": writer.documents,
        "bytes": writer.bytes,
        "files": len(sources),
        **{reason: counts[reason] for reason in REASONS},
        "licence": _licence(spec),
    }


def _licence(spec: CorpusSpec) -> str:
    if spec.path is None:
        return LICENCE
    if is_dataset(spec.path):
        return licence_on_hub(spec.path, hub_commit(spec.path, spec.revision, "dataset"), "dataset")
    path = home_expanded(Path(spec.path), "corpus.path")
    return licence_in(path if path.is_dir() else path.parent)


CORPUS = Stage("corpus", version=1, spec=CorpusSpec, run=make_corpus, pin=pin_corpus)


def holds_chats(corpus: Artifact) -> bool:
    """Whether the rows are conversations, as JSON lists of messages, rather than plain text."""
    return corpus.manifest.spec.get("unit") == "chat"


def read_rows(corpus: Artifact, start: int, stop: int) -> tuple[list[str], np.ndarray]:
    """Texts and row ids (int64) of the rows [start, stop); reads only the row groups that hold them."""
    import numpy as np
    import pyarrow.parquet as pq

    with pq.ParquetFile(corpus.path(ROWS)) as file:
        stop = min(stop, file.metadata.num_rows)
        first = start // ROWS_PER_GROUP
        groups = list(range(first, -(-stop // ROWS_PER_GROUP))) if start < stop else []
        table = file.read_row_groups(groups, columns=["row_id", "text"])
    table = table.slice(start - first * ROWS_PER_GROUP, max(stop - start, 0))
    return table["text"].to_pylist(), table["row_id"].to_numpy().astype(np.int64, copy=False)


def _pieces(spec: CorpusSpec, sources: list[Source], sizes: list[int], out: Workspace) -> Iterator[Piece]:
    """All pieces of all files, with reports of how far the reading is."""
    if spec.path is None:
        documents = stdlib_documents()
        for number, document in enumerate(documents):
            out.report(number + 1, len(documents), "documents")
            yield Text(number, document, 0)
        return
    if is_dataset(spec.path):
        commit = hub_commit(spec.path, spec.revision, "dataset")
        yield from read_dataset(spec.path, spec.subset, spec.part, commit, spec.column, spec.unit == "chat")
        return
    last, before = -1, 0
    for source, size in zip(sources, sizes, strict=True):
        for piece in read_source(source, spec.unit, spec.column, spec.max_characters, last + 1):
            if isinstance(piece, Text):
                last = piece.document
                out.report(before + min(piece.position, size), sum(sizes), "bytes")
            yield piece
        before += size


def _rows(spec: CorpusSpec, pieces: Iterator[Piece], counts: Counter[str]) -> Iterator[tuple[int, str]]:
    """(document, text) of the rows that pass, the others counted by reason; stops after `max_rows`."""
    seen: set[int] = set()
    passed = 0
    for piece in pieces:
        if isinstance(piece, Refused):
            _refuse(spec, piece)
            counts[piece.reason] += 1
            continue
        for text in split(piece.text, spec.unit):
            if reason := _unfit(spec, text, seen):
                counts[reason] += 1
                continue
            yield piece.document, text
            passed += 1
            if passed == spec.max_rows:
                return


def _unfit(spec: CorpusSpec, text: str, seen: set[int]) -> str | None:
    if not text:
        return "empty"
    if len(text) < spec.min_characters:
        return "too_short"
    if len(text) > spec.max_characters:
        return "too_long"
    if spec.deduplicate:
        form = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
        if form in seen:
            return "duplicate"
        seen.add(form)
    return None


def _refuse(spec: CorpusSpec, piece: Refused) -> None:
    if spec.invalid == "error" and piece.reason in ("not_utf8", "not_json"):
        raise InputError(
            f"{piece.where} is {piece.reason.replace('_', ' ').replace('utf8', 'UTF-8').replace('json', 'JSON')}; "
            "mend the file, or leave such rows out and have them counted with corpus.invalid=skip."
        )


class _Writer:
    """Writes rows in groups of one size, and hashes what they say: parquet itself carries its writer's version."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self.rows = self.documents = self.bytes = 0
        self.content = hashlib.sha256()
        self._path = path
        self._schema = pa.schema([("doc_id", pa.int64()), ("row_id", pa.int64()), ("text", pa.string())])
        self._waiting: list[tuple[int, int, str]] = []
        self._document = -1

    def __enter__(self) -> Self:
        import pyarrow.parquet as pq

        self._file = pq.ParquetWriter(self._path, self._schema, compression="zstd")
        return self

    def __exit__(self, *_: object) -> None:
        if self._waiting:
            self._flush()
        self._file.close()

    def add(self, document: int, text: str) -> None:
        """Takes the next row."""
        data = text.encode()
        self.content.update(f"{document} {len(data)} ".encode() + data)
        self.documents += document != self._document
        self._document = document
        self._waiting.append((document, self.rows, text))
        self.rows += 1
        self.bytes += len(data)
        if len(self._waiting) == ROWS_PER_GROUP:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = zip(*self._waiting, strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        table = pa.table(arrays, schema=self._schema)
        self._file.write_table(table, row_group_size=ROWS_PER_GROUP)
        self._waiting = []
