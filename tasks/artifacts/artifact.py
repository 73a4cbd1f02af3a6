"""An artifact as a stage reads it: verified files, small enough to travel to a Ray worker."""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.artifacts.manifest import DataFile, InputReference, Manifest
from tasks.artifacts.store import Store, attempt_folder, open_store
from tasks.errors import ArtifactError
from tasks.settings import settings

Summary = dict[str, Any]

# Files this process has read whole and found right: (path, size, mtime_ns) -> nothing is hashed twice.
_verified: set[tuple[str, int, int]] = set()


@dataclass(frozen=True)
class Artifact:
    """One committed artifact: where it is and its manifest. Pickles without credentials."""

    store_url: str
    manifest: Manifest

    @property
    def stage(self) -> str:
        """Name of the stage that made it."""
        return self.manifest.stage

    @property
    def key(self) -> str:
        """Key of the work that made it (64 hex digits)."""
        return self.manifest.key

    @property
    def digest(self) -> str:
        """Digest of its content (64 hex digits)."""
        return self.manifest.digest

    @property
    def summary(self) -> Summary:
        """The figures its stage reported."""
        return self.manifest.summary

    @property
    def reference(self) -> InputReference:
        """How a later manifest names it."""
        found = self.manifest
        return InputReference(stage=found.stage, key=found.key, attempt=found.attempt, digest=found.digest)

    @property
    def location(self) -> str:
        """Where its data files lie, for people and links."""
        return self._store.files.place(self._folder)

    def url(self, name: str) -> str:
        """A link to one of its data files, for a browser."""
        location = self.location
        return f"{location}/{name}" if "://" in location else f"file://{location}/{name}"

    def names(self) -> list[str]:
        """Its data files, sorted, relative paths with forward slashes."""
        return [file.path for file in self.manifest.files]

    def path(self, name: str) -> Path:
        """A verified local path of one data file; a download is kept in the cache for the next reader.

        Raises ArtifactError when the file is missing or its size or sha256 differ from the manifest.
        """
        entry = self.manifest.file(name)
        stored = self._store.files.local(f"{self._folder}/{name}")
        if stored is not None:
            self._verify(stored, entry)
            return stored
        kept = settings().cache / "artifacts" / self.digest / self.manifest.attempt / name
        with contextlib.suppress(ArtifactError):  # a copy that is absent or damaged is fetched (again)
            self._verify(kept, entry)
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        with self._download(entry, kept.parent) as temporary:
            temporary.replace(kept)
            _verified.add(_state(kept))
        return kept

    @contextlib.contextmanager
    def local(self, name: str) -> Iterator[Path]:
        """As `path`, for big files that are read once: a downloaded copy is removed when the block ends."""
        if self._store.files.local(f"{self._folder}/{name}") is not None:
            yield self.path(name)
            return
        scratch = settings().scratch
        scratch.mkdir(parents=True, exist_ok=True)
        with self._download(self.manifest.file(name), scratch) as temporary:
            yield temporary

    def folder(self) -> Path:
        """A local folder that holds its data files, verified, and nothing else.

        Raises ArtifactError also for a foreign file: libraries read whatever lies in a folder they are given.
        """
        paths = [self.path(name) for name in self.names()]
        if not paths:
            raise ArtifactError(f"The {self.stage} artifact {self.key[:12]} has no data files.")
        depth = len(Path(self.names()[0]).parts)
        folder = paths[0].parents[depth - 1]
        there = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        foreign = sorted(name for name in set(there) - set(self.names()) if not name.rpartition("/")[2].startswith("."))
        if foreign:
            raise ArtifactError(
                f"The folder {folder} of the {self.stage} artifact {self.key[:12]} has files that do not belong to it "
                f"({', '.join(foreign[:6])}): move them elsewhere."
            )
        return folder

    def json(self, name: str) -> Any:
        """A small JSON data file, parsed."""
        import json

        return json.loads(self.path(name).read_bytes())

    def verify(self) -> list[str]:
        """Reads every data file and returns one sentence per file that is missing or altered; [] when all is well."""
        faults = []
        for entry in self.manifest.files:
            try:
                with self.local(entry.path):
                    pass
            except (ArtifactError, FileNotFoundError) as error:
                faults.append(str(error))
        return faults

    @property
    def _store(self) -> Store:
        return open_store(self.store_url)

    @property
    def _folder(self) -> str:
        return attempt_folder(self.stage, self.key, self.manifest.attempt)

    @contextlib.contextmanager
    def _download(self, entry: DataFile, folder: Path) -> Iterator[Path]:
        handle, name = tempfile.mkstemp(prefix=".download-", dir=folder)
        os.close(handle)
        temporary = Path(name)
        try:
            try:
                self._store.files.download(f"{self._folder}/{entry.path}", temporary)
            except FileNotFoundError as error:
                raise self._fault(entry, "it is missing") from error
            self._verify(temporary, entry)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _verify(self, path: Path, entry: DataFile) -> None:
        try:
            seen = _state(path)
        except FileNotFoundError as error:
            raise self._fault(entry, "it is missing") from error
        _, size, _ = seen
        if size != entry.size:
            raise self._fault(entry, f"it has {size} bytes instead of {entry.size}")
        if seen in _verified:
            return
        found = sha256_file(path)
        if found != entry.sha256:
            raise self._fault(entry, f"its sha256 is {found[:12]}... instead of {entry.sha256[:12]}...")
        _verified.add(seen)

    def _fault(self, entry: DataFile, what: str) -> ArtifactError:
        return ArtifactError(
            f"The file {entry.path} of the {self.stage} artifact {self.key[:12]} is damaged: {what} ({self.location}). "
            f"Make it again with --force {self.stage}, or restore the file."
        )


def _state(path: Path) -> tuple[str, int, int]:
    """What tells that a file has not changed since it was read: (path, size, mtime_ns)."""
    state = path.stat()
    return str(path), state.st_size, state.st_mtime_ns


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, as 64 hex digits; reads in pieces, so memory stays flat."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
