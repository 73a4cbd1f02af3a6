"""The whole way as wiring: which stage reads what. It runs nothing itself.

    corpus, model -> capture[i] -> archive[i] -> preprocess -> train -> evaluate -----------> report
                                       |                         |                              ^
                                       +-------> examples <------+                              |
                                                    +---> label -> score -----------------------+

A sweep branches at the rows: it trains and measures one autoencoder for each point of a grid.

    ... preprocess -> (train[i] -> evaluate[i]) -> sweep

`wire` and `wire_sweep` are given a `Do`: the planner's says what would happen (flows/planner.py), Prefect's makes it
happen (flows/stages.py). Handles are whatever that `Do` returns and are only passed on.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from flows.config import PipelineConfig
from tasks.archive import ARCHIVE
from tasks.artifacts import Spec, Stage
from tasks.capture import CAPTURE
from tasks.corpus import CORPUS
from tasks.evaluate import EVALUATE
from tasks.examples import EXAMPLES
from tasks.label import LABEL
from tasks.model import MODEL
from tasks.preprocess import PREPROCESS
from tasks.report import REPORT
from tasks.score import SCORE
from tasks.sweep import SWEEP, SweepSpec
from tasks.train import TRAIN, TrainSpec

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        MODEL, CORPUS, CAPTURE, ARCHIVE, PREPROCESS, TRAIN, EVALUATE, EXAMPLES, LABEL, SCORE, REPORT,
    )
}  # fmt: skip
SWEEP_STAGES: dict[str, Stage] = {
    stage.name: stage for stage in (MODEL, CORPUS, CAPTURE, ARCHIVE, PREPROCESS, TRAIN, EVALUATE, SWEEP)
}


class Do(Protocol):
    """What carries a stage out, or plans it."""

    def __call__(self, stage: Stage, spec: Spec, *, shard: int | None = None, **inputs: Any) -> Any:
        """One stage (or one of its shards) with its inputs; returns a handle for later stages."""

    def window(self, count: int, chain: Callable[[int], Any], at_once: int | None = None) -> list[Any]:
        """`chain(0), chain(1), ...` with so many in flight (None: runtime.window); their handles, in order."""


class Rows(NamedTuple):
    """Handles of what trainings start from."""

    model: Any
    corpus: Any
    archives: list[Any]
    rows: Any


def wire(config: PipelineConfig, do: Do) -> Any:
    """Walks the pipeline once, in order, and returns the handle of the last stage."""
    lm, text, packed, rows = _wire_rows(config, do)
    sae = do(TRAIN, config.train, rows=rows)
    metrics = do(EVALUATE, config.evaluate, sae=sae, rows=rows, corpus=text, model=lm)
    found = do(EXAMPLES, config.examples, sae=sae, archives=packed, corpus=text, model=lm)
    labels = do(LABEL, config.label, examples=found)
    scores = do(SCORE, config.score, labels=labels, examples=found)
    return do(
        REPORT, config.report, model=lm, corpus=text, archives=packed, rows=rows, sae=sae, metrics=metrics,
        examples=found, labels=labels, scores=scores,
    )  # fmt: skip


def wire_sweep(config: PipelineConfig, points: Sequence[TrainSpec], do: Do, at_once: int = 1) -> Any:
    """The same rows, an autoencoder and its figures for each point, `at_once` in flight, and their comparison."""
    lm, text, _, rows = _wire_rows(config, do)
    saes, metrics = list[Any]([None] * len(points)), list[Any]([None] * len(points))

    def point(i: int) -> Any:
        saes[i] = do(TRAIN, points[i], shard=i, rows=rows)
        metrics[i] = do(EVALUATE, config.evaluate, shard=i, sae=saes[i], rows=rows, corpus=text, model=lm)
        return metrics[i]

    do.window(len(points), point, at_once)
    return do(SWEEP, SweepSpec(), saes=saes, metrics=metrics)


def up_to(config: PipelineConfig, only: str) -> frozenset[str]:
    """The names of a stage and of all that it reads, directly or not."""
    reads: dict[str, set[str]] = {}

    class Reads:
        """A `Do` that notes which stage reads which; its handles are their names."""

        def __call__(self, stage: Stage, spec: Spec, *, shard: int | None = None, **inputs: Any) -> str:
            named = [value if isinstance(value, list) else [value] for value in inputs.values()]
            reads[stage.name] = {name for names in named for name in names}
            return stage.name

        def window(self, count: int, chain: Callable[[int], Any], at_once: int | None = None) -> list[Any]:
            return [chain(0)]

    wire(config, Reads())
    needed, ahead = {only}, [only]
    while ahead:
        new = reads[ahead.pop()] - needed
        needed |= new
        ahead += new
    return frozenset(needed)


def _wire_rows(config: PipelineConfig, do: Do) -> Rows:
    def packed_shard(i: int) -> Any:
        captured = do(CAPTURE, config.capture.part(i), shard=i, corpus=text, model=lm)
        return do(ARCHIVE, config.archive, shard=i, captured=captured)

    lm = do(MODEL, config.model)
    text = do(CORPUS, config.corpus)
    packed = do.window(config.capture.shards, packed_shard)
    rows = do(PREPROCESS, config.preprocess, archives=packed)
    return Rows(lm, text, packed, rows)
