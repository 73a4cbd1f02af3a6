"""`saeflow deploy`: work pools, every preset and every stage as a deployment, and what looks after their runs.

    python -m flows.deploy        writes deployments/prefect.yaml anew from the presets (a test compares)

The file is what is deployed: `prefect deploy --all --prefect-file deployments/prefect.yaml` does the same, without the
pool, the form's titles and the automations.
"""

import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.config import PipelineConfig, load_preset, presets
from flows.dag import STAGES
from flows.pool import kept, make_pool, prefect, variable_and_block
from flows.server import TAG, find_server, prepare_environment, require_server
from tasks.errors import InputError
from tasks.settings import settings

FILE = files("deployments") / "prefect.yaml"
POOL = "saeflow"
SWEPT = ("name", "model", "corpus", "capture", "archive", "preprocess", "train", "evaluate", "runtime")
HEAD = """\
# Written from presets/*.yaml by `python -m flows.deploy`; `saeflow deploy` sends it to a Prefect server.
# Entrypoints are dotted: the package is installed where workers run, so Ray's workers can import it as well.
"""


def deploy(pool: str = POOL, kind: str = "process", secrets: Sequence[str] = ()) -> None:
    """Makes the pool, its queues, all deployments and the automations on the server that a run would report to.

    `secrets` are VARIABLE=BLOCK: what runs of the pool have in their environment from Secret blocks of the server.
    Raises InputError where there is no server to deploy to or no such block, ClusterError where it does not answer or
    refuses.
    """
    now, blocks = settings(), dict(variable_and_block(given) for given in secrets)
    if blocks and kind == "kubernetes":
        raise InputError(
            f"--secret {secrets[0]!r} is for pools of the type process; runs of a kubernetes pool have their secrets "
            "from infra/kubernetes/secrets.example.yaml: leave it out."
        )
    server = find_server(now)
    if server is None:
        raise InputError(
            "There is no Prefect server to deploy to; set PREFECT_API_URL (it ends in /api), or start one: saeflow ui."
        )
    require_server(now)
    prepare_environment(server)
    send(pool, kind, blocks)
    Console().print(
        f"{len(content()['deployments'])} deployments on {server.removesuffix('/api')}, pool {pool}\n"
        f"start a worker where they are to run: prefect worker start --pool {pool} --type {kind}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def send(pool: str = POOL, kind: str = "process", blocks: Mapping[str, str] | None = None) -> None:
    """The same, to the server that PREFECT_API_URL names; what is there already is brought up to date."""
    from flows import recovery

    make_pool(pool, kind, blocks or {})
    prefect("deploy", "--all", "--prefect-file", str(_with_pool(pool)))
    _title_forms()
    recovery.ship(recovery.restart_deployment())


def _title_forms() -> None:
    """`prefect deploy` reads a form from the function's signature, which has no titles: they come after it."""
    from prefect import get_client
    from prefect.client.schemas.actions import DeploymentUpdate

    with get_client(sync_client=True) as client:
        for entry in content()["deployments"]:
            module, name = entry["entrypoint"].rsplit(".", 1)
            flow = getattr(importlib.import_module(module), name)
            found = client.read_deployment_by_name(f"{flow.name}/{entry['name']}")
            schema = flow.parameters.model_dump_for_openapi()
            client.update_deployment(found.id, DeploymentUpdate(parameter_openapi_schema=schema))


def content() -> dict[str, Any]:
    """prefect.yaml as it follows from the presets."""
    version = importlib.metadata.version("prefect")
    return {"name": "saeflow", "prefect-version": version, "pull": [], "deployments": list(_deployments())}


def _deployments() -> Iterator[dict[str, Any]]:
    demo = load_preset("demo")
    for name in presets():
        yield _entry(name, "flows.pipeline.pipeline", _described(name), load_preset(name))
    nightly = _entry("nightly", "flows.pipeline.pipeline", "Every night at two, once you switch its schedule on.", demo)
    yield nightly | _every_night(2)
    swept = _entry("demo-sweep", "flows.sweep.sweep", "The demo's autoencoder for each point of a grid.", demo)
    values = {name: value for name, value in swept["parameters"].items() if name in SWEPT}
    yield swept | {"parameters": {"grid": ["train.k=4,8,16"], **values}}
    for stage in STAGES:
        about = f"Only the stage {stage}, on artifacts that are there already."
        yield _entry(f"stage-{stage}", f"flows.single.{stage}", about, demo)
    about = "Verifies the store, lists what could be removed, and ends Ray jobs whose run is over."
    maintenance = _entry("maintenance", "flows.maintenance.maintenance", about, None)
    yield maintenance | _every_night(4)
    about = "Looks after a crashed run: starts it again, at most three times. Automations start it."
    yield _entry("restart", "flows.recovery.restart", about, None) | {"tags": []}  # or it would look after itself


def _entry(name: str, entrypoint: str, description: str, config: PipelineConfig | None) -> dict[str, Any]:
    wants_gpu = config is not None and config.runtime.hardware is not None
    return {
        "name": name,
        "entrypoint": entrypoint,
        "description": description,
        "tags": [TAG],
        "parameters": {} if config is None else config.model_dump(mode="json", exclude_unset=True),
        "work_pool": {"name": POOL, "work_queue_name": "gpu" if wants_gpu else "cpu"},
    }


def _every_night(hour: int) -> dict[str, Any]:
    """Not until it is switched on, and never beside one that still runs."""
    return {
        "schedules": [{"cron": f"0 {hour} * * *", "timezone": "UTC", "active": False}],
        "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
    }


def _described(preset: str) -> str:
    """The comment that a preset begins with."""
    lines = (files("deployments") / "presets" / f"{preset}.yaml").read_text().splitlines()
    return " ".join(line.lstrip("# ") for line in lines[: [line[:1] for line in lines].index("n")])


def _with_pool(pool: str) -> Path:
    """The committed file, or a copy of it with another pool's name."""
    if pool == POOL:
        return Path(str(FILE))
    import yaml

    given = yaml.safe_load(FILE.read_text())
    for entry in given["deployments"]:
        entry["work_pool"]["name"] = pool
    return kept("prefect.yaml", yaml.safe_dump(given, sort_keys=False))


def text() -> str:
    """prefect.yaml, written out."""
    import yaml

    return HEAD + yaml.safe_dump(content(), sort_keys=False, width=120, allow_unicode=True)


if __name__ == "__main__":
    Path(str(FILE)).write_text(text())
