"""Jobs on a real cluster: followed, attached to, tried again under a new id, stopped with their run."""

import secrets
import sys
import threading
import time

import pytest

from tasks.cluster.jobs import Job, unfinished_jobs


def job(cluster, name: str, code: str, **options) -> Job:
    return Job(cluster.job_client(), name, [sys.executable, "-c", code], **options)


@pytest.fixture
def name() -> str:
    return f"test-{secrets.token_hex(4)}"


def test_a_failed_job_says_why_and_the_next_attempt_has_a_new_id(ray_cluster, name):
    first = job(ray_cluster, name, "raise SystemExit(3)")
    failure = first.run(lambda: None)
    assert "exit code 3" in failure
    assert first.submission_id == f"{name}-a1"
    second = job(ray_cluster, name, "import os; print('said', os.environ['SAID'])", environment={"SAID": "so"})
    followed = []
    assert second.run(lambda: followed.append(1)) is None
    assert second.submission_id == f"{name}-a2"
    assert followed
    assert "said so" in ray_cluster.job_client().get_job_logs(second.submission_id)


def test_a_second_driver_attaches_to_the_running_job(ray_cluster, name, tmp_path):
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.1)"
    first, second = job(ray_cluster, name, wait), job(ray_cluster, name, wait)
    results = {}
    threads = []
    for number, each in enumerate((first, second)):
        thread = threading.Thread(target=lambda n=number, j=each: results.__setitem__(n, j.run(lambda: None)))
        thread.start()
        threads.append(thread)
        while not each.submission_id:
            time.sleep(0.1)
    (tmp_path / "go").touch()
    for thread in threads:
        thread.join()
    assert results == {0: None, 1: None}
    assert first.submission_id == second.submission_id == f"{name}-a1"


def test_an_exception_while_waiting_stops_the_job(ray_cluster, name):
    def interrupt() -> None:
        raise KeyboardInterrupt

    interrupted = job(ray_cluster, name, "import time; time.sleep(600)")
    with pytest.raises(KeyboardInterrupt):
        interrupted.run(interrupt)
    assert ray_cluster.job_client().get_job_status(interrupted.submission_id) == "STOPPED"


def test_jobs_of_stages_that_have_not_ended_are_found_and_can_be_stopped(ray_cluster):
    key, code = secrets.token_hex(8), "import time; time.sleep(600)"
    client = ray_cluster.job_client()
    [first, other] = [job(ray_cluster, name, code)._submit() for name in (f"train-{key}", "notours")]
    found = [entry for entry in unfinished_jobs(client) if entry.key == key]
    assert [(entry.stage, entry.submission_id) for entry in found] == [("train", first)]
    assert not [entry for entry in unfinished_jobs(client) if entry.submission_id == other]
    found[0].stop()
    assert client.get_job_status(first) == "STOPPED"
    assert not [entry for entry in unfinished_jobs(client) if entry.key == key]
    assert not client.get_job_status(other).is_terminal(), "a job of somebody else is not ours to stop"
    client.stop_job(other)
