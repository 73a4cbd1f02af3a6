"""What is deployed follows from the presets and the flows, and each entry can be run."""

import importlib
import json
from importlib.resources import files
from typing import Any

import pytest
import yaml

from flows import deploy, pool
from flows.config import PipelineConfig, presets
from flows.dag import STAGES
from tasks.errors import ClusterError, InputError
from tests.flows.commands import saeflow

DEPLOYED = yaml.safe_load((files("deployments") / "prefect.yaml").read_text())["deployments"]


def test_the_committed_file_follows_from_the_presets() -> None:
    assert (files("deployments") / "prefect.yaml").read_text() == deploy.text(), "run python -m flows.deploy"


def test_every_preset_and_stage_is_deployed() -> None:
    names = [entry["name"] for entry in DEPLOYED]
    assert len(set(names)) == len(names)
    assert set(names) == {
        *presets(), "nightly", "demo-sweep", *(f"stage-{stage}" for stage in STAGES), "maintenance", "restart"
    }  # fmt: skip


@pytest.mark.parametrize("entry", DEPLOYED, ids=lambda entry: entry["name"])
def test_an_entry_names_a_flow_and_its_parameters_fit(entry: dict[str, Any]) -> None:
    module, name = entry["entrypoint"].rsplit(".", 1)
    flow = getattr(importlib.import_module(module), name)
    if entry["parameters"]:
        flow.validate_parameters(entry["parameters"])
        PipelineConfig.model_validate(
            {key: value for key, value in entry["parameters"].items() if key in PipelineConfig.model_fields}
        )
    assert entry["work_pool"] == {"name": "saeflow", "work_queue_name": entry["work_pool"]["work_queue_name"]}
    assert entry["work_pool"]["work_queue_name"] == ("gpu" if entry["name"].startswith("llama") else "cpu")
    assert len(entry["description"]) > 20
    assert "saeflow" in entry["tags"] or entry["name"] == "restart"


def test_schedules_wait_until_they_are_switched_on_and_run_one_at_a_time() -> None:
    scheduled = [entry for entry in DEPLOYED if "schedules" in entry]
    assert {entry["name"] for entry in scheduled} == {"nightly", "maintenance"}
    for entry in scheduled:
        assert [schedule["active"] for schedule in entry["schedules"]] == [False]
        assert entry["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}


@pytest.mark.parametrize("kind", ["process", "kubernetes"])
def test_a_worker_keeps_runs_that_outlive_it_and_they_send_heartbeats(kind: str) -> None:
    template = pool.base_job_template(kind)
    properties = template["variables"]["properties"]
    assert properties["stream_output"]["default"] is False
    assert properties["env"]["default"]["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    variables = set(properties)
    used = {part.split("}}")[0].strip() for part in json.dumps(template["job_configuration"]).split("{{")[1:]}
    assert used <= variables, f"{used - variables} are used, but no variables"


def test_an_unknown_kind_of_pool_is_refused() -> None:
    with pytest.raises(InputError, match="'docker' is not known here; take process or kubernetes"):
        pool.base_job_template("docker")


@pytest.mark.parametrize("given", ["NAME", "=block", "NAME=", "a name=block", "NAME=A_Block", "NAME={{ block }}"])
def test_what_is_no_variable_and_block_is_refused(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = saeflow(capsys, "deploy", "--secret", given)
    assert code == 1 and f"--secret {given!r} is not VARIABLE=BLOCK" in said


def test_kubernetes_has_its_own_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = saeflow(capsys, "deploy", "--type", "kubernetes", "--secret", "HF_TOKEN=hub")
    assert code == 1 and "infra/kubernetes/secrets.example.yaml" in said


def test_without_a_server_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = saeflow(capsys, "deploy")
    assert code == 1
    assert "There is no Prefect server to deploy to; set PREFECT_API_URL" in said


def test_what_prefect_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.raises(ClusterError, match="prefect work-pool inspect nothing failed: "):
        pool.prefect("work-pool", "inspect", "nothing")


def test_another_pool_takes_all_deployments() -> None:
    copied = yaml.safe_load(deploy._with_pool("lab").read_text())["deployments"]
    assert {entry["work_pool"]["name"] for entry in copied} == {"lab"}
