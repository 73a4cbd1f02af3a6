"""Looking after a store: find an artifact by a few characters, where it came from, what is damaged, what can go."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.artifacts.artifact import Artifact
from tasks.artifacts.lease import LEASE, is_dead_mark
from tasks.artifacts.manifest import InputReference, Manifest
from tasks.artifacts.store import Store, Unreadable, attempt_folder, key_folder, manifest_path, progress_folder
from tasks.errors import ArtifactError, InputError


@dataclass(frozen=True)
class Garbage:
    """Something in the store that no artifact needs."""

    path: str  # relative to the store
    why: str
    artifact: Manifest | None = None  # that is let go with it


def find(store: Store, text: str, unreadable: Unreadable | None = None) -> Artifact:
    """The artifact named by `stage`, `key`, `stage/key`, or the first characters of a key or digest.

    A stage's name alone means its newest artifact. InputError when there is none, or when several fit. A manifest that
    cannot be read is told to `unreadable` and passed over (without it: raised).
    """
    stage, _, start = text.rpartition("/")
    stages = [stage] if stage else store.stages()
    if not stage and text in stages:
        made = sorted(store.manifests(text, unreadable), key=lambda manifest: str(manifest.made.get("started")))
        if made:
            return Artifact(store.url, made[-1])
    found = [
        manifest
        for name in stages
        for manifest in store.manifests(name, unreadable)
        if start and (manifest.key.startswith(start) or manifest.digest.startswith(start))
    ]
    if len(found) == 1:
        return Artifact(store.url, found[0])
    if not found:
        raise InputError(f"No artifact in {store.url} is named {text!r}; `saeflow status` lists what there is.")
    several = ", ".join(f"{manifest.stage}/{manifest.key[:12]}" for manifest in found[:6])
    raise InputError(f"{text!r} fits {len(found)} artifacts ({several}); give more characters.")


def inputs_of(store: Store, manifest: Manifest) -> dict[str, list[Manifest | InputReference]]:
    """The manifests an artifact was made from, by input name; a reference where the attempt is gone."""
    return {
        name: [store.attempt(reference) or reference for reference in (value if isinstance(value, list) else [value])]
        for name, value in manifest.inputs.items()
    }


def damaged(store: Store) -> Iterator[tuple[str, list[str]]]:
    """Reads every data file of every artifact; yields each one's name with its faults ([] when all is well).

    An artifact whose manifest cannot be read is one that is damaged.
    """
    torn: list[tuple[str, list[str]]] = []

    def pass_over(stage: str, key: str, error: ArtifactError) -> None:
        torn.append((_named(stage, key), [str(error)]))

    for manifest in store.manifests(unreadable=pass_over):
        yield _named(manifest.stage, manifest.key), Artifact(store.url, manifest).verify()
    yield from torn


def garbage(store: Store, unreadable: Unreadable | None = None) -> list[Garbage]:
    """What no artifact needs: superseded or abandoned attempts, progress of committed keys. Keeps all that some

    artifact names as an input (also through superseded attempts), what a living process is writing, and the progress
    of keys that are not committed, since a run may go on from it. A manifest that cannot be read is told to
    `unreadable` (without it: raised), and nothing of its key is garbage: any of its attempts may be the artifact.
    """
    torn: set[tuple[str, str]] = set()

    def pass_over(stage: str, key: str, error: ArtifactError) -> None:
        if unreadable is None:
            raise error
        torn.add((stage, key))
        unreadable(stage, key, error)

    committed = store.manifests(unreadable=pass_over)
    current = {(manifest.stage, manifest.key, manifest.attempt): manifest for manifest in committed}
    kept = set(current)
    ahead = [*current.values(), *(manifest for stage, key in sorted(torn) for manifest in _attempts(store, stage, key))]
    while ahead:
        for reference in ahead.pop().references():
            name = (reference.stage, reference.key, reference.attempt)
            if name not in kept:
                kept.add(name)
                with contextlib.suppress(ArtifactError):  # it is kept; what it was made from cannot be told
                    superseded = store.attempt(reference)
                    if superseded is not None:
                        ahead.append(superseded)
    found = [Garbage(path, "a write that never ended") for path in store.files.unfinished()]
    for stage in store.stages():
        for key in store.keys(stage):
            if (stage, key) in torn:
                continue
            folder = f"{key_folder(stage, key)}/attempts"
            names = store.files.names(folder)
            now = store.manifest(stage, key)  # again: else a commit since the first look would look abandoned
            if now is not None:
                kept.add((stage, key, now.attempt))
            for attempt in sorted({name.split("/")[0].partition(".")[0] for name in names}):
                written = _is_written(store, stage, key, attempt)
                if (stage, key, attempt) not in kept and not written:
                    why = "superseded" if now is not None else "abandoned by a run that ended"
                    found.append(Garbage(attempt_folder(stage, key, attempt), why))
                elif f"{attempt}.owner" in names and not written:
                    found.append(Garbage(f"{folder}/{attempt}.owner", "mark of a run that ended"))
            progress = progress_folder(stage, key)
            if now is not None and store.files.names(progress) and not _is_led(store, progress):
                found.append(Garbage(progress, "progress of a committed key"))
    return found


def being_read(store: Store) -> Iterator[InputReference]:
    """What the stages that are under way read, as the marks of their attempts name it."""
    for stage in store.stages():
        for key in store.keys(stage):
            folder = f"{key_folder(stage, key)}/attempts"
            for name in store.files.names(folder):
                mark = store.files.read(f"{folder}/{name}") if name.endswith(".owner") else None
                if mark is not None and not is_dead_mark(mark):
                    yield from map(InputReference.model_validate, json.loads(mark).get("reads", ()))


def _attempts(store: Store, stage: str, key: str) -> Iterator[Manifest]:
    """The manifests that the attempts of a key keep of their own, as far as they can be read."""
    names = store.files.names(f"{key_folder(stage, key)}/attempts")
    for attempt in sorted(name.removesuffix(".json") for name in names if "/" not in name and name.endswith(".json")):
        with contextlib.suppress(ArtifactError):
            found = store.attempt(InputReference(stage=stage, key=key, attempt=attempt, digest=""))
            if found is not None:
                yield found


def collect(store: Store, found: list[Garbage]) -> None:
    """Removes garbage, an attempt together with its own files beside it."""
    for entry in found:
        if entry.artifact is not None:
            _let_go(store, entry.artifact)
        store.files.remove(entry.path)
        if "/attempts/" in entry.path and entry.artifact is None:
            store.files.remove(f"{entry.path}.json")
            store.files.remove(f"{entry.path}.owner")


def _let_go(store: Store, manifest: Manifest) -> None:
    """Takes the commit back, before any data goes; the attempt's own manifest stays, by which lineage names it."""
    folder = attempt_folder(manifest.stage, manifest.key, manifest.attempt)
    store.files.write(f"{folder}.json", manifest.to_json().encode())
    store.files.remove(manifest_path(manifest.stage, manifest.key))


def _named(stage: str, key: str) -> str:
    return f"{stage} {key[:12]}"


def _is_written(store: Store, stage: str, key: str, attempt: str) -> bool:
    """Whether its owner may still be at work; an owner elsewhere cannot be asked and counts as alive."""
    text = store.files.read(f"{attempt_folder(stage, key, attempt)}.owner")
    return text is not None and not is_dead_mark(text)


def _is_led(store: Store, progress: str) -> bool:
    text = store.files.read(f"{progress}/{LEASE}")
    return text is not None and not is_dead_mark(text)
