"""`run_batches` as a new process would call it, with progress in a folder that can crash at any write."""

import json
from pathlib import Path
from typing import Any

import anthropic

from tasks.artifacts import Workspace
from tasks.claude import Answers, run_batches
from tasks.claude.requests import Request
from tasks.claude.service import Patience, Service
from tasks.runtime import Runtime

KEY = "5ae" * 21 + "0"
FAST = Patience(first_poll=0.01, longest_poll=0.02, unreachable=20.0, outage=20.0, settle=0.02)


class Crash(BaseException):
    """The run is gone, as after SIGKILL: nothing may catch it."""


class FolderProgress:
    """Progress in a folder; `crash_at` n raises before (even) or after (odd) the n/2-th change."""

    def __init__(self, folder: Path, crash_at: int | None = None) -> None:
        self.folder, self.crash_at, self.moments = folder, crash_at, 0

    def moment(self) -> None:
        if self.moments == self.crash_at:
            raise Crash
        self.moments += 1

    def write(self, name: str, data: bytes) -> None:
        self.moment()
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self.moment()

    def read(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.exists() else None

    def write_json(self, name: str, value: Any) -> None:
        self.write(name, json.dumps(value).encode())

    def read_json(self, name: str) -> Any:
        data = self.read(name)
        return None if data is None else json.loads(data)

    def names(self, prefix: str = "") -> list[str]:
        files = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]
        return sorted(name for name in files if name.startswith(prefix))


def parse(text: str) -> str:
    return str(json.loads(text)["common_semantic"]) if "common_semantic" in text else _refuse(text)


def _refuse(text: str) -> str:
    raise ValueError(f"no common_semantic in {text[:20]!r}")


def run(
    folder: Path,
    url: str,
    asked: list[Request],
    *,
    crash_at: int | None = None,
    key: str = "test-key",
    budget: float = 5.0,
    hours: float = 1.0,
    out: Workspace | None = None,
    patience: Patience = FAST,
) -> Answers:
    """`run_batches` with a client of its own, as a new process would have."""
    if out is None:
        runtime = Runtime(budget_dollars=budget, batch_hours=hours)
        out = Workspace(folder, folder, KEY, runtime, held=FolderProgress(folder, crash_at))  # type: ignore[arg-type]
    with anthropic.Anthropic(api_key=key, base_url=url, max_retries=0) as client:
        return run_batches(asked, parse, out, patience, Service(client, patience, out.log))


def workspace(folder: Path, log: list[str], budget: float = 5.0) -> Workspace:
    """A workspace whose messages can be read."""
    held = FolderProgress(folder)
    return Workspace(folder, folder, KEY, Runtime(budget_dollars=budget), on_log=log.append, held=held)  # type: ignore[arg-type]


def values(answers: Answers) -> dict[str, Any]:
    return {name: outcome.value for name, outcome in answers.outcomes.items()}


WANTED = {f"{i}": f"the token word{i}" for i in range(5)}
