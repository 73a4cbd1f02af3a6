"""Which Prefect server a run reports to: the one in PREFECT_API_URL, the one of `saeflow ui`, or a temporary one.

Servers and workers are started here, each in a session of its own: a Ctrl-C at the terminal reaches only the command
itself, which ends them in order. A server that went first would leave the run waiting for it.
"""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

from tasks.artifacts.lease import is_dead, this_process
from tasks.errors import ClusterError
from tasks.settings import Settings

TAG = "saeflow"  # of our deployments, and so of their runs
SLOW_SECONDS = 8.0  # a server that is busy may still be the one that was meant

LOGGING = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": "tasks",  # what Ray's actors and jobs said too (tasks/cluster/logs.py)
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
ENVIRONMENT = LOGGING | {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the second UI calls an analytics host
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
    "PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER": "P7D",  # a server that was away for days still finds crashed runs
}
TEMPORARY = {  # what Prefect gives the server that it starts itself: no UI, and no services that a single run lacks
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",  # it is ended with the run, and would say what it was just doing
}
START_SECONDS = 120.0  # the first start migrates a data base
STOP_SECONDS = 10.0


def prepare_environment(server: str) -> None:
    """Sets what Prefect and its children read; to be called before Prefect is imported. What a person set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["PREFECT_API_URL"] = server


def start_temporary(log: Path) -> tuple[str, subprocess.Popen[bytes]]:
    """Starts a Prefect server for one run, on a free port of this machine; its API's URL, which does not answer yet."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    prefect = find_spec("prefect")
    assert prefect is not None and prefect.origin is not None
    place = ["--app-dir", str(Path(prefect.origin).parents[1])]  # uvicorn would take the current folder
    where = ["--host", "127.0.0.1", "--port", str(port), "--log-level", "error", "--lifespan", "on"]
    arguments = ["uvicorn", *place, "--factory", "prefect.server.api.server:create_app", *where]
    return f"http://127.0.0.1:{port}/api", spawn(arguments, log, ENVIRONMENT | TEMPORARY)


def spawn(module: list[str], log: Path, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """`python -m module ...` in a session of its own, its output in `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", *module], stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True,
            env=os.environ | (environment or {}),
        )  # fmt: skip


def wait_for(url: str, child: subprocess.Popen[bytes], log: Path) -> None:
    """Until the server that `child` is answers; raises ClusterError where it ends or stays away."""
    until = time.monotonic() + START_SECONDS
    while not healthy(url):
        if child.poll() is not None or time.monotonic() > until:
            raise ClusterError(f"The Prefect server did not start; its last words: {log.read_text()[-800:].strip()}")
        time.sleep(0.1)


def end(child: subprocess.Popen[bytes]) -> None:
    """Ends what `spawn` started, gently at first."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    try:
        child.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)


def quiet_console() -> None:
    """The table says what people want to know; Prefect's own lines go to its server only."""
    import logging

    from prefect.logging.configuration import setup_logging
    from prefect.logging.handlers import PrefectConsoleHandler

    setup_logging()
    names = ["", "prefect", "prefect.flow_runs", "prefect.task_runs", *logging.root.manager.loggerDict]
    for name in names:
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, PrefectConsoleHandler):
                handler.setLevel(logging.CRITICAL + 1)


def send_last_logs() -> None:
    """Waits until Prefect's server has the run's log lines: it must still be there for them."""
    from prefect.logging.handlers import APILogHandler

    APILogHandler().flush()


def find_server(settings: Settings) -> str | None:
    """URL of the server to use, or None for a temporary one. A record left by a dead `saeflow ui` is ignored."""
    if settings.prefect_api_url:
        return settings.prefect_api_url
    record = _record(settings)
    try:
        found = json.loads(record.read_text())
    except (OSError, ValueError):
        return None
    return found["url"] if not is_dead(found["owner"]) and healthy(found["url"]) else None


def require_server(settings: Settings) -> None:
    """Raises ClusterError when PREFECT_API_URL names a server that does not answer, or that refuses our password."""
    url = settings.prefect_api_url
    if url is None:
        return
    try:
        urllib.request.urlopen(f"{url}/admin/version", timeout=SLOW_SECONDS).close()
    except urllib.error.HTTPError as error:  # any other answer of HTTP is Prefect's own business
        if error.code == 401:
            _require_password(url)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ClusterError(
            f"No Prefect server answers at PREFECT_API_URL {url} ({error}); start it, correct the address (it ends in "
            "/api), or unset the variable for a temporary server."
        ) from error


def _require_password(url: str) -> None:
    """Asks once more as Prefect would, with what its settings and profiles hold."""
    prepare_environment(url)
    from prefect import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    with get_client(sync_client=True) as client:
        try:
            client.request("GET", "/admin/version")
            return
        except PrefectHTTPStatusError as error:
            if error.response.status_code != 401:
                return
    raise ClusterError(
        f"The Prefect server at {url} asks for a password, and PREFECT_API_AUTH_STRING (user:password; on Prefect "
        "Cloud PREFECT_API_KEY) is not set or not right."
    )


def remember_server(settings: Settings, url: str) -> None:
    """Lets runs in other terminals find the server that this process keeps."""
    record = _record(settings)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps({"url": url, "owner": this_process()}))


def forget_server(settings: Settings) -> None:
    """Takes the record back."""
    _record(settings).unlink(missing_ok=True)


def healthy(url: str) -> bool:
    """Whether a Prefect API answers at this URL within two seconds."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, ValueError, http.client.HTTPException):  # not there, no URL at all, or nothing that speaks HTTP
        return False


def _record(settings: Settings) -> Path:
    return settings.cache / "ui.json"
