"""`saeflow run`: one run in this process, with its live table, a clean end on Ctrl-C, and no child left behind."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.config import PipelineConfig, load_preset
from flows.events import Stopped, ask_to_stop, listening, stopping, when_stopping
from flows.live import Board
from flows.preflight import check
from flows.server import find_server, prepare_environment, quiet_console, send_last_logs
from tasks import guard
from tasks.artifacts import open_store
from tasks.artifacts.workspace import abandon_open
from tasks.settings import settings

STOPPED = "Stopped. What was committed stays; the same command goes on from here."
STOP_SECONDS = 20.0  # for running stages to stop their jobs and discard their attempts after Ctrl-C


def run_here(
    preset: str, sets: list[str], store_url: str | None, force: frozenset[str], only: str | None, json_file: Path | None
) -> None:
    """Runs a preset with its table; raises the run's error, or exits with 130 when it was stopped."""
    console = Console()
    guard.sweep()
    config = load_preset(preset, sets)
    now = settings()
    store = open_store(store_url or now.store)
    check(config.resolved(now), store)  # what is wrong already is said before anything starts
    guard.protect()
    server = find_server(now)
    prepare_environment(server)
    console.print(
        f"{config.title()}\nstore {store.url}   prefect {server or 'temporary server'}", highlight=False, soft_wrap=True
    )
    board = Board(console)
    try:
        with _stopping_cleanly(console), listening(board), board:
            _flow(config, store.url, force, only)
    except BaseException as error:
        if not stopping() and not isinstance(error, Stopped | KeyboardInterrupt):
            raise
        console.print(STOPPED)
        guard.release()
        _leave(130)
    finally:
        _shut_down()
        if json_file is not None:
            json_file.write_text(json.dumps({"schema": 1, "stages": board.result()}, indent=1) + "\n")
    _say_end(console, board)


def _flow(config: PipelineConfig, store_url: str, force: frozenset[str], only: str | None) -> None:
    from flows.pipeline import run

    quiet_console()
    run(config, store_url, force, only)


def _say_end(console: Console, board: Board) -> None:
    labels = board.rows["label"].figures()
    if "why" in labels:
        console.print(f"labels by {labels['labeller']}: {labels['why']}", highlight=False, soft_wrap=True)
    report = board.rows["report"].built.get(None)
    if report is not None:
        location = report.artifact.location
        link = f"{location}/report.html" if "://" in location else f"file://{location}/report.html"
        console.print(f"report {link}", highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _stopping_cleanly(console: Console) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) asks every stage to stop, the second ends at once; the guard takes the rest."""

    def begin() -> None:
        console.print("Stopping: running stages put away their unfinished work (again to end at once) ...")
        threading.Thread(target=_leave_after, args=(STOP_SECONDS, console), daemon=True).start()

    def asked(number: int, _frame: Any) -> None:
        if stopping():
            console.print(STOPPED)
            _leave(128 + number)
        ask_to_stop()
        raise KeyboardInterrupt

    before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with when_stopping(begin):  # while a flow runs, SIGTERM is Prefect's, and the flow tells (flows/pipeline.py)
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_after(seconds: float, console: Console) -> None:
    """For a stage that does not report for so long, such as one that waits for Ray to start."""
    time.sleep(seconds)
    console.print(STOPPED)
    _leave(130)


def _leave(code: int) -> None:
    """Ends this process now, its threads with it; unfinished attempts are put away, and the guard ends the children.

    It is not waited for: a thread that is just starting Ray would start again what the guard ends.
    """
    abandon_open()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _shut_down() -> None:
    if "prefect" in sys.modules:
        send_last_logs()
    if "ray" in sys.modules:
        from tasks.cluster import shutdown

        shutdown()
    guard.release()
