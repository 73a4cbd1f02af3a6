"""What Ray's actors and jobs log, told by the logger of the run that waits for them, and so on its page in Prefect.

    an actor:  Kept().install(); ...; kept.take()     # lines since the last time, sent along with its results
    the run:   tell("capture actor", lines)
    a job:     with Followed(client, submission_id): ...

Prefect takes what the loggers of `tasks` say (PREFECT_LOGGING_EXTRA_LOGGERS, flows/server.py).
"""

import asyncio
import collections
import contextlib
import contextvars
import logging
import re
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

MOST = 200  # lines that an actor keeps for one answer; of more, the first are left out
OWN = ("tasks", "sae_core")  # whose every line is of interest; of others, warnings and errors
AGAIN_SECONDS = 5.0  # before a log that ended early is asked for again

COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # of a terminal's, which Ray writes into logs too
OFTEN = re.compile("Reporting training result|Checkpoint successfully created")  # Ray Train, of each checkpoint

_log = logging.getLogger(__name__)
_log.setLevel(logging.INFO)  # Prefect takes what it is given, and leaves the level to us


class Line(NamedTuple):
    """One line of a log: the level's number (logging.WARNING, ...) and the text."""

    level: int
    text: str


class Kept(logging.Handler):
    """Keeps what this process logs until it is taken."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._lines: collections.deque[Line] = collections.deque(maxlen=MOST)

    def install(self) -> "Kept":
        """Has all loggers of this process tell it; returns itself."""
        logging.getLogger().addHandler(self)
        for name in OWN:
            logging.getLogger(name).setLevel(logging.INFO)
        logging.captureWarnings(True)
        return self

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps a record, if it is of interest."""
        if record.levelno >= logging.WARNING or record.name.partition(".")[0] in OWN:
            self._lines.append(Line(record.levelno, record.getMessage().strip()))

    def take(self) -> list[Line]:
        """The lines since the last call."""
        taken = []
        while self._lines:
            taken.append(self._lines.popleft())
        return taken


def tell(who: str, lines: Iterable[Line]) -> None:
    """Logs lines of another process here, each with its level and who said it."""
    for line in lines:
        _log.log(line.level, "%s: %s", who, line.text)


class Followed:
    """Follows a job's output while the block runs, and tells each line of it once."""

    def __init__(self, client: "JobSubmissionClient", submission_id: str) -> None:
        self._client, self._id = client, submission_id
        self._told = 0  # lines
        self._telling = threading.Lock()
        self._over = threading.Event()
        of_run = contextvars.copy_context()  # by which Prefect knows whose a line is
        self._thread = threading.Thread(target=of_run.run, args=(self._follow,), daemon=True)

    def __enter__(self) -> "Followed":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        if kind is None:  # else the job is yet to be stopped, which must not wait
            with contextlib.suppress(Exception):  # Ray looks after a followed log once a second: its end comes late
                for number, line in enumerate(self._client.get_job_logs(self._id).split("\n"), start=1):
                    self._tell(number, line)

    def _follow(self) -> None:
        logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # says that a log has ended
        while True:
            with contextlib.suppress(Exception):  # whatever became of the log: what counts is the job's status
                asyncio.run(self._read())
            if self._over.wait(AGAIN_SECONDS):
                return

    async def _read(self) -> None:
        """From the log's first line, since there is no other way."""
        before, rest = 0, ""
        async for text in self._client.tail_job_logs(self._id):
            *lines, rest = (rest + text).split("\n")
            for number, line in enumerate(lines, start=before + 1):
                self._tell(number, line)
            before += len(lines)
        if rest:  # a last line without its end
            self._tell(before + 1, rest)

    def _tell(self, number: int, line: str) -> None:
        """One line of the log, from 1; what was told before is passed over."""
        with self._telling:
            if number <= self._told:
                return
            self._told = number
            text = COLOUR.sub("", line).rstrip()
            if text and not OFTEN.search(text):
                _log.info("%s: %s", self._id, text)
