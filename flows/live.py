"""What a person sees while a run works: one live table of stages; plain lines where there is no terminal."""

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.dag import STAGES
from flows.events import Event
from tasks.artifacts import Built, group_digest

PLAIN_EVERY_SECONDS = 10.0
ADDITIVE = ("capture", "archive")  # whose figures are those of parts of one whole
COLOURS = {"Cached": "cyan", "Built": "green", "running": "yellow", "failed": "red", "": "dim"}


@dataclass
class Row:
    """One stage as it stands."""

    parts: str = "shards"  # what its shards are called: in a sweep, stages after the rows are run once for each point
    shards: int | None = None
    began: float | None = None
    ended: float | None = None
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    begun: dict[int | None, float] = field(default_factory=dict)  # what share of a shard that runs is done
    built: dict[int | None, Built] = field(default_factory=dict)
    failed: bool = False
    said: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every shard of it is there."""
        return len(self.built) == (self.shards or 1)

    @property
    def state(self) -> str:
        """One word for the table."""
        if self.failed:
            return "failed"
        if self.complete:
            return "Cached" if all(built.cached for built in self.built.values()) else "Built"
        return "running" if self.began is not None else ""

    def progress(self) -> tuple[float, float, str]:
        """(done, total, unit): shards for a sharded stage, with the begun ones in part, else what it reports."""
        if not self.shards:
            return self.done, self.total, self.unit
        return len(self.built) + round(sum(self.begun.values()), 1), self.shards, self.parts

    def seconds(self) -> float:
        """Seconds since it began, or that it took."""
        return 0.0 if self.began is None else (self.ended or time.monotonic()) - self.began

    def figures(self) -> dict[str, Any]:
        """The stage's summary; numbers of shards are added up, the points of a sweep have nothing in common."""
        summaries = [built.artifact.summary for _, built in sorted(self.built.items(), key=lambda item: item[0] or 0)]
        if len(summaries) == 1:
            return summaries[0]
        if any(built.artifact.stage not in ADDITIVE for built in self.built.values()):
            return {}
        total: dict[str, Any] = {}
        for summary in summaries:
            for name, value in summary.items():
                if name != "d" and isinstance(value, int | float) and not isinstance(value, bool):
                    total[name] = total.get(name, 0) + value  # rows and bytes add up, the width d does not
        return total


class Board:
    """Follows a run's events; a listener for `flows.events.listening`."""

    def __init__(self, console: Console | None = None, stages: Iterable[str] = STAGES) -> None:
        self.console = console or Console()
        self.rows = {name: Row("shards" if name in ADDITIVE else "points") for name in stages}
        self._live: Live | None = None
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        with self._lock:
            row = self.rows[event.stage]
            row.shards = event.of
            if event.kind == "started" and row.began is None:
                row.began = time.monotonic()
            elif event.kind == "progress":
                row.done, row.total, row.unit = event.done, event.total, event.unit
                row.begun[event.shard] = min(1.0, event.done / event.total) if event.total else 0.0
            elif event.kind == "finished" and event.built is not None:
                row.built[event.shard] = event.built
                row.begun.pop(event.shard, None)
                if row.complete:
                    row.ended = time.monotonic()
            elif event.kind == "failed":
                row.failed, row.ended = True, time.monotonic()
            if self._live is None:
                self._say_plainly(event, row)
            elif event.kind == "log":
                self.console.print(Text(f"{event.stage}: {event.message}", style="dim"))

    def __enter__(self) -> "Board":
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(get_renderable=self.table, console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def table(self) -> Table:
        """The stages, their state, how far they are, and what came out."""
        table = Table(box=None, pad_edge=False, expand=True, header_style="bold")
        table.add_column("stage", no_wrap=True)
        table.add_column("state", no_wrap=True)
        table.add_column("", width=14)
        table.add_column("rate", no_wrap=True, justify="right")
        table.add_column("time", no_wrap=True, justify="right")
        table.add_column("figures", ratio=1, no_wrap=True, overflow="ellipsis")
        for name, row in self.rows.items():
            state = row.state
            bar: Any = ""
            rate, clock = "", clock_text(row.seconds()) if row.began is not None and state != "Cached" else ""
            done, total, unit = row.progress()
            if state == "running" and total:
                bar = ProgressBar(total=total, completed=done, width=14)
                if done and row.seconds() > 1:
                    rate = f"{quantity(done / row.seconds())} {unit}/s"
                    clock = f"-{clock_text((total - done) * row.seconds() / done)}"
            table.add_row(name, Text(state, style=COLOURS[state]), bar, rate, clock, figures_text(row.figures()))
        return table

    def result(self) -> list[dict[str, Any]]:
        """What `--json` writes for each stage that ended."""
        return [_entry(name, row) for name, row in self.rows.items() if row.built]

    def _say_plainly(self, event: Event, row: Row) -> None:
        now = time.monotonic()
        if event.kind == "started":
            row.said = row.said or now
        elif event.kind == "finished" and row.complete:
            took = "" if row.state == "Cached" else f" in {clock_text(row.seconds())}"
            self._line(f"{event.stage:<10} {row.state}{took}  {figures_text(row.figures())}")
        elif event.kind == "failed":
            self._line(f"{event.stage:<10} failed: {event.message}")
        elif event.kind == "log":
            self._line(f"{event.stage:<10} {event.message}")
        elif event.kind in ("progress", "finished") and now - row.said >= PLAIN_EVERY_SECONDS:
            row.said = now
            done, total, unit = row.progress()
            self._line(f"{event.stage:<10} {quantity(done)} of {quantity(total)} {unit}, {clock_text(row.seconds())}")

    def _line(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _entry(name: str, row: Row) -> dict[str, Any]:
    ordered = [built for _, built in sorted(row.built.items(), key=lambda item: item[0] or 0)]
    first = ordered[0].artifact
    sharded = row.shards is not None
    entry: dict[str, Any] = {
        "stage": name,
        "state": row.state,
        "key": group_digest([built.artifact.key for built in ordered]) if sharded else first.key,
        "digest": group_digest([built.artifact.digest for built in ordered]) if sharded else first.digest,
        "seconds": round(sum(built.seconds for built in ordered), 3),
        "bytes": sum(built.artifact.manifest.size for built in ordered),
        "summary": row.figures(),
    }
    if sharded:
        cached = sum(built.cached for built in ordered)
        entry["shards"] = {"built": len(ordered) - cached, "cached": cached}
    return entry


def figures_text(figures: dict[str, Any], most: int = 6) -> str:
    """The first scalar figures of a summary, short."""
    shown = [
        f"{name.replace('_', ' ')} {quantity(value) if isinstance(value, int | float) else value}"
        for name, value in figures.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    ]
    return " · ".join(shown[:most])


def quantity(value: float) -> str:
    """A number as people read it: 1234567 -> 1.23M, 0.08213 -> 0.0821."""
    for size, letter in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"


def clock_text(seconds: float) -> str:
    """Seconds as 7s, 2m05 or 3h12."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    return f"{whole // 60}m{whole % 60:02}" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02}"
