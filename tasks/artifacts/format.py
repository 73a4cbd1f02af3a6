"""The format of a whole store, in a small file at its root. A newer one is refused, an older one can be migrated.

    <store>/store.json      {"format": 1}       written before the first commit; a store without it is of format 0

What a single artifact holds is told by its manifest (`schema`) and by its stage's version; this number is for what lies
between them.
"""

import json

from tasks.artifacts.files import Files
from tasks.errors import StoreError

FORMAT = 1  # 0: attempts may lack a manifest of their own (tasks/artifacts/migration.py)
MARK = "store.json"


def format_of(files: Files) -> int:
    """The format of a store; 0 where it does not say. StoreError where it says no number."""
    data = files.read(MARK)
    if data is None:
        return 0
    try:
        return int(json.loads(data)["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{files.url}/{MARK} names no format of a store; if this saeflow made the store, it is "
            f'{{"format": {FORMAT}}}.'
        ) from error


def require_readable(files: Files) -> int:
    """The format of a store, which this saeflow can read; StoreError where it is a newer one."""
    found = format_of(files)
    if found > FORMAT:
        raise StoreError(
            f"The store {files.url} has format {found}, this saeflow reads formats up to {FORMAT}. Install the saeflow "
            "that made it, or name another store."
        )
    return found


def write_format(files: Files, number: int) -> None:
    """Marks a store as being of this format."""
    files.write(MARK, json.dumps({"format": number}).encode() + b"\n")
