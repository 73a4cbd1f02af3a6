"""A store filled as by a whole run, in a moment: the real stages, specs, pins and wiring, with made-up results."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from flows.config import PipelineConfig, load_preset
from flows.dag import wire, wire_sweep
from tasks.artifacts import Artifact, Spec, Stage, Store, Summary, Workspace
from tasks.settings import settings
from tasks.train import TrainSpec


def demo(*changes: str) -> PipelineConfig:
    """The demo's configuration in two shards, as a run without any key sees it."""
    return load_preset("demo", ["capture.shards=2", *changes]).resolved(settings({}))


def fill(store: Store, config: PipelineConfig, points: Sequence[TrainSpec] = ()) -> dict[str, Artifact]:
    """Commits an artifact for every stage of a run (of a sweep over `points`); returns the last one of each stage."""
    made: dict[str, Artifact] = {}

    class Make:
        def __call__(self, stage: Stage, spec: Spec, *, shard: int | None = None, **inputs: Any) -> Artifact:
            quick = dataclasses.replace(stage, run=_write, progress=False)
            made[stage.name] = quick.build(store, spec, **inputs).artifact
            return made[stage.name]

        def window(self, count: int, chain: Callable[[int], Any], at_once: int | None = None) -> list[Any]:
            return [chain(i) for i in range(count)]

    if points:
        wire_sweep(config, points, Make())
    else:
        wire(config, Make())
    return made


def _write(spec: Spec, out: Workspace, **inputs: Any) -> Summary:
    (out.path / "spec.json").write_text(spec.model_dump_json() + str(sorted(inputs)))
    return {"tokens": 1000, "bytes": 4000}
