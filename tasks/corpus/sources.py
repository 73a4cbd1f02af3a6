"""Where a corpus' text comes from: files found by path, glob or URL, read as documents in bounded memory.

    files = find_files("stories/*.txt")
    for piece in read_source(files[0], unit="sentence", column="text", longest=10_000, document=0): ...

A piece is text that belongs to one document (a line, a paragraph or all of it, as the unit needs), or `Refused`. Files
are .txt (a file is a document; a line `<|endoftext|>` ends one within it), .jsonl and .parquet (a row is a document);
.txt and .jsonl also packed (.gz, .bz2, .xz). A chat is a row's list of messages, kept as JSON.
Order: files by name, then as they stand in the file.
"""

from __future__ import annotations

import contextlib
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tasks.artifacts.faults import is_remote_fault
from tasks.corpus.sentences import split_paragraphs, split_sentences
from tasks.errors import InputError
from tasks.folders import home_expanded
from tasks.outside import pin_file

Unit = Literal["sentence", "paragraph", "document", "chat"]
TEXT, LINES, TABLE = (".txt", ".text", ".md"), (".jsonl", ".ndjson"), (".parquet",)
PACKED = (".gz", ".bz2", ".xz")
KINDS_SAID = ".txt, .jsonl or .parquet (.txt and .jsonl also as .gz, .bz2, .xz)"
DOCUMENT_END = b"<|endoftext|>"
LONGEST_LINE = 64 << 20  # bytes; what is longer is passed over without being held in memory
MESSAGE = ("role", "content")  # what is kept of a conversation's message
TABLE_ROWS = 1024  # read at a time from a parquet file


class Source(NamedTuple):
    """One file: its name for people and pins, and where it is."""

    name: str
    url: str
    local: bool


class Text(NamedTuple):
    """Text of one document, or a part of it; `position` is how many bytes of the file were read so far, if known."""

    document: int
    text: str
    position: int


class Refused(NamedTuple):
    """A row that cannot be taken: why, and where it is, as a sentence's beginning."""

    reason: Literal["empty", "too_long", "not_utf8", "not_json"]
    where: str


Piece = Text | Refused


def find_files(path: str) -> list[Source]:
    """The files a path, folder, glob or URL names, sorted; raises InputError when there are none or of another kind."""
    if "://" in path:
        found = [Source(url, url, local=False) for url in _remote_files(path)]
    else:
        base, files = _local_files(home_expanded(Path(path), "corpus.path").absolute())
        found = [Source(file.relative_to(base).as_posix(), str(file), local=True) for file in files]
    if not found:
        raise InputError(f"corpus.path is {path!r}, where there is no {KINDS_SAID} file; check the path.")
    for source in found:
        if _kind(source.url) is None:
            raise InputError(
                f"corpus.path names {source.url}, which is no {KINDS_SAID} file; convert it to one of these."
            )
    return found


def pin_sources(sources: list[Source], cache: Path) -> tuple[list[dict[str, Any]], int]:
    """What decides the bytes of the files: sha256 (local) or ETag (remote), and how many hashes were trusted."""
    facts, trusted = [], 0
    for source in sources:
        if source.local:
            pinned = pin_file(Path(source.url), cache)
            facts.append({"path": source.name, "size": pinned.size, "sha256": pinned.sha256})
            trusted += pinned.trusted
        else:
            facts.append(_remote_facts(source.url))
    return facts, trusted


def read_source(source: Source, unit: Unit, column: str, longest: int, document: int) -> Iterator[Piece]:
    """The pieces of one file; its documents are numbered from `document`. A row has at most `longest` characters."""
    kind = _kind(source.url)
    if kind == TABLE:
        yield from _read_table(source, column, document, unit == "chat")
    elif kind == TEXT and unit == "chat":
        raise InputError(f"corpus.unit is 'chat', but {source.url} is plain text; give .jsonl or .parquet.")
    else:
        yield from _read_lines(source, kind == LINES, unit, column, longest, document)


def split(text: str, unit: Unit) -> list[str]:
    """The rows of a piece; a chat is one."""
    if unit == "sentence":
        return split_sentences(text)
    return split_paragraphs(text) if unit == "paragraph" else [text.strip()]


def is_text_file(path: str) -> bool:
    """Whether a name ends as one of the files that are read here."""
    return _kind(path) is not None


def _kind(url: str) -> tuple[str, ...] | None:
    name = url.lower()
    for suffix in PACKED:
        name = name.removesuffix(suffix)
    kind = next((kind for kind in (TEXT, LINES, TABLE) if name.endswith(kind)), None)
    return None if kind == TABLE and name != url.lower() else kind


def _local_files(path: Path) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files."""
    try:
        if path.is_dir():
            return path, sorted(file for file in path.rglob("*") if file.is_file() and _kind(file.name))
        if path.exists():
            return path.parent, [path]
    except OSError as error:
        raise InputError(f"corpus.path {path} cannot be read ({error.strerror}); check its permissions.") from error
    fixed = next(parent for parent in path.parents if not set("*?[") & set(str(parent)))
    if fixed != path.parent or set("*?[") & set(path.name):
        return fixed, sorted(file for file in fixed.glob(str(path.relative_to(fixed))) if file.is_file())
    raise InputError(f"corpus.path is {str(path)!r}, but there is no such file or folder; check the path.")


def _remote_files(url: str) -> list[str]:
    import fsspec

    with _said(url):
        filesystem, path = fsspec.url_to_fs(url)
        if filesystem.isdir(path):
            found = [name for name in filesystem.find(path) if _kind(name)]
        else:
            found = filesystem.glob(path) if set("*?[") & set(path) else [path] * filesystem.exists(path)
        return sorted(filesystem.unstrip_protocol(name) for name in found)


def _remote_facts(url: str) -> dict[str, Any]:
    import hashlib

    import fsspec

    with _said(url):
        filesystem, path = fsspec.url_to_fs(url)
        info = filesystem.info(path)
        etag = next((str(info[name]) for name in ("ETag", "etag", "version_id") if info.get(name)), None)
        if etag is None:  # nothing but the bytes tells one version from another
            with filesystem.open(path, "rb") as file:
                etag = "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    return {"path": url, "size": info.get("size"), "etag": etag}


@contextlib.contextmanager
def _said(url: str) -> Iterator[None]:
    """Turns what a file system raises into one sentence that names the address and what to do."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError | ValueError | ImportError) or is_remote_fault(error):
            raise InputError(
                f"corpus.path {url!r} cannot be read ({error}); check the address and the credentials "
                "(for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL)."
            ) from error
        raise


def _read_lines(source: Source, as_json: bool, unit: Unit, column: str, longest: int, document: int) -> Iterator[Piece]:
    import fsspec

    try:
        with fsspec.open(source.url, "rb", compression="infer") as file:
            lines = _lines(file, source.name)
            if as_json:
                yield from _read_json(lines, column, document, unit == "chat")
            else:
                yield from _read_text(lines, unit, longest, document)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"{source.url} cannot be read to its end ({error}); fetch or pack it again.") from error


class Line(NamedTuple):
    """One line as bytes without its end, or None when it is too long; where it stands; bytes read up to its end."""

    raw: bytes | None
    where: str
    end: int


def _lines(file: Any, name: str) -> Iterator[Line]:
    number, offset = 0, 0
    while raw := file.readline(LONGEST_LINE):
        number, start, offset = number + 1, offset, offset + len(raw)
        rest = raw
        while not rest.endswith(b"\n") and (rest := file.readline(LONGEST_LINE)):
            offset += len(rest)
        whole = offset == start + len(raw)
        if start == 0:
            raw = raw.removeprefix(b"\xef\xbb\xbf")  # a byte order mark is no text
        yield Line(raw.rstrip(b"\r\n") if whole else None, f"{name}, line {number}, byte {start}", offset)


def _decode(raw: bytes, where: str) -> str | Refused:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        return Refused("not_utf8", f"{where} (byte {error.start} of it is 0x{raw[error.start]:02x})")


def _read_text(lines: Iterator[Line], unit: Unit, longest: int, document: int) -> Iterator[Piece]:
    """Lines, or lines gathered into paragraphs or documents; a refused line takes what it belongs to with it."""
    held: list[str] = []
    size, end = 0, 0
    refused: Refused | None = None

    def gathered() -> Iterator[Piece]:
        if refused or any(held):
            yield refused or Text(document, "\n".join(held), end)

    for line in lines:
        end = line.end
        finished = line.raw is not None and line.raw.strip() == DOCUMENT_END
        blank = line.raw is not None and not line.raw.strip()
        if finished or unit == "sentence" or (unit == "paragraph" and blank):
            yield from gathered()
            held, size, refused = [], 0, None
        if finished:
            document += 1
        elif line.raw is None:
            refused = refused or Refused("too_long", line.where)
        elif not blank or unit == "document":
            text = _decode(line.raw, line.where)
            size += len(text) + 1
            if isinstance(text, Refused):
                refused = refused if refused and refused.reason == text.reason else text
            elif unit != "sentence" and size > longest + 1:
                refused, held = refused or Refused("too_long", line.where), []
            else:
                held.append(text)
    yield from gathered()


def _read_json(lines: Iterator[Line], column: str, document: int, chats: bool) -> Iterator[Piece]:
    for line in lines:
        if line.raw is None:
            yield Refused("too_long", line.where)
        elif line.raw.strip():
            text = _decode(line.raw, line.where)
            yield text if isinstance(text, Refused) else _json_piece(text, column, document, line, chats)
            document += 1


def _json_piece(text: str, column: str, document: int, line: Line, chats: bool) -> Piece:
    try:
        row = json.loads(text)
    except ValueError as error:
        return Refused("not_json", f"{line.where} ({error})")
    if not isinstance(row, dict) or column not in row:
        has = ", ".join(row) if isinstance(row, dict) else f"a {type(row).__name__}"
        raise InputError(
            f"{line.where}: there is no column {column!r} (it has {has}); set corpus.column to one of these."
        )
    return value_piece(row[column], document, line.where, line.end, chats)


def value_piece(value: Any, document: int, where: str, position: int, chats: bool) -> Piece:
    """The piece a table's cell makes, text or a conversation; raises InputError for a cell that is neither."""
    if value is None or value == "" or value == []:
        return Refused("empty", where)
    text = _chat_text(value, where) if chats else value
    if not isinstance(text, str):
        raise InputError(f"{where}: the column holds a {type(value).__name__} instead of text; set corpus.column.")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        return Refused("not_utf8", f"{where} (character {error.start} of it is half of a surrogate pair)")
    return Text(document, text, position)


def _chat_text(value: Any, where: str) -> str:
    """A conversation as the corpus keeps it: its messages' roles and contents as JSON."""
    messages = value if isinstance(value, list) else []
    for message in messages:
        if not (isinstance(message, dict) and all(isinstance(message.get(name), str) for name in MESSAGE)):
            messages = []
    if not messages:
        raise InputError(
            f"{where}: the column holds no conversation, which is a list of messages with role and content "
            f"(it begins {str(value)[:60]!r}); set corpus.column, or corpus.unit=document for plain text."
        )
    return json.dumps([{name: message[name] for name in MESSAGE} for message in messages], ensure_ascii=False)


def _read_table(source: Source, column: str, document: int, chats: bool) -> Iterator[Piece]:
    import fsspec
    import pyarrow as pa
    import pyarrow.parquet as pq

    with fsspec.open(source.url, "rb") as file:
        try:
            table = pq.ParquetFile(file)
        except pa.ArrowInvalid as error:
            raise InputError(f"{source.url} cannot be read as parquet ({error}); write it again.") from error
        names = table.schema_arrow.names
        if column not in names:
            raise InputError(
                f"{source.url} has no column {column!r}; it has {', '.join(names)}. Set corpus.column to one of these."
            )
        kind = table.schema_arrow.field(column).type
        if not chats and not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)):
            raise InputError(f"The column {column!r} of {source.url} holds {kind} instead of text; set corpus.column.")
        number = 0
        for batch in table.iter_batches(batch_size=TABLE_ROWS, columns=[column]):
            cells = batch.column(0) if chats else batch.column(0).cast(pa.large_binary())
            for cell in cells.to_pylist():
                where = f"{source.name}, row {number}"
                value = _decode(cell, where) if isinstance(cell, bytes) else cell
                number += 1
                yield value if isinstance(value, Refused) else value_piece(value, document, where, 0, chats)
                document += 1
