"""Which Prefect server a run reports to: the one in PREFECT_API_URL, the one of `saeflow ui`, or a temporary one."""

import json
import os
import urllib.request
from pathlib import Path

from tasks.artifacts.lease import is_dead, this_process
from tasks.settings import Settings

ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_UI_V2_ENABLED": "false",  # the second UI calls an analytics host
    "PREFECT_CLI_PROMPT": "false",
    "PREFECT_LOGGING_SERVER_LEVEL": "ERROR",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # the first start migrates a data base
}


def prepare_environment(server: str | None) -> None:
    """Sets what Prefect and its children read; to be called before Prefect is imported. What a person set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if server is not None:
        os.environ["PREFECT_API_URL"] = server
    else:  # the temporary server is ended with the run, and says so in tracebacks about what it was just doing
        os.environ["PREFECT_LOGGING_SERVER_LEVEL"] = "CRITICAL"


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
    except OSError:
        return False


def _record(settings: Settings) -> Path:
    return settings.cache / "ui.json"
