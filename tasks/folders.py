"""Folders of this machine: whether there is such a home, whether they can be written, and what is in them."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import InputError


def home_expanded(path: Path, what: str) -> Path:
    """The path with a leading ~ or ~user replaced; InputError names `what` was given where there is no such home."""
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise InputError(f"{what} is {str(path)!r}, but there is no such home folder; write the path out.") from error


def nearest_existing(path: Path) -> Path:
    """The path itself or the first of its parents that is there."""
    return next(there for there in (path, *path.parents) if there.exists())


def why_not_writable(folder: Path) -> str | None:
    """Why no file can be written in a folder that may have to be made first; None when one can. Nothing stays."""
    there = nearest_existing(folder)
    if not there.is_dir():
        return f"{there} is no folder"
    try:
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=there, ignore_cleanup_errors=True):
            return None
    except OSError as error:
        return f"no folder can be made in {there} ({error.strerror})"


def files_below(folder: Path) -> Iterator[Path]:
    """All files below a folder, in no order. They may come and go meanwhile, which `rglob` cannot bear."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in names)
