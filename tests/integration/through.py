"""The first stages of the pipeline in a process of their own, without Prefect: to be watched, measured and killed.

    .venv/bin/python -m tests.integration.through train settings.yaml STORE result.json

Builds from the model to the named stage, one after the other, and writes each stage's summary as JSON.
"""

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SAMPLE_SECONDS = 1.0


class Reached(Exception):
    """The last wanted stage is built."""


@dataclass
class Direct:
    """Builds what `flows.dag.wire` wires, at once and in order."""

    store: Any
    runtime: Any
    last: str
    built: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def __call__(self, stage: Any, spec: Any, *, shard: int | None = None, **inputs: Any) -> Any:
        """Builds one stage or shard."""
        built = stage.build(self.store, spec, self.runtime, on_log=print, **inputs)
        entry = {"cached": built.cached, "seconds": built.seconds, "digest": built.artifact.digest}
        self.built.setdefault(stage.name, []).append(entry | {"summary": built.artifact.summary})
        print(f"{stage.name} {built.seconds:.1f} s {built.artifact.summary}", flush=True)
        if stage.name == self.last:
            raise Reached
        return built.artifact

    def window(self, count: int, chain: Callable[[int], Any]) -> list[Any]:
        """All shards, one after the other."""
        return [chain(i) for i in range(count)]


def main(last: str, config_file: str, store_url: str, result_file: str) -> None:
    """Builds everything up to a stage."""
    from flows.config import load_preset
    from flows.dag import wire
    from tasks import cluster, guard
    from tasks.artifacts import open_store
    from tasks.settings import settings

    guard.protect(run=os.environ["THROUGH_RUN"])
    config = load_preset(config_file).resolved(settings())
    direct = Direct(open_store(store_url), config.runtime, last)
    try:
        wire(config, direct)
    except Reached:
        Path(result_file).write_text(json.dumps(direct.built))
    finally:
        cluster.shutdown()
        guard.release()


@dataclass(frozen=True)
class Watched:
    """What a run did and took."""

    stages: dict[str, list[dict[str, Any]]]
    peak_bytes: int  # of all its processes together (PSS: shared pages are counted once)
    log: str


def run_through(last: str, settings: dict[str, Any], folder: Path) -> Watched:
    """Runs this module in a process of its own and measures all that it starts; raises when it fails."""
    run = uuid.uuid4().hex
    config, result, log = (folder / f"{run}.{kind}" for kind in ("yaml", "json", "log"))
    config.write_text(json.dumps(settings))  # JSON is YAML
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, last, str(config), str(folder / "store"), str(result)],
            cwd=ROOT,
            env=os.environ | {"THROUGH_RUN": run},
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
        peak = Peak(process.pid, f"SAEFLOW_RUN={run}")
        code = process.wait()
    peak_bytes = peak.stop()
    assert code == 0, log.read_text()[-4000:]
    return Watched(json.loads(result.read_text()), peak_bytes, log.read_text())


class Peak:
    """The largest sum of memory (PSS) over a process and all that carry its run's mark, sampled by a thread."""

    def __init__(self, pid: int, mark: str) -> None:
        self._mark = mark.encode()
        self._ours, self._foreign, self._new = {pid}, set[int](), set[int]()
        self._peak = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Ends the watch; returns the peak in bytes."""
        self._end.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._end.wait(SAMPLE_SECONDS):
            pids = {int(path.name) for path in Path("/proc").glob("[0-9]*")}
            for pid in pids - self._ours - self._foreign:
                if self._mark in _read(f"/proc/{pid}/environ"):
                    self._ours.add(pid)
                elif pid in self._new:
                    self._foreign.add(pid)  # seen twice: between fork and exec a child shows its parent's variables
                else:
                    self._new.add(pid)
            self._peak = max(self._peak, sum(map(_pss, self._ours & pids)))


def _pss(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""  # it has just ended, or is not ours


if __name__ == "__main__":
    main(*sys.argv[1:])
