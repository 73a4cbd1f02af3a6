"""`saeflow run` and `saeflow sweep`: one run in this process, with a live table and a clean end on Ctrl-C.

No child is left behind, however it ends.
"""

import contextlib
import functools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.config import PipelineConfig, grid_points, load_preset
from flows.dag import SWEEP_STAGES
from flows.events import Stopped, ask_to_stop, listening, stopping, when_stopping
from flows.live import Board
from flows.preflight import check
from flows.server import (
    end,
    find_server,
    prepare_environment,
    quiet_console,
    require_server,
    send_last_logs,
    start_temporary,
    wait_for,
)  # fmt: skip
from tasks import guard
from tasks.artifacts import Store, open_store
from tasks.artifacts.workspace import abandon_open
from tasks.cluster import shutdown
from tasks.errors import InputError
from tasks.settings import Settings, settings

STOPPED = "Stopped. What was committed stays; the same command goes on from here."
STOP_SECONDS = 20.0  # for running stages to stop their jobs and discard their attempts after Ctrl-C


def run_here(
    preset: str, sets: list[str], store_url: str | None, force: frozenset[str], only: str | None, json_file: Path | None
) -> None:
    """Runs a preset with its table; raises the run's error, or exits with 130 when it was stopped."""

    def carry_out(config: PipelineConfig, store: str) -> None:
        from flows.pipeline import run

        run(config, store, force, only)

    console = Console()
    board = Board(console)
    config = load_preset(preset, sets)
    _follow(board, config, store_url, carry_out, json_file, functools.partial(check, force=force, only=only))
    labels = board.rows["label"].figures()
    if "why" in labels:
        console.print(f"labels by {labels['labeller']}: {labels['why']}", highlight=False, soft_wrap=True)
    _link(board, "report", "report.html")


def sweep_here(
    preset: str, sets: list[str], grid: list[str], store_url: str | None, force: frozenset[str], json_file: Path | None
) -> None:
    """The same for a sweep over a grid."""

    def carry_out(config: PipelineConfig, store: str) -> None:
        from flows.sweep import run

        run(config, grid, store, force)

    config = load_preset(preset, sets)
    points = grid_points(config, grid)
    board = Board(Console(), SWEEP_STAGES)
    board.console.print(f"{len(points)} points: {' x '.join(grid)}", highlight=False, soft_wrap=True)
    _follow(board, config, store_url, carry_out, json_file, functools.partial(check, force=force, points=points))
    _link(board, "sweep", "sweep.html")


def _follow(
    board: Board,
    config: PipelineConfig,
    store_url: str | None,
    carry_out: Callable[[PipelineConfig, str], None],
    json_file: Path | None,
    checked: Callable[[PipelineConfig, Store], object],
) -> None:
    """Checks, finds or starts a server, and shows the flow that `carry_out` runs until it ends or is stopped."""
    console = board.console
    guard.sweep()
    now = settings()
    store = open_store(store_url or now.store)
    if json_file is not None:
        _require_writable(json_file)
    require_server(now)
    checked(config.resolved(now), store)  # what is wrong already is said before anything starts
    guard.protect()
    server = find_server(now)
    console.print(
        f"{config.title()}\nstore {store.url}   prefect {server or 'temporary server'}", highlight=False, soft_wrap=True
    )
    try:
        with _stopping_cleanly(console), _server(server, now), listening(board), board:
            carry_out(config, store.url)
    except BaseException as error:
        if not stopping() and not isinstance(error, Stopped | KeyboardInterrupt):
            raise
        console.print(STOPPED)
        guard.release()
        _leave(130)
    finally:
        _shut_down()
        if json_file is not None:
            _write_result(board, json_file)


def _require_writable(json_file: Path) -> None:
    """Tries the file now: it is written at the very end, where it may be the error of a long run that is to be told."""
    try:
        there = json_file.exists()
        json_file.open("a").close()
        if not there:
            json_file.unlink()
    except OSError as error:
        raise InputError(f"--json {json_file} cannot be written ({error.strerror}); name another file.") from error


def _write_result(board: Board, json_file: Path) -> None:
    """Writes what --json asks for; where that fails although it could be written before, the run's own error stands."""
    own = sys.exception()
    try:
        json_file.write_text(json.dumps({"schema": 1, "stages": board.result()}, indent=1) + "\n")
    except OSError as error:
        said = f"--json {json_file} could not be written: {error.strerror}."
        if own is None:
            raise InputError(f"{said} The run itself is done.") from error
        board.console.print(said, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _server(url: str | None, now: Settings) -> Iterator[None]:
    """Prefect, ready to report to the server at `url`; None: to a temporary one, which starts beside our imports."""
    log = now.cache / "logs" / "temporary-server.log"
    child = None
    if url is None:
        url, child = start_temporary(log)
    try:
        prepare_environment(url)
        quiet_console()
        if child is not None:
            wait_for(url, child, log)
        yield
    finally:
        if "prefect" in sys.modules:
            send_last_logs()
        if child is not None:
            end(child)


def _link(board: Board, stage: str, page: str) -> None:
    built = board.rows[stage].built.get(None)
    if built is not None:
        board.console.print(f"{stage} {built.artifact.url(page)}", highlight=False, soft_wrap=True)


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
    shutdown()
    guard.release()
