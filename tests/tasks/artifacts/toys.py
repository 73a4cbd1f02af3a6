"""Small stages for the tests of the store, and what runs them in processes that can be killed.

    fill -> steps      `fill` writes some files at once, `steps` works in steps and keeps its progress
"""

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pydantic import Field

from tasks.artifacts import Artifact, Spec, Stage, Store, Summary, Workspace, open_store
from tasks.artifacts import stage as stage_module
from tasks.errors import SaeflowError

# Children start from a clean process that has the imports done: fast, and safe where this process runs threads.
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["tests.tasks.artifacts.toys", "psutil", "s3fs", "aiobotocore.session"])


class FillSpec(Spec):
    """What `fill` writes."""

    size: int = Field(3000, ge=0, description="Bytes of the large file.")
    seed: int = Field(0, description="Seed of its bytes.")


def fill(spec: FillSpec, out: Workspace, **_: Artifact | list[Artifact]) -> Summary:
    """Writes two files, one in a folder; leaves rubbish in its scratch folder."""
    (out.scratch / "rubbish").write_bytes(b"x")
    (out.path / "large.bin").write_bytes(random.Random(spec.seed).randbytes(spec.size))
    (out.path / "folder").mkdir()
    (out.path / "folder" / "small.txt").write_text(f"{spec.size} bytes")
    return {"bytes": spec.size}


class StepsSpec(Spec):
    """How far `steps` goes."""

    steps: int = Field(4, ge=1, description="Steps.")
    witness: str | None = Field(None, description="A file outside that gets a line per step done.")
    stop_at: int | None = Field(None, description="Step after which it waits for `<witness>.go`.")


def steps(spec: StepsSpec, out: Workspace, *, source: Artifact) -> Summary:
    """Adds up its input's bytes step by step; goes on from its last step after a crash."""
    state = out.progress.read_json("state.json") or {"step": 0, "sum": 0}
    data = source.path("large.bin").read_bytes()
    while state["step"] < spec.steps:
        state = {"step": state["step"] + 1, "sum": state["sum"] + sum(data) * (state["step"] + 1)}
        out.progress.write_json("state.json", state)
        if spec.witness:
            with Path(spec.witness).open("a") as file:
                file.write(f"{os.getpid()} {state['step']}\n")
            if spec.stop_at == state["step"]:
                Path(spec.witness + ".stopped").touch()
                while not Path(spec.witness + ".go").exists():
                    time.sleep(0.01)
        out.report(state["step"], spec.steps, "steps")
    (out.path / "sum.txt").write_text(str(state["sum"]))
    return {"sum": state["sum"]}


FILL = Stage("fill", version=1, spec=FillSpec, run=fill)
STEPS = Stage("steps", version=1, spec=StepsSpec, run=steps, progress=True)


def build_fill(store: Store, **settings) -> Artifact:
    """One artifact of `fill`."""
    return FILL.build(store, FillSpec(**settings)).artifact


def build_all(store: Store) -> tuple[Artifact, Artifact]:
    """Both stages, the second on the first."""
    filled = FILL.build(store, FillSpec()).artifact
    return filled, STEPS.build(store, StepsSpec(), source=filled).artifact


def build_steps(url: str, witness: str, stop_at: int | None) -> None:
    """Builds `steps` on `fill`."""
    store = open_store(url)
    source = FILL.build(store, FillSpec()).artifact
    STEPS.build(store, StepsSpec(steps=6, witness=witness, stop_at=stop_at), source=source)


def wait_for(path: Path, process: BaseProcess) -> None:
    """Waits until a child has made a file."""
    while not path.exists():
        assert process.is_alive()
        time.sleep(0.01)


def child(work: Any, *arguments: Any, environment: Mapping[str, str] | None = None) -> BaseProcess:
    """Starts `work(*arguments)` in a process of its own, with this process's environment (and more)."""
    variables = dict(os.environ) | dict(environment or {})
    process = CHILDREN.Process(target=_run, args=(variables, work, arguments), daemon=True)
    process.start()
    return process


def _run(environment: dict[str, str], work: Any, arguments: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    work(*arguments)


def build_with_fault(store_url: str, fault: str, instant: int) -> None:
    """Builds everything, but at the `instant`-th time that a file of the store is touched, the fault happens.

    Faults: kill (SIGKILL), interrupt (Ctrl-C), full (no space left). Exit codes: 0 there was no such instant, 3 the
    fault ended the build with the error that a person is shown, 4 the build went on in spite of it, 1 anything else.
    """
    stage_module._git_revision()  # starts a process, once per process, and touches no store
    folders = (str(Path(store_url)), os.environ["SAEFLOW_CACHE"])
    seen = 0

    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if not event.startswith(("open", "os.", "shutil.")) or not arguments:
            return
        if not isinstance(arguments[0], str | os.PathLike) or not os.fspath(arguments[0]).startswith(folders):
            return
        if fault == "full" and not takes_space(event, arguments):
            return
        seen += 1
        if seen == instant:
            fail(fault, os.fspath(arguments[0]))

    sys.addaudithook(on_event)
    try:
        build_all(open_store(store_url))
    except KeyboardInterrupt:
        sys.exit(3)
    except SaeflowError as error:
        sys.exit(3 if " full" in str(error) or "No space left" in str(error) else 1)
    sys.exit(4 if seen >= instant else 0)


def takes_space(event: str, arguments: tuple[Any, ...]) -> bool:
    """Says whether an operation (an audit event of Python) can fail on a full disk."""
    return event in ("os.mkdir", "os.rename", "os.link") or (event == "open" and bool(arguments[2] & os.O_CREAT))


def fail(fault: str, path: str) -> None:
    """Brings the fault about, here and now."""
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault == "interrupt":
        raise KeyboardInterrupt
    else:
        raise OSError(28, "No space left on device", path)
