"""What a running stage holds: an empty folder to fill, its progress, and a way to say how far it is."""

import contextlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.artifacts.lease import FORCED, LEASE, Lease, is_dead_mark, this_process
from tasks.artifacts.manifest import InputReference, Manifest
from tasks.artifacts.store import Store, attempt_folder, progress_folder
from tasks.errors import ArtifactError, InputError
from tasks.runtime import Runtime
from tasks.settings import settings

Report = Callable[[float, float, str], None]
REPORT_SECONDS = 0.2


class Progress:
    """A key's mutable files: they outlive a crash of the run and are removed after the commit."""

    def __init__(self, store: Store, stage: str, key: str, held: Lease) -> None:
        self._files = store.files
        self._folder = progress_folder(stage, key)
        self._held = held

    def write(self, name: str, data: bytes) -> None:
        """Writes or replaces one file in one step; LeaseLost when another driver holds the key now."""
        self._held.require()
        self._files.write(f"{self._folder}/{name}", data)

    def read(self, name: str) -> bytes | None:
        """One file's bytes, or None."""
        return self._files.read(f"{self._folder}/{name}")

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON value."""
        self.write(name, json.dumps(value, sort_keys=True).encode())

    def read_json(self, name: str) -> Any:
        """Reads a JSON value, or None when there is no such file."""
        data = self.read(name)
        return None if data is None else json.loads(data)

    def names(self, prefix: str = "") -> list[str]:
        """Names that begin with a prefix, sorted; what the core itself keeps there is not among them."""
        found = self._files.names(self._folder)
        return [name for name in found if name.startswith(prefix) and name not in (LEASE, FORCED)]

    def delete(self, name: str) -> None:
        """Removes a file or a folder."""
        self._held.require()
        self._files.remove(f"{self._folder}/{name}")

    def begin_anew(self) -> None:
        """For --force: forgets what an earlier run has left, but not what an interrupted forced run has done."""
        if self.read(FORCED) is None:
            self.clear()
            self.write(FORCED, b"")

    def clear(self) -> None:
        """Removes everything but the lease."""
        for top in sorted({name.split("/")[0] for name in self.names()} | {FORCED}):
            self.delete(top)

    @property
    def url(self) -> str:
        """URL (or local path) of the folder, from which another process opens its own `Files`."""
        return f"{self._files.url}/{self._folder}"


@dataclass
class Workspace:
    """Handed to a stage's function; everything left in `path` becomes the artifact's data."""

    path: Path
    scratch: Path
    key: str
    runtime: Runtime
    on_report: Report = lambda done, total, unit: None
    on_log: Callable[[str], None] = lambda message: None
    contents: dict[str, str] = field(default_factory=dict)
    held: Progress | None = None
    _reported: float = 0.0

    @property
    def progress(self) -> Progress:
        """The key's progress files; only for stages declared with progress=True."""
        if self.held is None:
            raise TypeError("This stage was not declared with Stage(..., progress=True), so it has no progress folder.")
        return self.held

    def report(self, done: float, total: float, unit: str) -> None:
        """Says how far the work is; cheap enough to call in every loop."""
        now = time.monotonic()
        if now - self._reported >= REPORT_SECONDS or done >= total:
            self._reported = now
            self.on_report(done, total, unit)

    def log(self, message: str) -> None:
        """Says something a person following the run wants to know."""
        self.on_log(message)

    def content(self, name: str, sha256: str) -> None:
        """Names what a data file means (64 hex digits), where its raw bytes carry an encoder's noise."""
        self.contents[name] = sha256


_open: "set[Attempt]" = set()  # attempts of this process that have not ended


def abandon_open() -> None:
    """Puts away what running stages have written; for a process that is about to end without them."""
    for attempt in list(_open):
        attempt.abandon()


class Attempt:
    """One attempt to fill a key: its folder in the store (local) or beside it (remote), and its end."""

    def __init__(self, store: Store, stage: str, key: str, reads: Iterable[InputReference] = ()) -> None:
        """`reads`: its inputs, which its mark names so that retention lets none of them go."""
        self.name = uuid.uuid4().hex[:12]
        self._store = store
        self._committing = False
        self._folder = attempt_folder(stage, key, self.name)
        self._scratch = own_scratch() / self.name
        _clean_dead_attempts(store, stage, key)
        mark = {"owner": this_process(), "reads": [reference.model_dump() for reference in reads]}
        store.files.write(f"{self._folder}.owner", json.dumps(mark).encode())
        self.path = store.files.local(self._folder) or self._scratch / "data"
        self.scratch = self._scratch / "work"
        self.path.mkdir(parents=True)
        self.scratch.mkdir(parents=True)
        _open.add(self)

    def store_file(self, path: Path, name: str) -> None:
        """Makes one data file durable in the store."""
        self._store.files.keep(path, f"{self._folder}/{name}")

    def keep(self) -> None:
        """After the commit: the data stay, everything temporary goes."""
        _open.discard(self)
        self._store.files.remove(f"{self._folder}.owner")
        shutil.rmtree(self._scratch, ignore_errors=True)

    def commit(self, manifest: Manifest, replace: bool) -> Manifest:
        """Makes this attempt its key's artifact; returns the manifest that holds, which another driver's may be."""
        self._committing = True
        return self._store.commit(manifest, replace)

    def abandon(self) -> None:
        """After an error: removes what was written. Once the commit has begun the manifest may stand, even where its

        writing seemed to fail (a lost answer, Ctrl-C): then the data stay, and the next build of the key or gc decides.
        """
        _open.discard(self)
        if self._committing:
            shutil.rmtree(self._scratch, ignore_errors=True)
        else:
            self.discard()

    def discard(self) -> None:
        """Removes all that this attempt has written."""
        _open.discard(self)
        shutil.rmtree(self._scratch, ignore_errors=True)
        with contextlib.suppress(Exception):  # the error that led here is the one to tell
            self._store.files.remove(self._folder)
            self._store.files.remove(f"{self._folder}.json")
            self._store.files.remove(f"{self._folder}.owner")


def own_scratch() -> Path:
    """This process's folder for temporary files; those of dead processes are removed on the way."""
    import psutil

    base = settings().scratch
    host = socket.gethostname()  # the folder may be shared by machines: only our own process ids can be asked about
    mine = base / f"{host}.{os.getpid()}.{psutil.Process().create_time():.0f}"
    if not mine.exists():
        try:
            mine.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"The scratch folder {base} cannot be made ({error.strerror}); set SAEFLOW_SCRATCH to another folder."
            ) from error
        for other in base.glob(f"{host}.*.*"):
            pid = other.name.split(".")[-2]
            if pid.isdigit() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(other, ignore_errors=True)
    return mine


def _clean_dead_attempts(store: Store, stage: str, key: str) -> None:
    """Removes what killed attempts of this machine have left behind for this key."""
    attempts = attempt_folder(stage, key, "").rstrip("/")
    for name in store.files.names(attempts):
        if name.endswith(".owner"):
            text = store.files.read(f"{attempts}/{name}")
            with contextlib.suppress(ArtifactError):  # a torn manifest: which attempt is the artifact cannot be told
                if text is not None and is_dead_mark(text):
                    attempt = name.removesuffix(".owner")
                    committed = store.manifest(stage, key)
                    if committed is None or committed.attempt != attempt:
                        store.files.remove(f"{attempts}/{attempt}")
                        store.files.remove(f"{attempts}/{attempt}.json")
                    store.files.remove(f"{attempts}/{name}")
