"""What a run would do, said before anything runs: Cached, will run (and why), or depends.

It walks the same wiring as the run itself, with keys and manifests only: no Prefect, no Ray, no model is loaded.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from flows.config import PipelineConfig
from flows.dag import STAGES, SWEEP_STAGES, up_to, wire, wire_sweep
from tasks.artifacts import Manifest, Spec, Stage, Store, group_digest
from tasks.artifacts.store import progress_folder
from tasks.errors import InputError
from tasks.settings import settings
from tasks.train import TrainSpec

State = Literal["Cached", "will run", "depends"]
LOOK_UPS = 16  # shards looked up at once
LOOK_AT = 40  # manifests read to find the nearest earlier artifact: enough to explain, bounded on a large store


@dataclass
class Planned:
    """What would happen to one stage or one shard of it."""

    stage: str
    state: State
    why: str
    digest: str | None = None
    manifest: Manifest | None = None
    shard: int | None = None
    outside: dict[str, Any] | None = None  # what the stage has pinned of the world outside the store
    problem: InputError | None = None  # why that cannot be pinned: a run would end with it, here at least


class Planner:
    """A `Do` that looks up and compares the stages that are needed."""

    def __init__(self, store: Store, needed: frozenset[str], force: frozenset[str] = frozenset()) -> None:
        self.store = store
        self.needed = needed
        self.force = force
        self.planned: list[Planned] = []
        self._chain = threading.local()  # .planned: of the shard that this thread is at
        self._earlier: dict[str, list[Manifest]] = {}
        self._reading = threading.Lock()

    def __call__(self, stage: Stage, spec: Spec, *, shard: int | None = None, **inputs: Any) -> Planned | None:
        if stage.name not in self.needed:
            return None
        found = self._plan(stage, spec, inputs)
        found.shard = shard
        getattr(self._chain, "planned", self.planned).append(found)
        return found

    def window(self, count: int, chain: Callable[[int], Any], at_once: int | None = None) -> list[Any]:
        """Looks up many shards at once: each is a request to an object store, and there may be thousands."""

        def one(i: int) -> tuple[Any, list[Planned]]:
            self._chain.planned = []
            return chain(i), self._chain.planned

        with ThreadPoolExecutor(LOOK_UPS) as pool:
            found = list(pool.map(one, range(count)))
        for _, planned in found:
            self.planned += planned
        return [handle for handle, _ in found]

    def _plan(self, stage: Stage, spec: Spec, inputs: dict[str, Any]) -> Planned:
        digests = {name: _digest(value) for name, value in inputs.items()}
        rebuilt = sorted(name for name, digest in digests.items() if digest is None)
        if rebuilt:
            again = "Cached if it comes out the same" if self._of(stage) else "nothing of it is stored yet"
            return Planned(stage.name, "depends", f"{' and '.join(rebuilt)} must be made first; {again}")
        known = {name: digest for name, digest in digests.items() if digest is not None}
        try:
            outside = stage.pin(spec, settings()) if stage.pin else None
        except InputError as error:
            return Planned(stage.name, "will run", "what it reads cannot be looked up now", problem=error)
        key = stage.key(spec, known)
        if stage.name in self.force:  # before the manifest is read: it may be torn, and this is the remedy
            return Planned(stage.name, "will run", "asked for by --force", outside=outside)
        manifest = self.store.manifest(stage.name, key)
        if manifest is not None:
            return Planned(stage.name, "Cached", key[:12], manifest.digest, manifest, outside=outside)
        if self.store.files.names(progress_folder(stage.name, key)):
            return Planned(stage.name, "will run", "goes on from its saved progress", outside=outside)
        why = self._why(stage, spec.hashed(), known, outside)
        return Planned(stage.name, "will run", why, outside=outside)

    def _of(self, stage: Stage) -> list[Manifest]:
        with self._reading:
            if stage.name not in self._earlier:
                # One that cannot be read explains nothing; status and verify tell of it.
                found = self.store.manifests(stage.name, unreadable=lambda stage, key, error: None)
                self._earlier[stage.name] = list(itertools.islice(found, LOOK_AT))
            return self._earlier[stage.name]

    def _why(self, stage: Stage, spec: dict[str, Any], digests: dict[str, str], outside: dict[str, Any] | None) -> str:
        """The smallest difference to any earlier artifact of the stage."""
        best: list[str] | None = None
        for manifest in self._of(stage):
            found = _differences(stage, spec, digests, outside, manifest)
            if best is None or len(found) < len(best):
                best = found
        if best is None:
            return "not made yet"
        shown = ", ".join(best[:3]) + (f" and {len(best) - 3} more" if len(best) > 3 else "")
        return f"{shown} changed" if best else "its artifact was made with other inputs"


def plan(
    config: PipelineConfig,
    store: Store,
    force: frozenset[str] = frozenset(),
    points: Sequence[TrainSpec] = (),
    only: str | None = None,
) -> list[Planned]:
    """The plan of a run, or of a sweep over `points`: one entry per stage, shard or point, in running order.

    With `only`, that of this stage and of those it reads.
    """
    if points:
        planner = Planner(store, frozenset(SWEEP_STAGES), force)
        wire_sweep(config, points, planner)
    else:
        needed = frozenset(STAGES) if only is None else up_to(config, only)
        planner = Planner(store, needed, force if only is None else force & {only})
        wire(config, planner)
    return planner.planned


def _digest(value: Any) -> str | None:
    if isinstance(value, Planned):
        return value.digest
    digests = [part.digest for part in value]
    return None if None in digests else group_digest([digest for digest in digests if digest is not None])


def _differences(
    stage: Stage, spec: dict[str, Any], digests: dict[str, str], outside: dict[str, Any] | None, manifest: Manifest
) -> list[str]:
    found = [f"version ({manifest.version} -> {stage.version})"] if manifest.version != stage.version else []
    found += [
        f"{stage.name}.{name} ({_short(manifest.spec.get(name))} -> {_short(spec.get(name))})"
        for name in sorted(spec.keys() | manifest.spec.keys())
        if spec.get(name) != manifest.spec.get(name)
    ]
    before = manifest.input_digests()
    names = sorted(digests.keys() | before.keys())
    found += [f"input {name}" for name in names if digests.get(name) != before.get(name)]
    if outside != manifest.outside:
        found.append("what lies outside the store (an edited file, or another revision)")
    return found


def _short(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
