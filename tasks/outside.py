"""Files that lie outside the store: their sha256, remembered so that a large model is not read at each `plan`.

A hash is remembered by (path, size, mtime) under the cache folder. Whoever changes a file and puts both back fools it,
so what an earlier process read and this one did not is told apart (`Pinned.trusted`) and said by the stages.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tasks.artifacts.artifact import sha256_file
from tasks.artifacts.key import sha256_text
from tasks.errors import InputError

# A file that is changed within one tick of its clock keeps its mtime; one that was written just now is not remembered.
SETTLED_SECONDS = 2.0

_read_here: set[str] = set()  # places of the files that this process has hashed itself


class Pinned(NamedTuple):
    """One outside file as it is now."""

    size: int
    sha256: str
    trusted: bool  # True when the hash was remembered and this process has not read the bytes


def pin_file(path: Path, cache: Path) -> Pinned:
    """Hashes a file, or trusts the remembered hash when size and mtime are as they were; `cache` is Settings.cache.

    Raises InputError when the file is missing or cannot be read.
    """
    try:
        state = path.stat()
        place = str(path.absolute())
        memory = cache / "pins" / f"{sha256_text(place)}.json"
        seen = {"path": place, "size": state.st_size, "mtime_ns": state.st_mtime_ns}
        known = _recall(memory)
        if {name: known.get(name) for name in seen} == seen:
            return Pinned(state.st_size, known["sha256"], trusted=place not in _read_here)
        sha256 = sha256_file(path)
        after = path.stat()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); check the path and its permissions, then run again."
        ) from error
    if (after.st_size, after.st_mtime_ns) != (state.st_size, state.st_mtime_ns):
        raise InputError(f"{path} was changed while it was read; wait until it is written, then run again.")
    if time.time() - state.st_mtime > SETTLED_SECONDS:
        _remember(memory, seen | {"sha256": sha256})
        _read_here.add(place)
    return Pinned(state.st_size, sha256, trusted=False)


def pin_files(root: Path, names: Iterable[str], cache: Path) -> tuple[list[dict[str, Any]], int]:
    """[{path, size, sha256}] of files below `root`, in the given order, and how many of them were trusted."""
    files, trusted = [], 0
    for name in names:
        pinned = pin_file(root / name, cache)
        files.append({"path": name, "size": pinned.size, "sha256": pinned.sha256})
        trusted += pinned.trusted
    return files, trusted


def trust_notice(trusted: int, total: int) -> str:
    """The sentence that says what was not read again."""
    return f"{trusted} of {total} files have the size and time they had when they were hashed, and were not read again."


def _recall(memory: Path) -> dict[str, Any]:
    try:
        return json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}  # never written, or by a process that was killed: the file is hashed again


def _remember(memory: Path, facts: dict[str, Any]) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=memory.parent)
    except OSError as error:
        raise InputError(
            f"The cache folder {memory.parent} cannot be written ({error.strerror}); set SAEFLOW_CACHE to another one."
        ) from error
    with os.fdopen(handle, "w") as file:
        json.dump(facts, file, sort_keys=True)
    Path(temporary).replace(memory)
