"""Maintenance as a flow, for every night: is the store whole, what could go, does anything run that nobody waits for.

    flows.maintenance.maintenance(store=..., ray_dashboard="http://head:8265")

Its findings are tables on the run's page. A damaged artifact makes the run fail, so that a notice says so.
"""

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from flows.dag import STAGES, SWEEP_STAGES
from flows.form import titled
from flows.notices import NOTICES
from tasks.artifacts import Store
from tasks.artifacts.lease import end_if_abandoned
from tasks.artifacts.maintenance import collect, damaged, garbage
from tasks.artifacts.retention import expired, parse_rules
from tasks.artifacts.store import own_store
from tasks.cluster.jobs import job_client, unfinished_jobs
from tasks.errors import ArtifactError, StoreError
from tasks.settings import settings


@titled
@flow(name="maintenance", persist_result=False, log_prints=False, **NOTICES)
def maintenance(
    store: str | None = None,
    verify: bool = True,
    remove: bool = False,
    retain: list[str] | None = None,
    ray_dashboard: str | None = None,
) -> None:
    """Verifies the store, lists (or removes) what nothing needs, and stops Ray jobs whose run is over.

    Args:
        store: Where artifacts live, a folder or s3://bucket/prefix; empty takes SAEFLOW_STORE.
        verify: Read every file and compare it with its manifest; takes as long as reading the whole store.
        remove: Remove what no artifact needs; otherwise it is only listed.
        retain: Stages with days, such as archive=30: what they made goes too when nothing was made from it for so long.
        ray_dashboard: Jobs API of a Ray cluster, whose forgotten jobs are to be stopped; empty: SAEFLOW_RAY_DASHBOARD.
    """
    rules = parse_rules(retain or [], STAGES | SWEEP_STAGES)
    now = settings()
    place = own_store(store or now.store)  # a shared one below it is its owners' business
    if not place.files.exists():
        raise StoreError(f"There is no store at {place.url}; check the parameter store, or SAEFLOW_STORE.")
    dashboard = ray_dashboard or now.ray_dashboard
    if dashboard is not None:
        stopped = stop_forgotten(place, dashboard)
        _table("jobs", "Ray jobs that were stopped, because no run waits for them", [{"job": job} for job in stopped])

    def unreadable(stage: str, key: str, error: ArtifactError) -> None:
        get_run_logger().warning(f"{stage} {key[:12]}: {error}")

    found = garbage(place, unreadable) + expired(place, rules)
    if remove:
        collect(place, found)
    done = "was removed" if remove else "could be removed"
    _table("garbage", f"What {done}", [{"path": entry.path, "why": entry.why} for entry in found])
    if verify:
        faults = [{"artifact": name, "fault": fault} for name, found in damaged(place) for fault in found]
        _table("damage", "Files that are not what their manifest says", faults)
        if faults:
            raise ArtifactError(
                f"{len(faults)} files of {place.url} are damaged, the first: {faults[0]['artifact']}, "
                f"{faults[0]['fault']}. Run the pipeline with force for their stages."
            )


def stop_forgotten(store: Store, dashboard: str) -> list[str]:
    """Stops the jobs of this store's keys for which no driver beats any more; their ids. Progress stays."""
    stopped = []
    for job in unfinished_jobs(job_client(dashboard)):
        for key in store.keys(job.stage):
            if key.startswith(job.key) and end_if_abandoned(store, job.stage, key):
                job.stop()
                stopped.append(job.submission_id)
    return stopped


def _table(key: str, description: str, rows: list[dict[str, str]]) -> None:
    if rows:
        create_table_artifact(rows, key=key, description=description)
    get_run_logger().info(f"{description}: {len(rows)}")
