"""A stage as a Prefect task: looked up, built when missing, shown as Cached or Built, with progress and a table.

Prefect's own result cache is not used: the manifest decides (README, design). Futures of artifacts flow from task to
task, so the server knows the graph, and the digests in them make the next keys.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any

from prefect import Task, get_run_logger
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture, wait
from prefect.states import Completed

from flows.events import Event, Stopped, ask_to_stop, publish, stopping
from flows.limit import Limit
from flows.page import Progress, show_built
from flows.preflight import needed_first
from tasks.artifacts import Artifact, Built, Spec, Stage, Store
from tasks.errors import SaeflowError, ShardsFailed, StageFailed
from tasks.runtime import Runtime


class PrefectDo:
    """The `Do` (flows/dag.py) that makes things happen, inside a running flow.

    `only`, when given, is the one stage that may be built: those before it must be there, those after are left out.
    """

    def __init__(
        self,
        store: Store,
        runtime: Runtime,
        force: frozenset[str],
        only: str | None,
        needed: frozenset[str],
    ) -> None:
        self._store = store
        self._runtime = runtime
        self._force = force
        self._only = only
        self._needed = needed
        self._single: dict[str, PrefectFuture[Any]] = {}
        self._latest: PrefectFuture[Any] | None = None
        self._progress: dict[str, Progress] = {}
        self._of = 0  # how many the window that is open has in all
        self._errors: dict[tuple[str, int | None], BaseException] = {}  # what really happened, in order
        self._failed: str | None = None  # the first stage without shards that did: no other need go on

    def __call__(self, stage: Stage, spec: Spec, *, shard: int | None = None, **inputs: Any) -> Any:
        if stage.name not in self._needed:
            return None
        of = None if shard is None else self._of
        carried = Task(
            self._in_task(stage, spec, shard, of), name=stage.name, cache_policy=NO_CACHE, persist_result=False,
            task_run_name=stage.name if shard is None else f"{stage.name} {shard + 1} of {of}",
        )  # fmt: skip
        future = carried.submit(inputs)
        if shard is None:
            self._single[stage.name] = future
        else:
            self._latest = future
        return future

    def window(self, count: int, chain: Callable[[int], Any], at_once: int | None = None) -> list[Any]:
        """Depth first: shard i is archived before shard i + window is captured. A failed shard stops no other."""
        in_flight: collections.deque[PrefectFuture[Any]] = collections.deque()
        self._of = count
        chains = []
        for i in range(count):
            chains.append(chain(i))
            if self._latest is not None:
                in_flight.append(self._latest)
            while len(in_flight) >= (at_once or self._runtime.window):
                in_flight.popleft().wait()
            if stopping():
                raise Stopped
            if self._failed is not None:
                self.finish()
        wait(list(in_flight))
        failures = {f"{stage} {i + 1} of {count}": error for (stage, i), error in self._errors.items() if i is not None}
        if failures:
            raise ShardsFailed(failures, count)
        return chains

    def walk(self, wiring: Callable[[], Any]) -> dict[str, Artifact]:
        """Has all that `wiring` submits done, and returns the artifacts of the stages that have no shards."""
        try:
            wiring()
            return self.finish()
        except Exception:
            raise
        except BaseException:  # cancelled, terminated, Ctrl-C: the stages' threads are told, and stop their jobs
            ask_to_stop()
            raise

    def finish(self) -> dict[str, Artifact]:
        """Waits for every stage and returns the artifacts; raises the first failed stage's own error.

        After the failure of a stage without shards the others end at their next report.
        """
        wait(list(self._single.values()))
        for (stage, _), error in self._errors.items():
            if isinstance(error, SaeflowError | Stopped):
                raise error
            raise StageFailed(f"{stage} failed: {type(error).__name__}: {error}") from error
        return {name: future.result() for name, future in self._single.items()}

    def _in_task(
        self, stage: Stage, spec: Spec, shard: int | None, of: int | None
    ) -> Callable[[dict[str, Any]], State]:
        """The function a Prefect task runs; one closure per call keeps specs and stores out of Prefect's parameters."""

        def run_stage(inputs: dict[str, Any]) -> State:
            return self._carry_out(stage, spec, shard, of, inputs)

        return run_stage

    def _carry_out(
        self, stage: Stage, spec: Spec, shard: int | None, of: int | None, inputs: dict[str, Any]
    ) -> State:
        """Runs inside the Prefect task."""
        tell = functools.partial(Event, stage=stage.name, shard=shard, of=of)
        shown = self._progress.setdefault(stage.name, Progress(stage.name, of))

        limit = Limit(stage.name, self._runtime.stage_hours)

        def report(done: float, total: float, unit: str) -> None:
            self._require_no_failure()
            limit.require()
            publish(tell("progress", done=done, total=total, unit=unit))
            shown.report(shard, done, total)

        def log(message: str) -> None:
            publish(tell("log", message=message))
            get_run_logger().info(message)

        publish(tell("started"))
        try:
            self._require_no_failure()
            with limit:
                built = self._build(stage, spec, report, log, inputs)
        except BaseException as raised:
            error = self._note(stage.name, shard, raised)
            publish(tell("failed", message=str(error) or type(error).__name__))
            if error is raised:
                raise
            raise error from raised
        publish(tell("finished", built=built))
        if shard is None and not built.cached:
            show_built(stage.name, built)
        shown.finished(shard)
        get_run_logger().info(f"{built.artifact.location}")
        name = "Cached" if built.cached else "Built"
        return Completed(name=name, message=built.artifact.location, data=built.artifact)

    def _note(self, stage: str, shard: int | None, error: BaseException) -> BaseException:
        """Remembers why a stage ended, and returns what its task is to raise."""
        if isinstance(error, Stopped) and not stopping():  # an Exception: any other is raised in the flow by Prefect
            error = StageFailed(f"{stage} was stopped, because {self._failed} failed.")
        self._errors[stage, shard] = error
        if shard is None and isinstance(error, Exception):
            self._failed = self._failed or stage
        return error

    def _require_no_failure(self) -> None:
        if self._failed is not None:
            raise Stopped

    def _build(
        self, stage: Stage, spec: Spec, report: Any, log: Callable[[str], None], inputs: dict[str, Any]
    ) -> Built:
        if self._only is not None and stage.name != self._only:
            found = stage.find(self._store, spec, **inputs)
            if found is None:
                raise needed_first(self._only, stage.name, self._store)
            return Built(found, cached=True, seconds=0.0)
        return stage.build(
            self._store, spec, self._runtime, force=stage.name in self._force, on_report=report, on_log=log, **inputs
        )
