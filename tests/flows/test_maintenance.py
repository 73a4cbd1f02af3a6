"""Ray jobs that nobody waits for are stopped, by a real cluster's Jobs API and the leases of a real store."""

import json
import secrets
import sys
from collections.abc import Iterator

import pytest

from flows.maintenance import stop_forgotten
from tasks import cluster, guard
from tasks.artifacts import open_store
from tasks.artifacts.lease import LEASE, lease, this_process
from tasks.artifacts.store import progress_folder
from tasks.cluster.jobs import Job
from tasks.runtime import Runtime


@pytest.fixture
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster.Cluster]:
    guard.protect(folder=tmp_path_factory.mktemp("runs"))
    yield cluster.attach_or_start(Runtime())
    cluster.shutdown()
    guard.release()


def test_only_jobs_whose_run_is_over_are_stopped(ray: cluster.Cluster, tmp_path) -> None:
    store, client = open_store(str(tmp_path / "store")), ray.job_client()
    jobs = {}
    for name in ("over", "alive"):
        key = secrets.token_hex(32)
        store.files.write(f"{progress_folder('train', key)}/state", b"kept")
        job = Job(client, f"train-{key[:16]}", [sys.executable, "-c", "import time; time.sleep(600)"])
        jobs[name] = (key, job._submit())
    over, alive = jobs["over"], jobs["alive"]
    gone = {"owner": this_process() | {"pid": 2**22 + 1, "id": "x"}, "beat": 3}
    store.files.write(f"{progress_folder('train', over[0])}/{LEASE}", json.dumps(gone).encode())
    with lease(store, "train", alive[0], lambda _: None, lambda: False):
        other = open_store(str(tmp_path / "other"))
        assert stop_forgotten(other, ray.dashboard) == [], "another store's runs are looked after there"
        stopped = stop_forgotten(store, ray.dashboard)
    assert stopped == [over[1]]
    assert client.get_job_status(over[1]) == "STOPPED"
    assert not client.get_job_status(alive[1]).is_terminal()
    assert store.files.read(f"{progress_folder('train', over[0])}/state") == b"kept", "what was trained stays"
    for _, submission in jobs.values():
        if not client.get_job_status(submission).is_terminal():
            client.stop_job(submission)
