"""The whole way as wiring: which stage reads what. It runs nothing itself.

    corpus, model -> capture[i] -> archive[i] -> preprocess -> train -> evaluate -----------> report
                                       |                         |                              ^
                                       +-------> examples <------+                              |
                                                    +---> label -> score -----------------------+

`wire` is given a `Do`: the planner's says what would happen (flows/planner.py), Prefect's makes it happen
(flows/stages.py). Handles are whatever that `Do` returns and are only passed on.
"""

from collections.abc import Callable
from typing import Any, Protocol

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
from tasks.train import TRAIN

STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        MODEL, CORPUS, CAPTURE, ARCHIVE, PREPROCESS, TRAIN, EVALUATE, EXAMPLES, LABEL, SCORE, REPORT,
    )
}  # fmt: skip


class Do(Protocol):
    """What carries a stage out, or plans it."""

    def __call__(self, stage: Stage, spec: Spec, *, shard: int | None = None, **inputs: Any) -> Any:
        """One stage (or one of its shards) with its inputs; returns a handle for later stages."""

    def window(self, count: int, chain: Callable[[int], Any]) -> list[Any]:
        """`chain(0), chain(1), ...` with a bounded number in flight; returns their handles in order."""


def wire(config: PipelineConfig, do: Do) -> Any:
    """Walks the pipeline once, in order, and returns the handle of the last stage."""

    def packed_shard(i: int) -> Any:
        captured = do(CAPTURE, config.capture.part(i), shard=i, corpus=text, model=lm)
        return do(ARCHIVE, config.archive, shard=i, captured=captured)

    lm = do(MODEL, config.model)
    text = do(CORPUS, config.corpus)
    packed = do.window(config.capture.shards, packed_shard)
    rows = do(PREPROCESS, config.preprocess, archives=packed)
    sae = do(TRAIN, config.train, rows=rows)
    metrics = do(EVALUATE, config.evaluate, sae=sae, rows=rows, corpus=text, model=lm)
    found = do(EXAMPLES, config.examples, sae=sae, archives=packed, corpus=text, model=lm)
    labels = do(LABEL, config.label, examples=found)
    scores = do(SCORE, config.score, labels=labels, examples=found)
    return do(
        REPORT, config.report, model=lm, corpus=text, archives=packed, rows=rows, sae=sae, metrics=metrics,
        examples=found, labels=labels, scores=scores,
    )  # fmt: skip
