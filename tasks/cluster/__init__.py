"""Ray: start a local cluster or attach to one; long-lived actors, jobs. All use of Ray is through here.

    start_ahead(runtime)                                  # where there is something else to do meanwhile
    cluster = attach_or_start(runtime)                    # the first stage that must be built pays for it
    pool = cluster.actors("capture", factory, *args, count=2)
    result = pool.stream("method", argument, receive=sum) # on an idle actor; died actors are replaced, work retried
    client = cluster.job_client()                         # ray.job_submission.JobSubmissionClient
    shutdown()                                            # what we started ends; an attached cluster stays

A local cluster binds every port to loopback, asks for a token of its own, and lives under the run's guard.
"""

import atexit
import contextlib
import ctypes
import functools
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import guard
from tasks.cluster.actors import Pool
from tasks.errors import ClusterError, InputError
from tasks.runtime import Runtime

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

REACH_SECONDS = 5.0  # how long an address may take to answer before it counts as wrong
START_ATTEMPTS = 3  # Ray gives its parts 30 s to start, which is too little while the machine is busy
SIGACTION_BYTES = 256  # more than struct sigaction has anywhere; opaque here
OBJECT_STORE_BYTES = (128 << 20, 512 << 20)  # we pass chunks of some MiB; files carry the rest

# One token for the process: Ray keeps the first it has read, also for a later cluster of the same process.
_token = secrets.token_hex(32)
_lock = threading.Lock()
_current: "Cluster | None" = None


@dataclass
class Cluster:
    """A Ray cluster this process is connected to; made by `attach_or_start` only.

    address: of Ray (GCS), host:port or ray://...; what a job's driver gets from Ray itself as RAY_ADDRESS.
    dashboard: URL of the Jobs API. embedded: we started it. cpus, gpus: how many it has. folder: Ray's files, when we
    started it.
    """

    address: str
    dashboard: str
    embedded: bool
    cpus: int
    gpus: int
    folder: Path | None = None
    _asked: str | None = None  # the runtime's ray_address
    _pools: dict[str, Pool] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def job_client(self) -> "JobSubmissionClient":
        """A client of the Jobs API; it sends the cluster's token by itself."""
        from tasks.cluster import jobs

        return jobs.job_client(self.dashboard)

    @functools.cached_property
    def python(self) -> str:
        """The interpreter for the entrypoint of jobs: that of the cluster's head, where jobs begin.

        `python` would be whichever the head's PATH has first.
        """
        if self.embedded:
            return sys.executable
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

        head = next((node for node in ray.nodes() if "node:__internal_head__" in node["Resources"]), None)
        where = {} if head is None else {"scheduling_strategy": On(head["NodeID"], soft=True)}
        return str(ray.get(ray.remote(num_cpus=0, **where)(_interpreter).remote()))

    def actors(
        self, name: str, factory: Callable[..., Any], *args: Any, count: int, cpus: int = 1, gpus: int = 0
    ) -> Pool:
        """The pool of that name, made at the first call: up to `count` actors that each hold `factory(*args)`.

        cpus, gpus: what one actor needs. A local cluster is not asked for CPUs: it may have fewer than the actors
        want, and they must not wait for ever; an attached one is, so that Ray finds them a place (or adds a machine).
        """
        with self._lock:
            if name not in self._pools or self._pools[name].closed:
                resources = {"num_cpus": 0 if self.embedded else cpus, "num_gpus": gpus}
                self._pools[name] = Pool(name, factory, args, count, resources)
            return self._pools[name]

    def close_actors(self) -> None:
        """Ends all pools, so that what comes next has the memory and the GPUs. They start again when asked for."""
        with self._lock:
            while self._pools:
                self._pools.popitem()[1].close()


def attach_or_start(runtime: Runtime) -> Cluster:
    """The cluster of this process: the one `runtime.ray_address` names, else a local one that ends with the run."""
    global _current
    with _lock:
        if _current is None:
            _current = _attach(runtime) if runtime.ray_address else _start(runtime)
            # Or a thread that asks Ray for something after `shutdown` would silently start a new Ray.
            os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
            _be_quiet()
            atexit.register(shutdown)
        elif _current._asked != runtime.ray_address:
            raise ClusterError(
                f"This run already uses the Ray cluster at {_current.address}; it cannot also use "
                f"runtime.ray_address {runtime.ray_address!r}. Use one address for all stages of a run."
            )
        return _current


def start_ahead(runtime: Runtime) -> None:
    """Lets a local cluster start, which takes ten seconds, while stages run that need none.

    Whoever asks for the cluster meanwhile waits for it, and so does `shutdown`. Where it does not start,
    `attach_or_start` tries again, and says so.
    """

    def start() -> None:
        with contextlib.suppress(ClusterError):
            attach_or_start(runtime)
            threading.Event().wait()  # Linux ends what Ray has started together with the thread that did it

    if not runtime.ray_address:
        atexit.register(shutdown)  # an interpreter must not end while Ray starts
        threading.Thread(target=start, name="start-ray", daemon=True).start()


def shutdown() -> None:
    """Leaves the cluster, and ends it if we started it. May be called again."""
    global _current
    with _lock:
        if _current is None:
            return
        import ray

        leaving, _current = _current, None
        leaving.close_actors()
        ray.shutdown()
        if leaving.folder is not None:
            shutil.rmtree(leaving.folder, ignore_errors=True)
            for name in _environment(leaving.folder):
                os.environ.pop(name, None)


def _start(runtime: Runtime) -> Cluster:
    guard.protect()
    for attempt in range(1, START_ATTEMPTS + 1):
        folder = _folder()
        os.environ.update(_environment(folder))
        import ray

        try:
            with _free_agent_port(), _keeping_sigterm():
                context = ray.init(
                    address="local", _temp_dir=str(folder), _node_ip_address="127.0.0.1", dashboard_host="127.0.0.1",
                    include_dashboard=True, log_to_driver=False, logging_level="ERROR",
                    object_store_memory=_object_store(),
                    # Training's ranks must all run at once, whatever the machine; capture actors ask for no CPU.
                    num_cpus=max(os.cpu_count() or 1, runtime.train_workers + 1),
                )
            break
        except Exception as error:
            ray.shutdown()
            if attempt == START_ATTEMPTS:
                raise ClusterError(f"A local Ray could not be started ({error}). Its logs were in {folder}.") from error
            logging.getLogger(__name__).warning("Ray did not start (%s); trying again.", error)
    address, dashboard = context.address_info["address"], f"http://{context.address_info['webui_url']}"
    # Where a job's supervisor looks for its own cluster; without it, it takes whichever it finds on the machine.
    (folder / "ray_current_cluster").write_text(address)
    return Cluster(address, dashboard, True, *_resources(), folder, runtime.ray_address)


def _attach(runtime: Runtime) -> Cluster:
    address = runtime.ray_address
    assert address is not None
    reach(runtime)
    import ray

    try:
        with _keeping_sigterm():
            context = ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        raise ClusterError(
            f"The Ray cluster at {address!r} cannot be used ({error}). Check runtime.ray_address and, if the cluster "
            "asks for a token, RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH; leave the address empty for a local Ray."
        ) from error
    dashboard = runtime.ray_dashboard or f"http://{context.dashboard_url}"
    return Cluster(address, dashboard, False, *_resources(), None, address)


def reach(runtime: Runtime) -> None:
    """Fails at once for a cluster where nothing listens, or without a GPU that is asked for. Loads no Ray.

    Ray itself would try for a minute, and a missing GPU would be told after the model and the corpus are made.
    """
    if runtime.device == "cuda" and not runtime.ray_address:
        import torch

        if not torch.cuda.is_available():
            raise InputError("runtime.device is 'cuda', but torch finds no GPU on this machine; use auto or cpu.")
    for name in ("ray_address", "ray_dashboard"):
        address = getattr(runtime, name) or ""
        host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
        if not port.isdigit():  # auto, local addresses: Ray looks them up; a dashboard behind a proxy
            continue
        try:
            socket.create_connection((host, int(port)), REACH_SECONDS).close()
        except (OSError, OverflowError) as error:
            raise ClusterError(
                f"No Ray cluster answers at runtime.{name} {address!r} ({error}). Start one (`ray start --head`), "
                "correct the address, or leave it empty for a local Ray."
            ) from error


def _interpreter() -> str:
    return sys.executable


def _folder() -> Path:
    """Ray's own folder, with the token in it; short, because paths of unix sockets end at 107 characters."""
    parent = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="saeflow-", dir=parent if len(parent) <= 24 else "/tmp"))  # mode 0700
    guard.remove(folder)
    (folder / "token").touch(mode=0o600)
    (folder / "token").write_text(_token)
    return folder


def _environment(folder: Path) -> dict[str, str]:
    """What the driver, all of Ray's processes and the Jobs client must agree on."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        # The name misleads: it makes Ray keep 127.0.0.1 as the node's address, on Linux too, and then each of its
        # ports (GCS, raylet, agents, metrics, workers) is bound to loopback.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "DASHBOARD_METRIC_PORT": "-1",  # fixed ports otherwise, which two runs on one machine would fight for
        "AUTOSCALER_METRIC_PORT": "-1",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a FutureWarning
        # Every process of Ray's would wait 5 s at its end to report tasks, and 5 s more for metrics that nobody reads.
        "RAY_task_events_shutdown_flush_timeout_ms": "200",
        "RAY_enable_metrics_collection": "0",
    }


@contextlib.contextmanager
def _free_agent_port() -> Iterator[None]:
    """Lets the node's agent take any port.

    `ray.init` has no argument for it and always takes 52365; a second run on the machine would accept no job.
    """
    from ray._private import parameter

    usual = parameter.RayParams
    parameter.RayParams = functools.partial(usual, dashboard_agent_listen_port=None)
    try:
        yield
    finally:
        parameter.RayParams = usual


@contextlib.contextmanager
def _keeping_sigterm() -> Iterator[None]:
    """Puts back what the process does at SIGTERM: Ray's own handler prints stacks and aborts.

    By sigaction itself: Python's `signal` changes handlers in the main thread only, and Ray may start in another.
    """
    libc = ctypes.CDLL(None)
    before = ctypes.create_string_buffer(SIGACTION_BYTES)
    libc.sigaction(int(signal.SIGTERM), None, before)
    try:
        yield
    finally:
        libc.sigaction(int(signal.SIGTERM), before, None)


def _object_store() -> int:
    """Bytes for Ray's shared memory: a small part of /dev/shm, which containers often keep at 64 MiB."""
    least, most = OBJECT_STORE_BYTES
    with contextlib.suppress(OSError):
        most = min(most, shutil.disk_usage("/dev/shm").free // 2)
    return max(least, most)


def _be_quiet() -> None:
    """Sends Ray's messages about died workers to the log instead of the terminal: we raise our own error for those."""
    from ray._private import worker

    # Ray has no setting for it: `log_to_driver=False` covers only what workers print.
    worker.print_to_stdstream = lambda data, **_: logging.getLogger(__name__).debug("%s", data)


def _resources() -> tuple[int, int]:
    """CPUs and GPUs of the cluster."""
    import ray

    found = ray.cluster_resources()
    return int(found.get("CPU", 0)), int(found.get("GPU", 0))
