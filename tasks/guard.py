"""Children die with the run: nothing that a run started outlives it, however it ends.

Ray's processes, Prefect's temporary server and the driver of a submitted job are not always told that the run was
killed; without help they stay for minutes. So every process of a run carries a mark, `SAEFLOW_RUN=<id>`, in the
environment it was started with, and a small guard process in a session of its own holds the reading end of a pipe.
The run's death, by whatever signal, closes the pipe; the guard then ends every process with the mark.

    guard.protect()        before anything else is started, so that all descendants inherit the mark
    guard.remove(folder)   this folder goes with the run too
    guard.release()        at the normal end: the same clean-up, waited for
    guard.sweep()          what runs left behind whose guard was killed with them

Run as a file (`python guard.py RECORD RUN`) it is that guard process; it imports psutil and nothing of this project.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "SAEFLOW_RUN"
GRACE_SECONDS = 1.0  # between asking a process to end and ending it
RELEASE_SECONDS = 15.0  # a guard that needs longer than this is left to finish alone


@dataclass(frozen=True)
class _Protection:
    run: str
    owner: int  # pid that called protect; a forked child must not release its parent's run
    record: Path
    guard: subprocess.Popen[bytes]
    pipe: int  # writing end; closed by the kernel when the run dies


_active: _Protection | None = None


def protect(run: str | None = None, folder: Path | None = None) -> str:
    """Marks this process's future children and starts the guard; returns the run's id. Again, it changes nothing.

    `folder` holds the records of living runs (default `<cache>/runs`).
    """
    global _active
    if _active is not None and _active.owner == os.getpid():
        return _active.run
    run = run or uuid.uuid4().hex
    folder = folder or _default_folder()
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / f"{run}.json"
    _write(record, {"run": run, "pid": os.getpid(), "started": _started(os.getpid()), "host": _host(), "remove": []})
    reading, writing = os.pipe()
    try:
        # By file and with -P, so that a folder named `tasks` in the working directory cannot take our place. The guard
        # must not carry a mark, or it would end itself (or be ended by the guard of a run around this one).
        guard = subprocess.Popen(
            [sys.executable, "-P", __file__, str(record), run],
            stdin=reading, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            env={name: value for name, value in os.environ.items() if name != MARK},
        )
    finally:
        os.close(reading)
    os.environ[MARK] = run
    os.environ["SPT_NOENV"] = "1"  # setproctitle (Ray's agents) would write its title over the mark
    _active = _Protection(run, os.getpid(), record, guard, writing)
    return run


def remove(path: Path) -> None:
    """Has a folder removed when this run ends. Call `protect` first."""
    assert _active is not None, "protect() comes before remove()"
    content = json.loads(_active.record.read_text())
    _write(_active.record, {**content, "remove": [*content["remove"], str(path)]})


def release() -> None:
    """Ends what is left of this run and waits until it is gone. Without `protect`, or twice, it does nothing."""
    global _active
    if _active is None or _active.owner != os.getpid():
        return
    ending, _active = _active, None
    os.close(ending.pipe)
    with contextlib.suppress(subprocess.TimeoutExpired):
        ending.guard.wait(RELEASE_SECONDS)
    if ending.record.exists():  # the guard was killed before it could do it
        _clean(ending.record, ending.run)
    if os.environ.get(MARK) == ending.run:
        del os.environ[MARK]


def sweep(folder: Path | None = None) -> int:
    """Cleans up after dead runs whose guard died too; returns how many there were. Living runs are not touched."""
    swept = 0
    for record in sorted((folder or _default_folder()).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):  # another run swept it in this moment
            content = json.loads(record.read_text())
            # A folder shared by several machines holds records of processes that cannot be seen from here.
            if content["host"] == _host() and _started(content["pid"]) != content["started"]:
                _clean(record, content["run"])
                swept += 1
    return swept


def _clean(record: Path, run: str) -> None:
    """Ends every process with the run's mark, then removes the run's folders, then its record."""
    _end_marked(run)
    with contextlib.suppress(OSError, ValueError):
        for path in json.loads(record.read_text())["remove"]:
            shutil.rmtree(path, ignore_errors=True)
    record.unlink(missing_ok=True)


def _end_marked(run: str) -> None:
    """TERM, then KILL, until two looks in a row find none: a process between fork and exec is not seen."""
    asked_at: dict[int, float] = {}
    clean_looks = 0
    while clean_looks < 2:
        found = _marked(run)
        clean_looks = 0 if found else clean_looks + 1
        for process in found:
            now = time.monotonic()
            first = asked_at.setdefault(process.pid, now)
            with contextlib.suppress(psutil.Error):
                if first == now:
                    process.terminate()
                elif now - first > GRACE_SECONDS:
                    process.kill()
        time.sleep(0.1)


def _marked(run: str) -> list[psutil.Process]:
    """Processes started with the run's mark. The run itself never is one: it set the mark after its own start."""
    found = []
    for process in psutil.process_iter():
        # Other users' processes refuse; a process that just ended has no environment any more.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == run and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _started(pid: int) -> float | None:
    """When a process started, to tell it from a later one with the same pid; None when there is none.

    On Linux in clock ticks since boot: unlike a time of day it does not move when the clock is set.
    """
    try:
        if Path("/proc/self/stat").exists():
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return None if fields[0] in "ZX" else float(fields[19])
        return psutil.Process(pid).create_time()
    except (OSError, psutil.Error):
        return None


def _write(record: Path, content: dict[str, object]) -> None:
    temporary = record.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(content))
    temporary.replace(record)


def _host() -> str:
    return socket.gethostname()


def _default_folder() -> Path:
    from tasks.settings import settings

    return settings().cache / "runs"


def _main(record: Path, run: str) -> None:
    """Waits for the run's end, then cleans up. Ctrl-C and a closed terminal are the run's business, not the guard's."""
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_IGN)
    while os.read(0, 1):
        pass
    _clean(record, run)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2])
