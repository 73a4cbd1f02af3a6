"""Children die with the run: real processes, real signals."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tasks import guard

# A run with a child in a session of its own that ignores every polite signal, and with a grandchild.
RUN = """
import signal, subprocess, sys, time
from pathlib import Path
from tasks import guard
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
guard.protect(sys.argv[1], Path(sys.argv[2]))
if len(sys.argv) > 3:
    guard.remove(Path(sys.argv[3]))
stubborn = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; print(flush=True); time.sleep(99)"
child = subprocess.Popen([sys.executable, "-c", stubborn], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
parent = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], start_new_session=True, stdout=subprocess.PIPE)
print(child.pid, parent.pid, int(parent.stdout.readline()), guard._active.guard.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


class Run:
    """A run in a process of its own: `pid`, its children's pids, its guard's pid."""

    def __init__(self, name: str, folder: Path, *remove: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", RUN, name, str(folder), *map(str, remove)], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        *self.children, self.guard = map(int, self.process.stdout.readline().split())

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)
        self.process.wait()

    def end(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.close()
        for pid in (*self.children, self.guard):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()


@pytest.fixture(autouse=True)
def unprotected(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may have a run of its own (the session's Ray), which these tests must not end."""
    monkeypatch.setattr(guard, "_active", None)
    monkeypatch.setenv(guard.MARK, "the run around the tests")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    runs: list[Run] = []

    def start(name: str, *remove: Path) -> Run:
        runs.append(Run(name, tmp_path / "runs", *remove))
        return runs[-1]

    yield start
    for run in runs:
        run.end()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_children_die_with_the_run(start: Callable[..., Run], tmp_path: Path, number: int) -> None:
    rubbish = tmp_path / "rubbish"
    rubbish.mkdir()
    run = start("doomed", rubbish)
    assert all(map(alive, run.children))

    run.kill(number)

    assert eventually(lambda: not any(map(alive, (*run.children, run.guard))))
    assert not rubbish.exists()
    assert not list((tmp_path / "runs").iterdir())


def test_another_run_is_never_touched(start: Callable[..., Run], tmp_path: Path) -> None:
    doomed, other = start("doomed"), start("other")

    doomed.kill()

    assert eventually(lambda: not any(map(alive, (*doomed.children, doomed.guard))))
    assert guard.sweep(tmp_path / "runs") == 0
    assert all(map(alive, (*other.children, other.guard)))


def test_sweep_ends_what_a_run_left_whose_guard_was_killed_too(start: Callable[..., Run], tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish"
    rubbish.mkdir()
    run = start("doomed", rubbish)
    os.kill(run.guard, signal.SIGKILL)
    run.kill()
    assert all(map(alive, run.children))

    assert guard.sweep(tmp_path / "runs") == 1

    assert not any(map(alive, run.children))
    assert not rubbish.exists()
    assert guard.sweep(tmp_path / "runs") == 0


def test_sweep_tells_a_reused_pid_from_the_run_and_leaves_other_machines_alone(tmp_path: Path) -> None:
    started, host = guard._started(os.getpid()), guard._host()
    living = {"run": "a", "pid": os.getpid(), "started": started, "host": host, "remove": []}
    (tmp_path / "living.json").write_text(json.dumps(living))
    (tmp_path / "reused.json").write_text(json.dumps({**living, "run": "b", "started": 1.0}))
    (tmp_path / "elsewhere.json").write_text(json.dumps({**living, "run": "c", "started": 1.0, "host": "elsewhere"}))
    (tmp_path / "torn.json").write_text("{")

    assert guard.sweep(tmp_path) == 1

    assert {path.name for path in tmp_path.iterdir()} == {"living.json", "elsewhere.json", "torn.json"}


@pytest.mark.parametrize("guard_lives", [True, False])
def test_release_ends_children_and_can_be_repeated(tmp_path: Path, guard_lives: bool) -> None:
    run = guard.protect(folder=tmp_path)
    assert guard.protect(folder=tmp_path) == run
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    assert guard._active is not None
    if not guard_lives:
        guard._active.guard.kill()

    guard.release()
    guard.release()

    assert child.wait(10) == -signal.SIGTERM
    assert guard.MARK not in os.environ
    assert not list(tmp_path.iterdir())


def test_a_forked_child_does_not_release_its_parents_run(tmp_path: Path) -> None:
    guard.protect(folder=tmp_path)
    child = os.fork()
    if child == 0:
        guard.release()
        os._exit(0)
    os.waitpid(child, 0)

    assert len(list(tmp_path.iterdir())) == 1
    guard.release()
