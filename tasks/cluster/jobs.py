"""A job of the Ray Jobs API, followed to its end: attached to when it runs already, stopped when its run ends early.

    job = Job(cluster.job_client(), "train-0123456789abcdef", [python, "-m", "tasks.train.job", url])
    failure = job.run(follow)          # None when it succeeded, else what Ray says

Ids are <name>-a<attempt>: Ray refuses an id it has seen before, also after a failure. What counts is the job's status;
the stream of its log may end for other reasons.
"""

import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.cluster.logs import Followed
from tasks.errors import ClusterError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

POLL_SECONDS = 0.5
STOP_SECONDS = 20.0  # until a stopped job must be over
UNREACHABLE_SECONDS = 60.0  # how long the Jobs API may stay away while a job runs


def job_client(dashboard: str) -> "JobSubmissionClient":
    """A client of the Jobs API at this URL; it sends the cluster's token by itself. ClusterError where none answers."""
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(dashboard)
    except Exception as error:
        raise ClusterError(
            f"Ray's Jobs API at {dashboard} cannot be used ({error}). Set runtime.ray_dashboard to the dashboard's "
            "URL, such as http://head:8265, and RAY_AUTH_TOKEN_PATH if it asks for a token."
        ) from error


class Unfinished(NamedTuple):
    """A job that runs or waits: its stage, the first characters of its key, and its id."""

    stage: str
    key: str
    submission_id: str
    client: "JobSubmissionClient"

    def stop(self) -> None:
        """Stops it and waits until it is over."""
        stop_job(self.client, self.submission_id)


def unfinished_jobs(client: "JobSubmissionClient") -> Iterator[Unfinished]:
    """The jobs of stages that have not ended."""
    for job in client.list_jobs():
        named = re.fullmatch(r"([a-z]+)-([0-9a-f]{16})-a\d+", job.submission_id or "")
        if named and not job.status.is_terminal():
            yield Unfinished(named[1], named[2], named[0], client)


def stop_job(client: "JobSubmissionClient", submission_id: str) -> None:
    """Stops a job and waits until it is over; ClusterError when it does not end."""
    if client.get_job_status(submission_id).is_terminal():
        return
    client.stop_job(submission_id)
    deadline = time.monotonic() + STOP_SECONDS
    while not (status := client.get_job_status(submission_id)).is_terminal():
        if time.monotonic() > deadline:
            raise ClusterError(
                f"The job {submission_id} was told to stop but is still {status}; stop it by hand: "
                f"ray job stop {submission_id}"
            )
        time.sleep(POLL_SECONDS)


class Job:
    """One piece of work under one name, over as many attempts as it takes."""

    def __init__(
        self,
        client: "JobSubmissionClient",
        name: str,
        entrypoint: Sequence[str],
        environment: dict[str, str] | None = None,
    ) -> None:
        self.submission_id = ""
        self._client = client
        self._name = name
        self._entrypoint = shlex.join(entrypoint)
        self._environment = environment or {}

    def run(self, follow: Callable[[], None]) -> str | None:
        """Starts the job, or attaches to it, and waits for its end; calls `follow` twice a second meanwhile.

        Returns None when it succeeded, else the reason. When the wait itself is ended by an exception, also Ctrl-C, the
        job is stopped first. Raises ClusterError where the Jobs API stays away.
        """
        try:
            self.submission_id = self._attach() or self._submit()
            with Followed(self._client, self.submission_id):
                return self._wait(follow)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops the job and waits until it is over; ClusterError when it does not end."""
        if self.submission_id:
            stop_job(self._client, self.submission_id)

    def _attach(self) -> str | None:
        """The id of an attempt that has not ended, if there is one."""
        for job in self._attempts():
            if not job.status.is_terminal():
                return str(job.submission_id)
        return None

    def _submit(self) -> str:
        attempt = 1 + max((int(job.submission_id.rpartition("-a")[2]) for job in self._attempts()), default=0)
        return self._client.submit_job(
            entrypoint=self._entrypoint,
            submission_id=f"{self._name}-a{attempt}",
            runtime_env={"env_vars": self._environment} if self._environment else None,
        )

    def _attempts(self) -> list[Any]:
        return [job for job in self._client.list_jobs() if (job.submission_id or "").startswith(f"{self._name}-a")]

    def _wait(self, follow: Callable[[], None]) -> str | None:
        seen = time.monotonic()
        while True:
            try:
                status = self._status()
                seen = time.monotonic()
            except Exception as error:  # whatever the HTTP client raises: the job may well go on
                if time.monotonic() - seen > UNREACHABLE_SECONDS:
                    raise ClusterError(
                        f"Ray's Jobs API has not answered for {UNREACHABLE_SECONDS:.0f} s ({error}); look after the "
                        "cluster, then run the same command again."
                    ) from error
                time.sleep(POLL_SECONDS)
                continue
            follow()
            if status.is_terminal():
                if status == "SUCCEEDED":
                    return None
                return self._client.get_job_info(self.submission_id).message or f"its status is {status}."
            time.sleep(POLL_SECONDS)

    def _status(self) -> Any:
        return self._client.get_job_status(self.submission_id)
