"""Notices: when a run ends, well or not, SAEFLOW_NOTIFY_URL is told; Slack's incoming webhooks, or any that takes JSON.

    @flow(..., **NOTICES)

The address is a secret: it comes from the environment alone, and is neither logged nor a parameter. A notice that
cannot be sent ends no run.
"""

import contextlib
import json
import urllib.request
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging import get_run_logger
from prefect.settings import get_current_settings

from tasks.settings import settings

SECONDS = 10.0  # a webhook that does not answer holds the end of a run up for so long
LONGEST = 1500  # characters of an error; the run's page has all of it


def tell(run: FlowRun, what: str, message: str) -> None:
    """Sends one notice about a run: what happened to it, and why."""
    address = settings().notify_url
    if address is None:
        return
    page = f"{get_current_settings().ui_url}/runs/flow-run/{run.id}"
    text = f"{run.name}: {what}. {message[:LONGEST]}".strip()
    content: dict[str, str] = {"text": f"{text}\n{page}"}
    if "hooks.slack.com" not in address.get_secret_value():  # Slack takes nothing but a text
        content |= {"run": run.name, "id": str(run.id), "state": what, "message": message[:LONGEST], "url": page}
    request = urllib.request.Request(
        address.get_secret_value(), json.dumps(content).encode(), {"Content-Type": "application/json"}
    )
    try:
        urllib.request.urlopen(request, timeout=SECONDS).close()
    except Exception as error:  # whatever it is: its message may hold the address
        with contextlib.suppress(Exception):
            get_run_logger().warning(f"The notice could not be sent to SAEFLOW_NOTIFY_URL ({type(error).__name__}).")


def _at_the_end(flow: Flow[..., Any], flow_run: FlowRun, state: State) -> None:
    tell(flow_run, state.name or state.type.value, state.message or "")


ENDS = ("on_completion", "on_failure", "on_cancellation", "on_crashed")
NOTICES: dict[str, Any] = {end: [_at_the_end] for end in ENDS}
