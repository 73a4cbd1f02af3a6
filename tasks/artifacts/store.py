"""A store of artifacts: which files make an artifact, and the one step that commits it.

    <store>/store.json                                     the format of all that (tasks/artifacts/format.py)
    <store>/<stage>/<key>/manifest.json                    written last: the commit
    <store>/<stage>/<key>/attempts/<attempt>/...           data files, never overwritten
    <store>/<stage>/<key>/attempts/<attempt>.json          that attempt's own copy of its manifest
    <store>/<stage>/<key>/attempts/<attempt>.owner         who is filling it and from what, meanwhile
    <store>/<stage>/<key>/progress/...                     mutable; removed after the commit
"""

import functools
from collections.abc import Callable, Iterator

from tasks.artifacts.files import Files, open_files
from tasks.artifacts.format import FORMAT, format_of, require_readable, write_format
from tasks.artifacts.manifest import InputReference, Manifest, read_manifest
from tasks.artifacts.overlay import Overlay
from tasks.errors import ArtifactError, StoreError
from tasks.settings import settings

Unreadable = Callable[[str, str, ArtifactError], None]  # is told of a manifest that cannot be read: stage, key, why


class Store:
    """Artifacts below one URL, over those of a shared store where there is one (tasks/artifacts/overlay.py).

    Cheap to make; `open_store` keeps one per process and URL.
    """

    def __init__(self, url: str, base: str | None = None) -> None:
        self._layers = [open_files(place) for place in (url, base) if place is not None]
        self.own = self._layers[0]  # without what a shared store below shows
        self.files: Files = self.own if base is None else Overlay(*self._layers)
        self._readable = False  # once it is known that none of them is of a newer format
        self.url = self.files.url

    def manifest(self, stage: str, key: str) -> Manifest | None:
        """The committed manifest of a key, or None. Reads nothing else: existence is the commit."""
        path = manifest_path(stage, key)
        found = self._read(path)
        if found is not None and (found.stage, found.key) != (stage, key):
            raise ArtifactError(
                f"The manifest {self.url}/{path} belongs to {found.stage}/{found.key[:12]}: it was copied here. "
                f"Remove the folder {stage}/{key[:12]}..., or run {stage} again with --force."
            )
        return found

    def attempt(self, reference: InputReference) -> Manifest | None:
        """The manifest of one exact attempt, also of one that `--force` has superseded."""
        folder = attempt_folder(reference.stage, reference.key, reference.attempt)
        found = self._read(f"{folder}.json")
        if found is None:
            current = self.manifest(reference.stage, reference.key)
            found = current if current is not None and current.attempt == reference.attempt else None
        return found

    def commit(self, manifest: Manifest, replace: bool = False) -> Manifest:
        """Makes an attempt the artifact of its key and returns the manifest that holds now.

        The first commit of a key wins (where the store can create exclusively); a later one of the same key goes on
        with the winner. `replace` (from --force) repoints the key instead.
        """
        self._mark()
        text = manifest.to_json().encode()
        self.files.write(f"{attempt_folder(manifest.stage, manifest.key, manifest.attempt)}.json", text)
        path = manifest_path(manifest.stage, manifest.key)
        if replace:
            self.files.write(path, text)
        else:
            self.files.create(path, text)
        held = self.manifest(manifest.stage, manifest.key)
        if held is None:
            raise StoreError(f"{self.url}/{path} was written but cannot be read back; run the same command again.")
        return held

    def stages(self) -> list[str]:
        """Names of the stages that have anything stored."""
        return [name for name in self.files.folders("") if not name.startswith(".")]

    def keys(self, stage: str) -> list[str]:
        """Keys of a stage that have anything stored, committed or not."""
        return self.files.folders(stage)

    def manifests(self, stage: str | None = None, unreadable: Unreadable | None = None) -> Iterator[Manifest]:
        """All committed manifests, of one stage or of all.

        One that is torn or foreign is told to `unreadable` and passed over; without it, raised.
        """
        for name in [stage] if stage else self.stages():
            for key in self.keys(name):
                try:
                    found = self.manifest(name, key)
                except ArtifactError as error:
                    if unreadable is None:
                        raise
                    unreadable(name, key, error)
                    continue
                if found is not None:
                    yield found

    def check(self) -> None:
        """Tries to write: a wrong key, a missing bucket, a dead endpoint or a read-only disk is said at once."""
        self.files.check()

    def _mark(self) -> None:
        """Gives a store that holds nothing yet the format of today."""
        if not format_of(self.own) and next(Store(self.own.url).manifests(unreadable=lambda *_: None), None) is None:
            write_format(self.own, FORMAT)

    def _read(self, path: str) -> Manifest | None:
        if not self._readable:
            for files in self._layers:
                require_readable(files)
            self._readable = True
        text = self.files.read(path)
        return None if text is None else read_manifest(text, f"{self.url}/{path}")


@functools.lru_cache(maxsize=16)
def open_store(url: str) -> Store:
    """The store at a URL, one per process, over the shared one of SAEFLOW_BASE_STORE if there is one."""
    return Store(url, settings().base_store)


def own_store(url: str) -> Store:
    """The store at a URL without a shared one below it: for what looks after a store."""
    return Store(url)


def key_folder(stage: str, key: str) -> str:
    """Folder of one key, relative to the store."""
    return f"{stage}/{key}"


def manifest_path(stage: str, key: str) -> str:
    """Path of a key's manifest, relative to the store."""
    return f"{key_folder(stage, key)}/manifest.json"


def attempt_folder(stage: str, key: str, attempt: str) -> str:
    """Folder of one attempt's data files, relative to the store."""
    return f"{key_folder(stage, key)}/attempts/{attempt}"


def progress_folder(stage: str, key: str) -> str:
    """Folder of a key's progress, relative to the store."""
    return f"{key_folder(stage, key)}/progress"
