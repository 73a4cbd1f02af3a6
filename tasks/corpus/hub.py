"""A corpus from a data set of the Hugging Face hub, streamed by the `datasets` library at a pinned commit.

if is_dataset("org/stories"):
    for piece in read_dataset("org/stories", None, "train", commit, column="text"): ...
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from tasks.corpus.sources import Piece, is_text_file, value_piece
from tasks.errors import InputError

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_dataset(path: str) -> bool:
    """Whether a path means a hub data set: two plain words and a slash, no text file, and no folder of this machine."""
    return _NAME.fullmatch(path) is not None and not is_text_file(path) and not Path(path.partition("/")[0]).is_dir()


def read_dataset(
    name: str, subset: str | None, part: str, commit: str, column: str, chats: bool = False
) -> Iterator[Piece]:
    """One piece for each row of one part ("train") of a data set, which is a document each.

    Raises InputError for a part, subset or column it does not have, and when the hub fails.
    """
    from datasets import load_dataset
    from huggingface_hub import constants

    online = not constants.is_offline_mode()  # offline, what this machine has prepared before is read
    try:
        rows = iter(load_dataset(name, subset, split=part, revision=commit, streaming=online))
        number = 0
        while (row := next(rows, None)) is not None:
            if column not in row:
                raise InputError(
                    f"The data set {name} has no column {column!r}; it has {', '.join(row)}. "
                    "Set corpus.column to one of these."
                )
            yield value_piece(row[column], number, f"{name}, {part}, row {number}", 0, chats)
            number += 1
    except (OSError, ValueError, RuntimeError) as error:
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"The data set {name} ({subset or 'default'}, {part}) cannot be read: {line} "
            "Check corpus.subset and corpus.part, and that the hub can be reached."
        ) from error
