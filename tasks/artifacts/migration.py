"""Brings a store of an older format up to date, step by step.

Each step may be repeated and leaves a store that is readable meanwhile; the store's format is written when a step has
ended. So a migration that was killed is simply run again.
"""

from collections.abc import Callable, Iterator

from tasks.artifacts.format import FORMAT, require_readable, write_format
from tasks.artifacts.store import Store, attempt_folder


def _own_manifests(store: Store) -> None:
    """0 to 1: each attempt has a manifest of its own, so that lineage still names it when another attempt took over."""
    for manifest in store.manifests():
        path = f"{attempt_folder(manifest.stage, manifest.key, manifest.attempt)}.json"
        if store.files.read(path) is None:
            store.files.write(path, manifest.to_json().encode())


MIGRATIONS: dict[int, Callable[[Store], None]] = {0: _own_manifests}  # by the format they start from


def migrate(store: Store) -> Iterator[int]:
    """Migrates a store (one's own, without a shared one below it); yields each format it has reached.

    Raises what a step raises: ArtifactError for a manifest that cannot be read, StoreError for a newer format.
    """
    for number in range(require_readable(store.files), FORMAT):
        MIGRATIONS[number](store)
        write_format(store.files, number + 1)
        yield number + 1
