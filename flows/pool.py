"""The work pool of our runs: what a worker starts each of them with, and where their secrets are.

    make_pool("saeflow", "process", {"ANTHROPIC_API_KEY": "claude"})
"""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.server import LOGGING
from tasks.errors import ClusterError, InputError
from tasks.settings import settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

QUEUES = {"gpu": "For runs of models that want a GPU.", "cpu": "For all others."}
SECRET_BLOCK = "{{ prefect.blocks.secret."


def make_pool(pool: str, kind: str, blocks: Mapping[str, str]) -> None:
    """A work pool of a kind with our base job template, and its queues.

    The template has where a secret is, never the secret: a worker asks for the block when it starts a run.
    """
    from prefect import get_client
    from prefect.exceptions import ObjectAlreadyExists

    template = base_job_template(kind)
    with get_client(sync_client=True) as client:
        for block in blocks.values():
            _require_block(client, block)
        references = {variable: SECRET_BLOCK + block + " }}" for variable, block in blocks.items()}
        template["variables"]["properties"]["env"]["default"] |= _references_of(client, pool) | references
        file = kept(f"{kind}.json", json.dumps(template, indent=1))
        prefect("work-pool", "create", pool, "--type", kind, "--base-job-template", str(file), "--overwrite")
        for name, description in QUEUES.items():
            with contextlib.suppress(ObjectAlreadyExists):
                client.create_work_queue(name, description=description, work_pool_name=pool)


def variable_and_block(given: str) -> tuple[str, str]:
    """Of VARIABLE=BLOCK."""
    variable, equals, block = given.partition("=")
    if not (variable.isidentifier() and equals and re.fullmatch("[a-z0-9-]+", block)):
        raise InputError(
            f"--secret {given!r} is not VARIABLE=BLOCK: an environment variable, such as ANTHROPIC_API_KEY, and the "
            "name of a Secret block (small letters, digits, dashes)."
        )
    return variable, block


def _require_block(client: "SyncPrefectClient", block: str) -> None:
    """InputError where the server has no Secret block of that name."""
    from prefect.exceptions import ObjectNotFound

    try:
        client.read_block_document_by_name(block, "secret", include_secrets=False)
    except ObjectNotFound:
        raise InputError(
            f"There is no Secret block {block!r} on the Prefect server; make one on its page, under Blocks, Secret."
        ) from None


def _references_of(client: "SyncPrefectClient", pool: str) -> dict[str, str]:
    """The secrets that the pool's runs have already: without --secret they stay."""
    from prefect.exceptions import ObjectNotFound

    try:
        template = client.read_work_pool(pool).base_job_template
    except ObjectNotFound:
        return {}
    environment = template.get("variables", {}).get("properties", {}).get("env", {}).get("default") or {}
    return {name: value for name, value in environment.items() if str(value).startswith(SECRET_BLOCK)}


def base_job_template(kind: str) -> dict[str, Any]:
    """What a worker of that kind starts a run with: Prefect's own template with our defaults."""
    if kind == "kubernetes":
        return dict(json.loads((files("deployments") / "kubernetes-pool.json").read_text()))
    if kind != "process":
        raise InputError(f"A work pool of the kind {kind!r} is not known here; take process or kubernetes.")
    from prefect.workers.process import ProcessWorker

    from flows.recovery import HEARTBEAT_SECONDS

    template = ProcessWorker.get_default_base_job_template()
    properties = template["variables"]["properties"]
    properties["stream_output"]["default"] = False  # with true a flow dies at its next log line when its worker is gone
    properties["env"]["default"] = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS)} | LOGGING
    return template


def kept(name: str, content: str) -> Path:
    """A file for Prefect's command to read."""
    file = settings().cache / "pools" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    return file


def prefect(*arguments: str) -> None:
    """Runs one command of Prefect's; ClusterError with its last words where it fails."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-800:]
        raise ClusterError(f"prefect {' '.join(arguments)} failed: {said}")
