"""What a run says about itself while it runs, for whoever listens: the live table, plain lines, the JSON file.

Also how a run is asked to stop: `ask_to_stop()` makes the next progress report of every running stage raise, so each
stage discards its unfinished attempt, stops its job and releases its lease on the way out.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tasks.artifacts import Built


@dataclass(frozen=True)
class Event:
    """One thing that happened to a stage (or to one of its shards)."""

    kind: Literal["started", "progress", "log", "finished", "failed"]
    stage: str
    shard: int | None = None
    of: int | None = None  # number of shards
    done: float = 0.0
    total: float = 0.0
    unit: str = ""
    message: str = ""
    built: Built | None = None


class Stopped(BaseException):
    """The run was asked to stop (Ctrl-C, SIGTERM, cancel). No Exception: no stage may swallow it."""


_listeners: list[Callable[[Event], None]] = []
_when_stopping: list[Callable[[], None]] = []
_stop = threading.Event()


def publish(event: Event) -> None:
    """Tells every listener; raises Stopped when the run is to end and the event is a progress report."""
    for listener in list(_listeners):
        listener(event)
    if _stop.is_set() and event.kind in ("progress", "started"):
        raise Stopped


@contextlib.contextmanager
def listening(listener: Callable[[Event], None]) -> Iterator[None]:
    """Calls `listener` with every event while the block runs (from whichever thread publishes it)."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def ask_to_stop() -> None:
    """Every running stage ends at its next report; whoever wants to know is told, once."""
    if not _stop.is_set():
        _stop.set()
        for hook in list(_when_stopping):
            hook()


@contextlib.contextmanager
def when_stopping(hook: Callable[[], None]) -> Iterator[None]:
    """Calls `hook` once if the run is asked to stop while the block runs."""
    _when_stopping.append(hook)
    try:
        yield
    finally:
        _when_stopping.remove(hook)


def stopping() -> bool:
    """Whether the run has been asked to stop."""
    return _stop.is_set()
