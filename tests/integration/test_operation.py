"""A scheduled run on a real server with PostgreSQL and a real worker: killed, found crashed, started again, finished.

The server is restarted meanwhile, has several hundred other runs, and tells a webhook what happened.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import yaml

from flows.server import ENVIRONMENT
from tasks.folders import files_below
from tests.integration.commands import TINY, command, digests, marked_processes, nothing_is_left, run
from tests.servers import postgres, redis
from tests.servers.waiting import eventually, free_port, unavailable
from tests.servers.webhook import Webhook

RUNS = 300  # of others, that the server has already
SILENT_SECONDS = 40  # what is shipped waits for 90
KEEP_SECRET = "import sys; from prefect.blocks.system import Secret; Secret(value=sys.argv[1]).save('notices')"


@dataclass
class Operation:
    """A server, its worker and what they write."""

    folder: Path
    environment: dict[str, str]
    port: int
    split: bool
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self.port}/api"

    def start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(
                [sys.executable, "-m", "prefect", "--no-prompt", *arguments],
                env=os.environ | self.environment, cwd=self.folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def serve(self) -> None:
        """As in infra/compose: an API and its background services, where there is a data base for both."""
        start = ["server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        if self.split:
            self.python("-m", "prefect", "server", "database", "upgrade", "-y")
            self.start("services", "server", "services", "start")
            start.append("--no-services")
        self.start("server", *start)
        eventually(lambda: httpx.get(f"{self.api}/health").status_code == 200)

    def work(self) -> None:
        self.start("worker", "worker", "start", "--pool", "saeflow")

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        child = self.children.pop(name)
        child.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(30)
        child.kill()
        child.wait()

    def kill_worker_and_its_runs(self) -> None:
        """As a machine does that loses its power, but for what the run guards on its own."""
        child = self.children.pop("worker")
        worker = psutil.Process(child.pid)
        for process in [worker, *worker.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        child.wait()

    def stop_serving(self) -> None:
        for name in ("server", "services"):
            if name in self.children:
                self.end(name)

    def python(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, *arguments], env=os.environ | self.environment, cwd=self.folder, capture_output=True,
            text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def deploy(self, *secrets: str, refused: str = "") -> str:
        """What `saeflow deploy` says."""
        arguments = [word for secret in secrets for word in ("--secret", secret)]
        deploy = command("deploy", *arguments)
        done = subprocess.run(deploy, env=os.environ | self.environment, capture_output=True, text=True)
        assert done.returncode == bool(refused) and refused in done.stderr, done.stdout + done.stderr
        return done.stdout

    def ask(self, path: str, **content: Any) -> Any:
        return httpx.post(f"{self.api}/{path}", json=content, timeout=30).raise_for_status().json()

    def schedule(self, deployment: str, parameters: dict[str, Any]) -> str:
        found = httpx.get(f"{self.api}/deployments/name/{deployment}").raise_for_status().json()
        return str(self.ask(f"deployments/{found['id']}/create_flow_run", parameters=parameters)["id"])

    def state(self, run_id: str) -> dict[str, Any]:
        return httpx.get(f"{self.api}/flow_runs/{run_id}").raise_for_status().json()["state"]

    def states(self, run_id: str) -> list[str]:
        found = httpx.get(f"{self.api}/flow_run_states/", params={"flow_run_id": run_id}).raise_for_status().json()
        return [state["name"] for state in sorted(found, key=lambda state: state["timestamp"])]

    def ends(self, run_id: str) -> str:
        """The name of the state in which a run completes or fails."""
        with contextlib.suppress(AssertionError):
            eventually(lambda: self.state(run_id)["name"] in ("Completed", "Failed"))
        return str(self.state(run_id)["name"])

    def said(self, run_id: str) -> str:
        """What a run logged, and the servers."""
        logs = self.ask("logs/filter", logs={"flow_run_id": {"any_": [run_id]}}, limit=200)
        lines = [str(self.states(run_id)), *(line["message"] for line in logs)]
        lines += [f"{file.name}: {file.read_text()[-1500:]}" for file in self.folder.glob("*.log")]
        return "\n".join(lines)


@pytest.fixture(scope="module")
def notices() -> Iterator[Webhook]:
    with Webhook() as hook:
        yield hook


@pytest.fixture(scope="module")
def operation(tmp_path_factory: pytest.TempPathFactory, notices: Webhook) -> Iterator[Operation]:
    """A server on PostgreSQL with everything deployed, and a worker."""
    reason = postgres.missing() or redis.missing()
    if reason and os.environ.get("SAEFLOW_REQUIRE_SERVERS") == "1":
        unavailable(reason, "SAEFLOW_REQUIRE_SERVERS")
    folder, port = tmp_path_factory.mktemp("operation"), free_port()
    environment = ENVIRONMENT | {
        "SAEFLOW_CACHE": str(folder / "cache"),
        "SAEFLOW_STORE": str(folder / "store"),
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_WORKER_WEBSERVER_HOST": "127.0.0.1",
    }
    with contextlib.ExitStack() as stack:
        if reason is None:  # without them one server keeps a file, and all the rest is the same
            environment |= settings_of_infra()
            environment["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = stack.enter_context(postgres.running_postgres())
            messages = stack.enter_context(redis.running_redis())
            environment |= {
                "PREFECT_REDIS_MESSAGING_URL": f"{messages}/0",
                "PREFECT_SERVER_DOCKET_URL": f"{messages}/1",
            }
        made = Operation(folder, environment, port, split=reason is None)
        try:
            made.serve()
            made.deploy("SAEFLOW_NOTIFY_URL=notices", refused="There is no Secret block 'notices'")
            made.python("-c", KEEP_SECRET, notices.url)
            for secrets in (["SAEFLOW_NOTIFY_URL=notices"], []):  # the second time it stays
                assert f"deployments on http://127.0.0.1:{port}, pool saeflow" in made.deploy(*secrets)
            made.work()
            yield made
        finally:
            for name in list(made.children):
                made.end(name)
    nothing_is_left()


def settings_of_infra() -> dict[str, str]:
    """What infra/ ships for a server in several processes."""
    lines = (Path(__file__).parents[2] / "infra" / "prefect" / "server.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


def others(operation: Operation, count: int) -> None:
    """Runs that ended long ago, for the data base to be no empty one."""
    flow = operation.ask("flows/", name="others")["id"]
    with httpx.Client(base_url=operation.api, timeout=30) as client:
        for number in range(count):
            content = {"flow_id": flow, "name": f"other-{number}", "state": {"type": "COMPLETED", "name": "Completed"}}
            client.post("/flow_runs/", json=content).raise_for_status()


def tiny(**runtime: Any) -> dict[str, Any]:
    with Path(TINY).open() as file:
        content = yaml.safe_load(file)
    return content | {"runtime": content["runtime"] | runtime}


def test_a_killed_run_is_found_started_again_and_ends_as_if_nothing_had_been(
    operation: Operation, notices: Webhook, calm: tuple[Path, Path], tmp_path: Path
) -> None:
    others(operation, RUNS)
    ship = f"from flows import recovery; recovery.ship(recovery.restart_deployment(), {SILENT_SECONDS})"
    operation.python("-c", ship)
    run_id = operation.schedule("pipeline/demo", tiny())
    eventually(lambda: _trains(operation.folder / "store" / "train"))
    before = operation.states(run_id)
    assert before[-1] == "Running", before
    operation.stop_serving()  # the run goes on without it, and is killed before it is back
    operation.kill_worker_and_its_runs()
    operation.serve()
    operation.work()
    assert operation.ends(run_id) == "Completed", operation.said(run_id)
    after = operation.states(run_id)
    assert after.count("Crashed") == 1 and after.count("Restarting") == 1, after
    assert after[-1] == "Completed"
    named = operation.ask("flow_runs/filter", limit=200, sort="START_TIME_DESC")
    assert len(named) == 200
    told = [notice["state"] for notice in notices.received if notice["id"] == run_id]
    assert told == ["crashed, restart 1 of 3", "Completed"]
    done = run(str(operation.folder / "store"), tmp_path / "again.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert digests(tmp_path / "again.json") == digests(calm[1])


def _trains(progress: Path) -> bool:
    """Whether training has begun to keep something to go on from."""
    return any("checkpoint" in str(path.relative_to(progress)) for path in files_below(progress))


def test_a_run_that_always_crashes_is_given_up_after_three_restarts(operation: Operation, notices: Webhook) -> None:
    run_id = operation.schedule("pipeline/demo", tiny() | {"store": "not-started", "name": "hopeless"})
    operation.end("worker")  # nobody takes it up: only its states matter here
    operation.python(
        "-c",
        "import os, uuid\n"
        f"os.environ['SAEFLOW_NOTIFY_URL'] = {notices.url!r}\n"
        "from prefect import get_client\n"
        "from prefect.client.schemas.objects import State, StateType\n"
        "from flows.recovery import restart, restarts\n"
        f"run = uuid.UUID({run_id!r})\n"
        "with get_client(sync_client=True) as client:\n"
        "    for expected in (1, 2, 3, 3):\n"
        "        client.set_flow_run_state(run, State(type=StateType.CRASHED, message='machine gone'), force=True)\n"
        "        restart(run)\n"
        "        assert restarts(client.read_flow_run_states(run)) == expected\n"
        "    assert client.read_flow_run(run).state.type is StateType.CRASHED\n",
    )
    told = [notice["state"] for notice in notices.received if notice["id"] == run_id]
    assert told == [*(f"crashed, restart {number} of 3" for number in (1, 2, 3)), "given up"]
    operation.work()


def test_a_run_is_cancelled_from_the_terminal(operation: Operation) -> None:
    long = tiny() | {"name": "too-long", "train": tiny()["train"] | {"steps": 100_000}}
    run_id = operation.schedule("pipeline/demo", long)
    environment = os.environ | operation.environment
    eventually(lambda: [job for job in marked_processes() if "tasks.train.job" in job])
    nobody = subprocess.run(command("cancel", "nobody"), env=environment, capture_output=True, text=True)
    assert nobody.returncode == 1 and "No run is named 'nobody': too-long demo-model" in nobody.stderr
    done = subprocess.run(command("cancel", "too-long"), env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "n=128 k=4 is Cancelled. What was committed stays." in done.stdout, done.stderr
    assert operation.state(run_id)["type"] == "CANCELLED"
    nothing_is_left()
    none = subprocess.run(command("cancel"), env=environment, capture_output=True, text=True)
    assert none.returncode == 1 and "0 runs fit; no deployment's run is unfinished" in none.stderr


def test_maintenance_finds_damage_and_says_so(operation: Operation, notices: Webhook) -> None:
    healthy = operation.schedule("maintenance/maintenance", {})
    assert operation.ends(healthy) == "Completed", operation.said(healthy)
    page = next((operation.folder / "store" / "report").glob("*/attempts/*/report.html"))
    page.write_bytes(page.read_bytes()[:-1] + b" ")
    damaged = operation.schedule("maintenance/maintenance", {})
    assert operation.ends(damaged) == "Failed", operation.said(damaged)
    [table] = [
        found
        for found in operation.ask("artifacts/filter", flow_runs={"id": {"any_": [damaged]}})
        if found["key"] == "damage"
    ]
    assert "report.html" in table["data"]
    [told] = [notice for notice in notices.received if notice["id"] == damaged]
    assert told["state"] == "Failed" and "are damaged, the first: report" in told["message"]
