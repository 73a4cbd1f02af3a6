"""`saeflow cancel [RUN]`: asks a Prefect server to end a run, and waits until it has: its Ray job is stopped by then.

What was committed stays, and so do checkpoints: the same run, started again, goes on.
"""

import time

from rich.console import Console

from flows.server import TAG, find_server, prepare_environment, require_server
from tasks.errors import ClusterError, InputError
from tasks.settings import settings

WAIT_SECONDS = 180.0  # a worker looks every few seconds; the run then stops its job and puts its work away


def cancel_run(wanted: str | None) -> None:
    """Cancels the run that `wanted` names; InputError where none or several fit, ClusterError where it does not end."""
    now = settings()
    require_server(now)
    server = find_server(now)
    if server is None:
        raise InputError(
            "There is no Prefect server whose runs could be cancelled; set PREFECT_API_URL. A run at a terminal ends "
            "with Ctrl-C there."
        )
    prepare_environment(server)
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.client.schemas.objects import State, StateType

    unfinished = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED"]
    ours = FlowRunFilter.model_validate({"tags": {"all_": [TAG]}, "state": {"type": {"any_": unfinished}}})
    with get_client(sync_client=True) as client, Console().status("looking ...") as status:
        runs = client.read_flow_runs(flow_run_filter=ours, limit=200)
        fits = [run for run in runs if wanted is None or wanted in run.name or str(run.id).startswith(wanted)]
        if len(fits) != 1:
            there = "; ".join(f"{run.name} ({str(run.id)[:8]}, {run.state_name})" for run in (fits or runs)[:8])
            raise InputError(
                (f"No run is named {wanted!r}" if wanted and not fits else f"{len(fits)} runs fit")
                + (
                    f": {there}. Give a name or an id."
                    if there
                    else f"; no deployment's run is unfinished on {server}. One at a terminal ends with Ctrl-C there."
                )
            )
        [run] = fits
        begun = run.state is not None and run.state.type is not StateType.SCHEDULED
        client.set_flow_run_state(run.id, State(type=StateType.CANCELLING if begun else StateType.CANCELLED))
        status.update(f"{run.name}: its worker stops it ...")
        until = time.monotonic() + WAIT_SECONDS
        while not (state := client.read_flow_run(run.id).state) or not state.is_final():
            if time.monotonic() > until:
                raise ClusterError(
                    f"{run.name} was told to end {WAIT_SECONDS:.0f} s ago and has not: is its worker running? The "
                    "deployment maintenance stops Ray jobs whose run is over."
                )
            time.sleep(1)
    Console().print(f"{run.name} is {state.name}. What was committed stays.", highlight=False, soft_wrap=True)
