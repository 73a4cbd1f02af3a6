"""Ray for real: pools of actors, jobs with a token, attaching, and what a killed run leaves."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks import cluster as module
from tasks import guard
from tasks.cluster import Cluster, actors
from tasks.cluster.actors import Pool
from tasks.errors import ClusterError, InputError
from tasks.runtime import Runtime
from tests.servers.waiting import eventually


class Worker:
    """Held by an actor: tells who it is, fails and dies as asked."""

    def __init__(self, base: int, folder: str = "") -> None:
        self.base, self.folder = base, Path(folder)

    def add(self, value: int, seconds: float = 0) -> Iterator[tuple[int, int]]:
        time.sleep(seconds)
        yield self.base + value, os.getpid()

    def refuse(self, value: int) -> Iterator[int]:
        yield value
        raise InputError(f"{value} is not good; give another.")

    def die(self, times: int) -> Iterator[int]:
        """Dies at the first `times` attempts, which it counts in files."""
        attempt = len(list(self.folder.iterdir()))
        (self.folder / str(attempt)).touch()
        if attempt < times:
            os._exit(1)
        yield attempt

    def count(self, number: int, die_at: int = -1) -> Iterator[int]:
        first = not (self.folder / "died").exists()
        for i in range(number):
            if first and i == die_at:
                (self.folder / "died").touch()
                os._exit(1)
            yield i


class Broken:
    def __init__(self) -> None:
        raise InputError("There is no such layer.")


def ask(pool: Pool, method: str, *arguments: Any) -> Any:
    """The last of what a method yields."""
    return pool.stream(method, *arguments, receive=list)[-1]


def assert_it_works(ray_cluster: Cluster) -> None:
    assert ask(ray_cluster.actors("working", Worker, 1, count=1), "add", 1)[0] == 2
    ray_cluster.close_actors()


def test_a_pool_uses_every_actor_and_no_more(ray_cluster: Cluster) -> None:
    pool = ray_cluster.actors("many", Worker, 10, count=2)
    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(lambda i: ask(pool, "add", i, 0.5), range(6)))
    pool.close()
    assert [value for value, _ in results] == [10, 11, 12, 13, 14, 15]
    assert len({pid for _, pid in results}) == 2


def test_actors_are_kept_between_calls_and_started_anew_after_closing(ray_cluster: Cluster) -> None:
    first = ask(ray_cluster.actors("kept", Worker, 1, count=2), "add", 1)
    assert ask(ray_cluster.actors("kept", Worker, 1, count=2), "add", 1) == first
    ray_cluster.close_actors()
    assert ask(ray_cluster.actors("kept", Worker, 1, count=2), "add", 1)[1] != first[1]
    ray_cluster.close_actors()


def test_actors_without_work_end_and_start_again(ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "IDLE_SECONDS", 0.2)
    pool = ray_cluster.actors("resting", Worker, 1, count=1)
    _, pid = ask(pool, "add", 1)
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)
    assert ask(pool, "add", 1)[0] == 2
    ray_cluster.close_actors()


def test_an_error_of_the_work_is_raised_as_it_was(ray_cluster: Cluster) -> None:
    pool = ray_cluster.actors("errors", Worker, 1, count=1)
    with pytest.raises(InputError, match="7 is not good; give another"):
        ask(pool, "refuse", 7)
    assert ask(pool, "add", 1)[0] == 2
    pool.close()
    with pytest.raises(InputError, match="no such layer"):
        ask(ray_cluster.actors("broken", Broken, count=1), "add", 1)
    ray_cluster.close_actors()


def test_a_died_actor_is_replaced_and_its_work_done_again(ray_cluster: Cluster, tmp_path: Path) -> None:
    pool = ray_cluster.actors("dying", Worker, 1, str(tmp_path), count=1)
    assert ask(pool, "die", 2) == 2
    pool.close()


def test_work_that_always_kills_its_actor_ends_in_one_clear_error(
    ray_cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pool = ray_cluster.actors("doomed", Worker, 1, str(tmp_path), count=1)
    with pytest.raises(ClusterError, match="doomed actor died 3 times over the same piece of work"):
        ask(pool, "die", 9)
    assert ask(pool, "add", 1)[0] == 2
    ray_cluster.close_actors()
    assert capfd.readouterr() == ("", "")


def test_a_stream_starts_over_with_a_new_actor(ray_cluster: Cluster, tmp_path: Path) -> None:
    pool = ray_cluster.actors("streaming", Worker, 1, str(tmp_path), count=1)
    seen: list[list[int]] = []

    def receive(items: Iterator[int]) -> int:
        seen.append([])
        for item in items:
            seen[-1].append(item)
        return len(seen[-1])

    assert pool.stream("count", 50, 20, receive=receive) == 50
    assert len(seen) == 2 and seen[1] == list(range(50))
    pool.close()


def test_a_reader_that_fails_does_not_keep_the_actor(ray_cluster: Cluster) -> None:
    pool = ray_cluster.actors("reader", Worker, 1, count=1)

    def receive(items: Iterator[int]) -> int:
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        pool.stream("count", 1000, receive=receive)
    assert ask(pool, "add", 1)[0] == 2
    pool.close()


def test_work_of_a_closed_pool_ends_with_an_error(ray_cluster: Cluster) -> None:
    pool = ray_cluster.actors("closing", Worker, 1, count=1)
    ask(pool, "add", 1)
    threading.Timer(0.5, pool.close).start()
    with pytest.raises(ClusterError, match="closing actors were closed"):
        ask(pool, "add", 1, 600)
    ray_cluster.close_actors()


def test_one_cluster_for_a_run(ray_cluster: Cluster) -> None:
    with ThreadPoolExecutor(4) as threads:
        assert set(map(id, threads.map(module.attach_or_start, [Runtime()] * 4))) == {id(ray_cluster)}
    with pytest.raises(ClusterError, match="one address for all stages"):
        module.attach_or_start(Runtime(ray_address="elsewhere:6379"))


def test_every_port_is_on_loopback(ray_cluster: Cluster) -> None:
    connections = []
    for process in guard._marked(os.environ[guard.MARK]):
        with contextlib.suppress(psutil.NoSuchProcess):
            connections += process.net_connections("tcp")
    listening = [c for c in connections if c.status == psutil.CONN_LISTEN]
    assert len(listening) > 5
    assert {c.laddr.ip for c in listening} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_a_job_needs_the_token_and_can_use_ray(ray_cluster: Cluster) -> None:
    import requests

    assert requests.get(f"{ray_cluster.dashboard}/api/jobs/", timeout=10).status_code == 401
    client = ray_cluster.job_client()
    code = "import ray; ray.init(); print('sum', ray.get(ray.remote(lambda: 6).remote()))"
    job = client.submit_job(entrypoint=f'{ray_cluster.python} -c "{code}"')
    while not client.get_job_status(job).is_terminal():
        time.sleep(0.2)
    assert "sum 6" in client.get_job_logs(job)
    assert client.get_job_status(job) == "SUCCEEDED"


ATTACH = """
import sys
from tasks.cluster import attach_or_start, shutdown
from tasks.runtime import Runtime
from tests.tasks.cluster.test_cluster import Worker, ask
cluster = attach_or_start(Runtime(ray_address=sys.argv[1]))
value, _ = ask(cluster.actors("attached", Worker, 1, count=1, cpus=1), "add", 1)
print(value, cluster.embedded, cluster.dashboard, cluster.job_client().list_jobs() is not None)
shutdown()
"""


def test_attaching_leaves_the_cluster_as_it_was(ray_cluster: Cluster) -> None:
    command = [sys.executable, "-W", "error", "-c", ATTACH, ray_cluster.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["2", "False", ray_cluster.dashboard, "True"], done.stderr
    assert done.stderr == ""
    assert_it_works(ray_cluster)


def test_an_address_where_nothing_listens_is_said_at_once() -> None:
    code = "from tasks.cluster import *; attach_or_start(Runtime(ray_address='127.0.0.1:1'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "No Ray cluster answers at runtime.ray_address '127.0.0.1:1'" in done.stderr


KILLED = """
import sys, time
from pathlib import Path
from tasks import guard
from tasks.cluster import attach_or_start
from tasks.runtime import Runtime
guard.protect("killed", Path(sys.argv[1]))
cluster = attach_or_start(Runtime())
client = cluster.job_client()
job = client.submit_job(entrypoint=f'{cluster.python} -c "import ray, time; ray.init(); time.sleep(600)"')
while client.get_job_info(job).driver_info is None:
    time.sleep(0.2)
print(cluster.folder, flush=True)
time.sleep(600)
"""


def test_a_killed_run_leaves_nothing_and_another_run_goes_on(ray_cluster: Cluster, tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        said = run.stdout.readline().strip()
        assert said
        folder = Path(said)
        processes = psutil.Process(run.pid).children(recursive=True)
        assert folder.is_dir() and len(processes) > 10
        run.send_signal(signal.SIGKILL)

    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive
    assert not folder.exists()
    assert_it_works(ray_cluster)


AHEAD = """
import sys, time
from pathlib import Path
from tasks import cluster, guard
from tasks.runtime import Runtime
guard.protect("ahead", Path(sys.argv[1]))
cluster.start_ahead(Runtime())
if sys.argv[2] == "when it is up":
    while not cluster._current:
        time.sleep(0.1)
    time.sleep(1)  # were it to end with the thread that started it, it would have by now
    import ray
    assert ray.cluster_resources()["CPU"] > 0
"""


@pytest.mark.parametrize("what", ["when it is up", "while it starts"])
def test_a_cluster_that_starts_ahead_and_is_never_asked_for_ends_too(what: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", AHEAD, str(tmp_path), what], check=True, timeout=120)
    eventually(lambda: not guard._marked("ahead"))


def test_no_place_for_an_actor_is_an_error_and_not_a_wait(
    ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors, "PLACE_SECONDS", 1.0)
    pool = ray_cluster.actors("homeless", Worker, 1, count=2, gpus=1000)
    with pytest.raises(ClusterError, match=r"no place for a homeless actor .* 'num_gpus': 1000"):
        ask(pool, "add", 1)
    ray_cluster.close_actors()
