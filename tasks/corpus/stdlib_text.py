"""The demo's text: what every CPython carries, about 2 MB of English prose with no download.

First the language reference (`pydoc_data.topics`), then the docstrings and comments of the standard library, module by
module. The files are parsed, never imported, and read in sorted order, so one Python version always gives the same
text. Code, tables, doctests and underlines are left out, hard-wrapped lines are joined, and a sentence that was seen
before (licences, "New in version ...") is dropped.

    documents = stdlib_documents()          # a topic or a module each; paragraphs joined by an empty line
    facts     = stdlib_fingerprint()        # what decides the text, cheap enough for every `saeflow plan`
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import os
import platform
import re
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

from tasks.corpus.sentences import split_sentences
from tasks.errors import InputError

LICENCE = "PSF-2.0"  # of CPython, its documentation included
# Tests, installed packages, and packages whose text is grammar tables or menus.
SKIPPED_FOLDERS = frozenset(
    "__pycache__ test tests site-packages dist-packages idlelib lib2to3 lib-dynload ensurepip pydoc_data "
    "encodings".split()
)
_SKIPPED_FILES = re.compile(r"_sysconfigdata|sitecustomize|usercustomize")  # made on the machine, not part of CPython
_CONFIG_FOLDER = re.compile(r"config-\d")

_COMMENT = re.compile(r"\s*#+(?!!) ?(.*)")
_UNDERLINE = re.compile(r"\s*([-=*~^#_.+\"'])\1{2,}\s*$")
_BULLET = re.compile(r"\s*(?:[-*•+]|\(?\d{1,2}[.)])\s+")
_TABLE_OR_GRAMMAR = re.compile(r"\s*[+|]|.*::=|\s*\.\. ")
_ROLE = re.compile(r":[a-z:+-]+:`[~!]?([^`<]*)(?:<[^`]*>)?`")  # :func:`len` -> len
_MARKUP = re.compile(r"(``|`|\*\*)(\S(?:[^`*\n]*?\S)?)\1")  # ``x``, `x`, **x** -> x
_EMPHASIS = re.compile(r"(?<![\w*])\*(\w[\w .-]*)\*(?![\w*])")  # *x* -> x
_CODE = re.compile(r"[-=*~^#]{4}|>>>|::=| = | # |\^\^|^(?:except|class|import|return|def|if|for)\b.*[:\]]$")
_WORD = re.compile(r"[A-Za-z][a-z']+")
# CPython 3.11 counts the depth of `ast.parse` for all threads together: when the garbage collector lets another one in,
# both end with "SystemError: AST constructor recursion depth mismatch". Stages of one process run in threads.
_PARSING = threading.Lock()
_PLAIN_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "\xa0": " ", "\t": " "})


def stdlib_documents() -> list[str]:
    """The cleaned documents, paragraphs joined by an empty line; made once in a process.

    Raises InputError when this Python carries no sources of its standard library.
    """
    with _PARSING:
        return list(_documents(_stdlib_folder()))


@functools.cache
def _documents(folder: Path) -> tuple[str, ...]:
    seen: set[str] = set()
    documents = []
    for paragraphs in _raw_documents(folder):
        kept = [fresh for paragraph in paragraphs if (fresh := _unseen(paragraph, seen))]
        if kept:
            documents.append("\n\n".join(kept))
    if not documents:
        raise InputError(
            f"The standard library at {folder} holds no Python source files, from which the demo takes its "
            "text; run saeflow on a full CPython, or give your own with --set corpus.path=... and model.path=..."
        )
    return tuple(documents)


def stdlib_fingerprint() -> dict[str, str]:
    """The facts that pin the text: the Python version, and a sha256 over names and sizes of the files it is made of."""
    folder = _stdlib_folder()
    listing = hashlib.sha256()
    for path in [*_topics_file(folder), *_source_files(folder)]:
        listing.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
    return {"python": platform.python_version(), "sources": listing.hexdigest()}


def _stdlib_folder() -> Path:
    return Path(sysconfig.get_path("stdlib"))


def _topics_file(folder: Path) -> list[Path]:
    return [path for path in [folder / "pydoc_data" / "topics.py"] if path.is_file()]


def _source_files(folder: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):
        folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS and not _CONFIG_FOLDER.match(f))
        for file in sorted(files):
            if file.endswith(".py") and not _SKIPPED_FILES.match(file):
                yield Path(name, file)


def _raw_documents(folder: Path) -> Iterator[list[str]]:
    """Lists of cleaned paragraphs: the topics first, then one list per module."""
    for path in _topics_file(folder):
        for node in ast.parse(path.read_bytes()).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                for _, text in sorted(ast.literal_eval(node.value).items()):
                    yield list(prose(text))
    for path in _source_files(folder):
        yield list(_module_paragraphs(path.read_bytes()))


def _module_paragraphs(source: bytes) -> Iterator[str]:
    """Docstrings and comments of one module, in the order of their lines."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
            text := ast.get_docstring(node, clean=False)
        ):
            found.append((node.body[0].lineno, text))
    for _line, text in sorted([*found, *_comments(source)]):
        yield from prose(text)


def _comments(source: bytes) -> Iterator[tuple[int, str]]:
    """Runs of comment lines that end as a sentence does."""
    run: list[str] = []
    for number, line in enumerate([*source.decode("utf-8", "replace").splitlines(), ""], start=1):
        if comment := _COMMENT.match(line):
            run.append(comment[1])
            continue
        if run and run[-1].rstrip().endswith((".", "!", "?")):
            yield number - len(run), "\n".join(run)
        run = []


def prose(text: str) -> Iterator[str]:
    """The paragraphs of a docstring or topic that read as English, each on one line and without reST markup."""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text.translate(_PLAIN_QUOTES))):
        for lines in _logical_paragraphs(block.splitlines()):
            paragraph = _join(lines)
            if _reads_as_english(paragraph):
                yield paragraph


def _logical_paragraphs(lines: list[str]) -> Iterator[list[str]]:
    """Splits a block at bullets and where an indented stretch ends; ends it at a doctest, a table or a grammar rule."""
    paragraph: list[str] = []
    indent = 0
    for line in lines:
        if line.lstrip().startswith((">>>", "...")) or _TABLE_OR_GRAMMAR.match(line):
            break
        if _UNDERLINE.match(line):
            continue
        here = len(line) - len(line.lstrip())
        if paragraph and (_BULLET.match(line) or here < indent):
            yield paragraph
            paragraph = []
        indent = here + (2 if _BULLET.match(line) else 0)
        paragraph.append(line)
    if paragraph:
        yield paragraph


def _join(lines: list[str]) -> str:
    bullet = _BULLET.match(lines[0])
    text = " ".join(line.strip() for line in [lines[0][bullet.end() if bullet else 0 :], *lines[1:]])
    text = re.sub(r"(?<=[a-z])- (?=[a-z])", "-", text)  # a word that was wrapped at its hyphen
    text = _ROLE.sub(r"\1", text)
    text = _EMPHASIS.sub(r"\1", _MARKUP.sub(r"\2", text))
    return re.sub(r"\s+", " ", text.replace("::", ":")).strip()


def _reads_as_english(paragraph: str) -> bool:
    """Whether enough of it are words, and more where no full stop ends it; limits by eye over CPython 3.11."""
    if not paragraph or _CODE.search(paragraph):
        return False
    words = len(_WORD.findall(paragraph))
    plain = sum(character.isalpha() or character in " ,.'" for character in paragraph) / len(paragraph)
    if paragraph.endswith((".", "!", "?", ":", ")")):
        return words >= 4 and plain >= 0.85
    return words >= 5 and plain >= 0.93


def _unseen(paragraph: str, seen: set[str]) -> str:
    """The paragraph without the sentences that came before, where case and digits do not count as a difference."""
    kept = []
    for sentence in split_sentences(paragraph):
        form = re.sub(r"\d+", "0", sentence.lower())
        if form not in seen:
            seen.add(form)
            kept.append(sentence)
    return " ".join(kept)
