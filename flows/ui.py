"""`saeflow ui`: a Prefect server on this machine, a worker, the demo deployed, and the page. Ctrl-C ends all of it."""

import os
import signal
import subprocess
import time
import webbrowser
from pathlib import Path

from rich.console import Console

from flows.deploy import POOL, send
from flows.preflight import check_folders
from flows.server import (
    end,
    find_server,
    forget_server,
    healthy,
    prepare_environment,
    remember_server,
    spawn,
    wait_for,
)  # fmt: skip
from tasks import guard
from tasks.errors import ClusterError, InputError
from tasks.settings import settings


def serve(port: int, browser: bool, store_url: str) -> None:
    """Starts everything, says where it is, and waits for Ctrl-C (or SIGTERM)."""
    console, now = Console(), settings()
    check_folders()
    guard.sweep()
    if find_server(now) is not None:
        raise InputError(f"A Prefect server runs already at {find_server(now)}; `saeflow run` reports to it.")
    url = f"http://127.0.0.1:{port}"
    if healthy(f"{url}/api"):
        raise InputError(f"Another Prefect server answers at {url}; set PREFECT_API_URL={url}/api, or choose --port.")
    guard.protect()
    prepare_environment(f"{url}/api")
    os.environ["SAEFLOW_STORE"] = store_url if "://" in store_url else str(Path(store_url).absolute())
    os.environ["PREFECT_WORKER_WEBSERVER_HOST"] = "127.0.0.1"
    logs = now.cache / "logs"
    children: list[subprocess.Popen[bytes]] = []
    for number in (signal.SIGINT, signal.SIGTERM):  # also where a shell started us in the background, deaf to SIGINT
        signal.signal(number, signal.default_int_handler)
    try:
        with console.status("starting the Prefect server ..."):
            start = ["server", "start", "--host", "127.0.0.1", "--port", str(port)]
            children.append(spawn(_prefect(start), logs / "server.log"))
            wait_for(f"{url}/api", children[0], logs / "server.log")
            remember_server(now, f"{url}/api")
            send()
            children.append(spawn(_prefect(["worker", "start", "--pool", POOL]), logs / "worker.log"))
        console.print(
            f"Prefect UI  {url}/deployments   (pipeline/demo: Run, then Quick run)\n"
            f"store       {os.environ['SAEFLOW_STORE']}\n"
            f"logs        {logs}\n"
            "`saeflow run demo` in another terminal reports here too. Ctrl-C ends the server and its worker.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        if browser:
            webbrowser.open(f"{url}/deployments")
        while all(child.poll() is None for child in children):
            time.sleep(0.5)
        raise ClusterError(f"The Prefect server or its worker ended by itself; see {logs}.")
    except KeyboardInterrupt:
        console.print("Ending the server and its worker ...")
    finally:
        forget_server(now)
        for child in reversed(children):
            end(child)
        guard.release()


def _prefect(arguments: list[str]) -> list[str]:
    return ["prefect", "--no-prompt", *arguments]
