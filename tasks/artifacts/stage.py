"""A stage: a plain function with a name, a version and a spec; its output is an immutable artifact.

    ARCHIVE = Stage("archive", version=1, spec=ArchiveSpec, run=archive_shard)
    built = ARCHIVE.build(store, ArchiveSpec(codec="size"), shard=captured)
    built.artifact.summary, built.cached

`version` is raised by a person when the meaning of the output changes; golden-key tests catch accidents.
"""

import contextlib
import datetime
import errno
import functools
import importlib.metadata
import platform
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.artifacts.artifact import Artifact, Summary, sha256_file
from tasks.artifacts.key import Spec, canonical_json, group_digest, stage_key
from tasks.artifacts.lease import lease
from tasks.artifacts.manifest import DataFile, InputReference, Manifest, content_digest, references_in
from tasks.artifacts.store import Store
from tasks.artifacts.workspace import Attempt, Progress, Report, Workspace
from tasks.errors import LeaseLost, StageFailed, StoreError
from tasks.runtime import Runtime
from tasks.settings import Settings, settings

Input = Artifact | Sequence[Artifact]
Pin = Callable[[Any, Settings], dict[str, Any] | None]


@contextlib.contextmanager
def _full_disk_told() -> Iterator[None]:
    """Wherever the disk fills up, in a stage's function or around it: one sentence that says so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StoreError(
            f"The disk is full ({error.filename or 'while data were written'}); this stage leaves nothing and all that "
            "is committed stays. Free some space (saeflow gc), or choose another --store or SAEFLOW_SCRATCH."
        ) from error


@dataclass(frozen=True)
class Built:
    """What `Stage.build` returns."""

    artifact: Artifact
    cached: bool  # True when nothing had to be computed
    seconds: float  # spent here, looking up or computing


@dataclass(frozen=True)
class Stage:
    """One room of the pipeline.

    `run(spec, workspace, **inputs) -> Summary` computes; `pin(spec, settings)` returns facts about what the spec names
    outside the store (file hashes, a hub commit), which enter the key; `progress=True` gives the function files that
    survive a crash, under a lease.
    """

    name: str
    version: int
    spec: type[Spec]
    run: Callable[..., Summary]
    pin: Pin | None = None
    progress: bool = False

    def key(self, spec: Spec, digests: Mapping[str, str]) -> str:
        """The key of this work, from the digests of its inputs; pins what lies outside."""
        outside = self.pin(spec, settings()) if self.pin else None
        return stage_key(self.name, self.version, spec.hashed(), digests, outside)

    def find(self, store: Store, spec: Spec, **inputs: Input) -> Artifact | None:
        """The artifact of this work if it is committed, else None."""
        manifest = store.manifest(self.name, self.key(spec, digests_of(inputs)))
        return None if manifest is None else Artifact(store.url, manifest)

    def build(
        self,
        store: Store,
        spec: Spec,
        runtime: Runtime | None = None,
        *,
        force: bool = False,
        on_report: Report | None = None,
        on_log: Callable[[str], None] | None = None,
        **inputs: Input,
    ) -> Built:
        """Returns the committed artifact of this work, computing it when there is none (or when forced)."""
        begin = time.monotonic()
        log = on_log or (lambda message: None)
        outside = self.pin(spec, settings()) if self.pin else None
        key = stage_key(self.name, self.version, spec.hashed(), digests_of(inputs), outside)
        found = None if force else store.manifest(self.name, key)
        cached = found is not None
        if found is None:
            work = functools.partial(
                self._attempt, store, key, spec, runtime or Runtime(), outside, inputs, force, on_report, log
            )
            if self.progress:
                committed = functools.partial(store.manifest, self.name, key)
                with lease(store, self.name, key, log, lambda: not force and committed() is not None) as held:
                    found = committed() if held is None or not force else None
                    cached = found is not None
                    if found is None and held is not None:
                        found = self._with_progress(work, Progress(store, self.name, key, held), force)
            else:
                found = work(None)
        if found is None:
            raise StageFailed(f"{self.name} {key[:12]} was waited for but not committed; run the same command again.")
        return Built(Artifact(store.url, found), cached, time.monotonic() - begin)

    def _with_progress(self, work: Callable[[Progress], Manifest], progress: Progress, force: bool) -> Manifest:
        if force:
            progress.begin_anew()
        found = work(progress)
        with contextlib.suppress(LeaseLost):  # then it belongs to another driver, which finds the commit
            progress.clear()
        return found

    @_full_disk_told()
    def _attempt(
        self,
        store: Store,
        key: str,
        spec: Spec,
        runtime: Runtime,
        outside: dict[str, Any] | None,
        inputs: Mapping[str, Input],
        force: bool,
        on_report: Report | None,
        log: Callable[[str], None],
        progress: Progress | None,
    ) -> Manifest:
        begin, started = time.monotonic(), datetime.datetime.now(datetime.UTC)
        references = {name: _references(value) for name, value in sorted(inputs.items())}
        attempt = Attempt(store, self.name, key, references_in(references))
        try:
            workspace = Workspace(
                attempt.path, attempt.scratch, key, runtime, on_report or (lambda *_: None), log, held=progress
            )
            summary = self.run(spec, workspace, **inputs)
            canonical_json(summary)  # refuses here, by name, what could not be read back
            files = _data_files(attempt, workspace)
            manifest = Manifest(
                stage=self.name,
                version=self.version,
                key=key,
                attempt=attempt.name,
                digest=content_digest(files),
                spec=spec.hashed(),
                inputs=references,
                outside=outside,
                files=files,
                summary=summary,
                made=_circumstances(runtime) | {"started": started.isoformat(), "seconds": time.monotonic() - begin},
            )
            held = attempt.commit(manifest, replace=force)
        except BaseException:
            attempt.abandon()
            raise
        if held.attempt == attempt.name:
            attempt.keep()
        else:
            attempt.discard()  # another driver of the same key was first: its artifact is the one that holds
        return held


def digests_of(inputs: Mapping[str, Input]) -> dict[str, str]:
    """Digest per input name; an ordered list of shards has the digest of the list."""
    return {
        name: value.digest if isinstance(value, Artifact) else group_digest([part.digest for part in value])
        for name, value in inputs.items()
    }


def _references(value: Input) -> list[InputReference] | InputReference:
    return value.reference if isinstance(value, Artifact) else [part.reference for part in value]


def _data_files(attempt: Attempt, workspace: Workspace) -> list[DataFile]:
    files = []
    for path in sorted(entry for entry in workspace.path.rglob("*") if entry.is_file()):
        name = path.relative_to(workspace.path).as_posix()
        sha256 = sha256_file(path)
        attempt.store_file(path, name)
        files.append(
            DataFile(path=name, size=path.stat().st_size, sha256=sha256, content=workspace.contents.get(name))
        )
    return files


def _circumstances(runtime: Runtime) -> dict[str, Any]:
    """How and where it was made: compared as advice, never hashed."""
    return {
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "packages": _packages(),
        "git": _git_revision(),
        "runtime": runtime.model_dump(mode="json"),
    }


@functools.cache
def _packages() -> dict[str, str]:
    names = ("saeflow", "torch", "transformers", "ray", "prefect", "numpy", "pyarrow", "anthropic")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def _git_revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
