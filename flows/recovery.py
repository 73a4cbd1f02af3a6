"""What happens to a run whose process is gone: marked Crashed within two minutes, started again, at most three times.

`saeflow deploy` ships two automations to the server. The first marks a run Crashed when its heartbeat stays away (its
worker, its machine or its process was killed), the second sees runs that Prefect itself marks so. Both have the flow
`restart` look at it: it is scheduled again, under the same id and parameters, and goes on where it stopped; after three
restarts in a row a notice says that it was given up. A run that failed, or that a person cancelled, is left alone.

The first does not leave the restart to the second: a server that was itself restarted keeps the event of a run younger
than five minutes back for a quarter of an hour, since it waits for one that it has forgotten.
"""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

from prefect import flow, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.logging import get_run_logger
from prefect.states import Scheduled

from flows.notices import tell
from flows.server import TAG

RESTARTS = 3
RESTARTING = "Restarting"  # the state's name, by which restarts are counted
HEARTBEAT_SECONDS = 30  # Prefect takes no less
SILENT_SECONDS = 90.0  # three heartbeats missed
LOST, AGAIN = "saeflow: a run without a heartbeat has crashed", "saeflow: a crashed run is started again"
SILENT = "No heartbeat for"  # how the message begins by which the second automation knows the first one's work
_ENDS = {f"prefect.flow-run.{name}" for name in ("Completed", "Failed", "Cancelled", "Cancelling", "Crashed")}


@flow(name="restart", flow_run_name="look after {flow_run_id}", persist_result=False, log_prints=False)
def restart(flow_run_id: UUID) -> None:
    """Schedules a crashed run again, or gives it up after three restarts in a row.

    Args:
        flow_run_id: The run that has crashed.
    """
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(flow_run_id)
        if run.state is None or run.state.type is not StateType.CRASHED:
            get_run_logger().info(f"{run.name} is not crashed any more.")
            return
        already = restarts(client.read_flow_run_states(flow_run_id))
        if already >= RESTARTS:
            tell(run, "given up", f"It crashed again after {already} restarts: {run.state.message}")
            get_run_logger().warning(f"{run.name} is given up after {already} restarts; retry it by hand.")
            return
        tell(run, f"crashed, restart {already + 1} of {RESTARTS}", run.state.message or "")
        again: State = Scheduled(name=RESTARTING, message=f"Restart {already + 1} of {RESTARTS} after a crash.")
        client.set_flow_run_state(flow_run_id, again, force=True)


def restarts(states: Sequence[State]) -> int:
    """How often a run was restarted since a person (or its schedule) last started it."""
    starts = [state for state in sorted(states, key=lambda state: state.timestamp) if state.type is StateType.SCHEDULED]
    count = 0
    for state in reversed(starts):
        if state.name != RESTARTING:
            break
        count += 1
    return count


def ship(restart_deployment: UUID, silent_seconds: float = SILENT_SECONDS) -> None:
    """Makes both automations on the server anew."""
    ours = {"prefect.resource.role": "tag", "prefect.resource.id": f"prefect.tag.{TAG}"}
    a_run, beats = {"prefect.resource.id": "prefect.flow-run.*"}, {"prefect.flow-run.heartbeat"}
    look_after = RunDeployment(
        deployment_id=restart_deployment,
        parameters={"flow_run_id": {"__prefect_kind": "jinja", "template": "{{ flow_run.id }}"}},
    )
    lost = AutomationCore(
        name=LOST,
        description=f"Its process, worker or machine is gone; it goes on where it stopped, at most {RESTARTS} times.",
        trigger=EventTrigger(
            match=a_run, match_related=ours, for_each={"prefect.resource.id"}, after=beats, expect=beats | _ENDS,
            posture=Posture.Proactive, within=timedelta(seconds=silent_seconds),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"{SILENT} {silent_seconds:.0f} s: its process is gone."
            ),
            look_after,
        ],
    )  # fmt: skip
    again = AutomationCore(
        name=AGAIN,
        description=f"The same run goes on where it stopped, at most {RESTARTS} times in a row.",
        trigger=EventTrigger(
            match=a_run | {"prefect.state-message": f"!{SILENT}*"},
            match_related=[ours, {"prefect.resource.role": "deployment"}],
            for_each={"prefect.resource.id"}, expect={"prefect.flow-run.Crashed"},
        ),
        actions=[look_after],
    )  # fmt: skip
    with get_client(sync_client=True) as client:
        for automation in (lost, again):
            for earlier in client.read_automations_by_name(automation.name):
                client.delete_automation(earlier.id)
            client.create_automation(automation)


def restart_deployment() -> UUID:
    """The id of the deployed flow `restart`; ObjectNotFound where it is not deployed."""
    with get_client(sync_client=True) as client:
        return client.read_deployment_by_name("restart/restart").id


