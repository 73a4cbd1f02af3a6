"""Runs the installed command as a person would, and looks at what it leaves."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

TINY = str(Path(__file__).with_name("tiny.yaml"))
STAGES = "model corpus capture archive preprocess train evaluate examples label score report".split()
RUN_SECONDS = 600


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("saeflow")), *arguments]


def run(store: str, json_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("run", TINY, "--store", store, "--json", str(json_file), *arguments),
        capture_output=True, text=True, timeout=RUN_SECONDS,
    )  # fmt: skip


def stages(json_file: Path) -> dict[str, dict[str, Any]]:
    content = json.loads(json_file.read_text())
    assert content["schema"] == 1
    return {entry["stage"]: entry for entry in content["stages"]}


def digests(json_file: Path) -> dict[str, str]:
    return {name: entry["digest"] for name, entry in stages(json_file).items()}


@contextlib.contextmanager
def started(store: str, log: Path, *more: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a session of its own; whatever the test does, it does not outlive it."""
    with log.open("wb") as out:
        arguments = command("run", TINY, "--store", store, *more)
        process = subprocess.Popen(arguments, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(what: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + RUN_SECONDS
    while not what():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)


def marked_processes() -> list[str]:
    """Command lines of everything that carries the mark of a run (tasks/guard.py) of this test's home."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if "SAEFLOW_RUN" in environment and environment.get("HOME") == os.environ["HOME"]:
                found.append(" ".join(process.cmdline())[:120])
    return found


def nothing_is_left() -> None:
    until = time.monotonic() + 20
    while marked_processes():
        assert time.monotonic() < until, marked_processes()
        time.sleep(0.2)
