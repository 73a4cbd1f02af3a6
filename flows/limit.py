"""How long a stage may take (`runtime.stage_hours`), and what ends one that does not listen.

    with Limit("train", hours=12.0) as limit:
        ... limit.require() ...       # at each report; raises StageFailed once the time is over

A stage that does not report after its time is over, since it hangs in a call that nothing interrupts, ends its whole
process a little later: the guard ends what it started, and a deployment's run is started again as after any crash.
"""

import os
import sys
import threading
import time
from typing import Self

from tasks.artifacts.workspace import abandon_open
from tasks.errors import StageFailed

GRACE_SECONDS = 120.0  # from the end of a stage's time until its process is ended


class Limit:
    """The time of one stage (or shard); without hours there is none."""

    def __init__(self, stage: str, hours: float | None) -> None:
        self._stage, self._hours = stage, hours
        self._until = time.monotonic() + 3600 * (hours or 0)
        self._last = threading.Timer(3600 * (hours or 0) + GRACE_SECONDS, self._end_process)
        self._last.daemon = True

    def __enter__(self) -> Self:
        if self._hours is not None:
            self._last.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._last.cancel()

    def require(self) -> None:
        """Raises StageFailed when the stage's time is over."""
        if self._hours is not None and time.monotonic() > self._until:
            raise StageFailed(self._said())

    def _said(self) -> str:
        return (
            f"{self._stage} has taken longer than runtime.stage_hours ({self._hours:g}). Its progress stays: raise the "
            "limit and run the same again to go on."
        )

    def _end_process(self) -> None:
        print(f"{self._said()} It does not listen either: its process ends.", file=sys.stderr, flush=True)
        abandon_open()
        os._exit(1)
