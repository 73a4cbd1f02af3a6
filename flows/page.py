"""What a run's page in Prefect shows beside its log: progress with the time left, tables, curves, links.

All of it is a view: what cannot be drawn ends no stage.
"""

import base64
import contextlib
import threading
import time
from typing import Any

from prefect.artifacts import (
    create_image_artifact,
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import TaskRunContext

from flows.live import clock_text
from tasks.artifacts import Artifact, Built
from tasks.settings import settings

SHOW_EVERY_SECONDS = 5.0  # each time is a request: few are enough for a page that polls
POINTS = 300  # of a curve: more than the picture has room for
CURVES = {
    "fvu": ("Variance unexplained", {"fvu": "training", "validation_fvu": "held out"}),
    "l0": ("Latents that fire on a token", {"l0": "training", "validation_l0": "held out"}),
    "dead": ("Share of dead latents", {"dead_share": "dead"}),
}


class Progress:
    """How far a stage is, of all its shards together; made when it has run long enough to be looked at."""

    def __init__(self, stage: str, of: int | None = None) -> None:
        self._stage, self._of = stage, of
        self._id: Any = None
        self._begun: dict[int | None, float] = {}  # what share of each shard is done
        self._first: tuple[float, float] | None = None  # when the first report came, and what share it told
        self._shown = time.monotonic()
        self._lock = threading.Lock()  # shards report from threads of their own

    def report(self, shard: int | None, done: float, total: float) -> None:
        """One shard (None: the stage) is so far."""
        if total <= 0:
            return
        with self._lock:
            self._begun[shard] = min(1.0, done / total)
            share, now = sum(self._begun.values()) / (self._of or 1), time.monotonic()
            if self._first is None:
                self._first = now, share  # a resumed stage has not done this now
            if now - self._shown < SHOW_EVERY_SECONDS or TaskRunContext.get() is None:
                return
            self._shown = now
            self._show(100.0 * min(1.0, share), f"{self._stage}{self._left(now, share)}")

    def finished(self, shard: int | None) -> None:
        """One shard is done; at the last one the bar is full."""
        with self._lock:
            self._begun[shard] = 1.0
            if self._id is not None and sum(self._begun.values()) >= (self._of or 1):
                self._show(100.0, self._stage)

    def _left(self, now: float, share: float) -> str:
        assert self._first is not None
        since, before = now - self._first[0], self._first[1]
        parts = f", {sum(share == 1.0 for share in self._begun.values())} of {self._of} shards" if self._of else ""
        if share <= before:
            return parts
        return f"{parts}, about {clock_text(since * (1.0 - share) / (share - before))} left"

    def _show(self, percent: float, said: str) -> None:
        with contextlib.suppress(Exception):
            if self._id is None:
                self._id = create_progress_artifact(percent, key=f"{self._stage}-progress", description=said)
            else:
                update_progress_artifact(self._id, percent, said)


def show_built(stage: str, built: Built) -> None:
    """The table of a stage's figures, and what of it is better seen than read."""
    rows = [{"figure": name, "value": str(value)} for name, value in built.artifact.summary.items()]
    with contextlib.suppress(Exception):
        create_table_artifact(rows, key=f"{stage}-summary", description=f"{stage}: `{built.artifact.location}`")
    if stage == "train":
        with contextlib.suppress(Exception):
            for name, picture in training_curves(built.artifact).items():
                image = f"data:image/svg+xml;base64,{base64.b64encode(picture.encode()).decode()}"
                create_image_artifact(image, key=f"train-{name}", description=CURVES[name][0])


def training_curves(train: Artifact) -> dict[str, str]:
    """Pictures of a training's history, by name, each an SVG."""
    from pyarrow import parquet

    from tasks.plots import curves

    table = parquet.read_table(train.path("history.parquet"))
    if not len(table):
        return {}
    every = -(-len(table) // POINTS)
    held_out = "validation_fvu" if "validation_fvu" in table.column_names else "step"
    rows = [row for i, row in enumerate(table.to_pylist()) if i % every == 0 or row[held_out] is not None]
    found = {}
    for name, (title, lines) in CURVES.items():
        given = {said: [row[column] for row in rows] for column, said in lines.items() if column in table.column_names}
        if any(value is not None for values in given.values() for value in values):
            found[name] = curves(title, [row["step"] for row in rows], given)
    return found


def leave_links(title: str, artifacts: dict[str, Artifact], ray: str | None = None, wandb: str | None = None) -> None:
    """What is wanted of a run that made its report, on one page: that, its figures, and where else it can be seen."""
    create_link_artifact(
        artifacts["report"].url("report.html"), link_text="report.html", key="report",
        description="The page at the end of the run",
    )  # fmt: skip
    lines = [f"## {title}", "", "| stage | figure | value |", "|---|---|---|"]
    for stage in ("model", "train", "evaluate", "label", "score"):
        if stage in artifacts:
            lines += [f"| {stage} | {name} | {value} |" for name, value in artifacts[stage].summary.items()]
    lines += [""] + [f"- `{stage}`: {artifact.location}" for stage, artifact in artifacts.items()]
    run = artifacts["train"].key[:16]
    if wandb is not None:
        lines.append(f"- wandb ({wandb}): project saeflow, run `{run}`")
        if wandb == "offline":
            folders = f"{settings().cache}/wandb/wandb/offline-run-*-{run}"
            lines.append(f"  - to upload it: `wandb sync --id {run} {folders}`")
    if ray is not None:
        lines.append(f"- Ray: [its jobs]({ray}/#/jobs), the training's is `train-{run}`")
    create_markdown_artifact("\n".join(lines), key="figures", description="What came out")
