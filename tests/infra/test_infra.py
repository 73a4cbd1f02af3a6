"""Everything in infra/ is what its reader expects: Docker, compose, Kubernetes, KubeRay, nginx, systemd, S3.

compose-spec.json is the compose specification's schema (Apache-2.0) without its words; kuberay.json see condense.py.
"""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from flows.pool import base_job_template
from tasks.settings import settings

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
CONSTRAINTS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
DOCUMENTS = [
    (file.name, number, document)
    for file in sorted((INFRA / "kubernetes").glob("*.yaml"))
    for number, document in enumerate(yaml.safe_load_all(file.read_text()))
]
KINDS = json.loads((HERE / "kuberay.json").read_text())
POD = {"x-pod": True}


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for _, _, document in DOCUMENTS if document["kind"] == kind]


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, pod template) of every pod that is described in infra/kubernetes."""
    for name, _, document in DOCUMENTS:
        spec = document.get("spec", {})
        cluster = spec.get("rayClusterSpec", spec)
        if "headGroupSpec" in cluster:
            for group in [cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])]:
                yield f"{name} {group.get('groupName', 'head')}", group["template"]
        elif document["kind"] == "Deployment":
            yield f"{name} {document['metadata']['name']}", spec["template"]
    template = rendered_job()["spec"]["template"]
    yield "kubernetes-pool.json", template


def rendered_job() -> dict[str, Any]:
    """The job that a worker would make with the pool's defaults."""
    template = base_job_template("kubernetes")
    values = {name: about.get("default") for name, about in template["variables"]["properties"].items()}
    values |= {
        "name": "run", "labels": {}, "annotations": {}, "command": ["prefect", "flow-run", "execute"],
        "env": [{"name": name, "value": value} for name, value in values["env"].items()],
    }  # fmt: skip

    def fill(content: Any) -> Any:
        if isinstance(content, dict):
            filled = {name: fill(value) for name, value in content.items()}
            return {name: value for name, value in filled.items() if value is not None}
        if isinstance(content, list):
            return [fill(value) for value in content]
        if isinstance(content, str) and (whole := re.fullmatch(r"{{ (\w+) }}", content)):
            return values[whole[1]]
        if isinstance(content, str):
            return re.sub(r"{{ (\w+) }}", lambda found: str(values[found[1]]), content)
        return content

    return fill(template["job_configuration"]["job_manifest"])


def valid(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, "1.37", strict=True)


@pytest.mark.parametrize(("name", "number", "document"), DOCUMENTS, ids=lambda value: str(value)[:30])
def test_kubernetes_knows_every_field(name: str, number: int, document: dict[str, Any]) -> None:
    assert document["kind"] == "Namespace" or document["metadata"].get("namespace") == "saeflow"
    if document["kind"] in KINDS:
        jsonschema.validate(document, KINDS[document["kind"]])
    else:
        valid(document)


@pytest.mark.parametrize(("where", "template"), list(pods()), ids=lambda value: str(value)[:40])
def test_a_pod_is_one_that_kubernetes_takes_and_has_no_rights(where: str, template: dict[str, Any]) -> None:
    metadata = {"name": "pod"} | template.get("metadata", {})
    valid({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]})
    spec = template["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    volumes = {volume["name"] for volume in spec.get("volumes", [])}
    for container in [*spec["containers"], *spec.get("initContainers", [])]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
        assert re.fullmatch(r"saeflow-(cpu|gpu):0\.1\.0", container["image"])


def test_a_wrong_field_would_be_found() -> None:
    cluster = of_kind("RayCluster")[0]
    wrong = cluster | {"spec": cluster["spec"] | {"workerGroups": []}}
    with pytest.raises(jsonschema.ValidationError, match="workerGroups"):
        jsonschema.validate(wrong, KINDS["RayCluster"])
    deployment = of_kind("Deployment")[0]
    with pytest.raises(kubernetes_validate.ValidationError):
        valid(deployment | {"spec": deployment["spec"] | {"replica": 2}})


def test_the_parts_fit_each_other() -> None:
    given = dict(
        line.split("=", 1) for line in (INFRA / "prefect" / "server.env").read_text().splitlines() if line[0] != "#"
    )
    maps = {document["metadata"]["name"]: document["data"] for document in of_kind("ConfigMap")}
    assert maps["prefect-server"] == given, "infra/prefect/server.env and prefect-server.yaml must say the same"
    secrets = {document["metadata"]["name"]: document["stringData"] for document in of_kind("Secret")}
    assert set(secrets) == {"saeflow", "prefect-server", "ray-token"}
    used = json.dumps([template for _, template in pods()])
    for name in re.findall(r'"secretRef": {"name": "([\w-]+)"}|"secretName": "([\w-]+)"', used):
        assert "".join(name) in secrets
    for cluster in [*of_kind("RayCluster"), *(job["spec"]["rayClusterSpec"] for job in of_kind("RayJob"))]:
        cluster = cluster.get("spec", cluster)
        assert cluster["rayVersion"] == CONSTRAINTS["ray"]
        assert cluster["authOptions"] == {"mode": "token", "secretName": "ray-token"}
    [service] = of_kind("Service")
    assert maps["saeflow"]["PREFECT_API_URL"] == f"http://prefect.saeflow.svc:{service['spec']['ports'][0]['port']}/api"
    settings(maps["saeflow"])  # our own variables are such as we take


def test_the_entrypoint_of_the_ray_job_is_a_command_that_plans() -> None:
    from flows.config import load_preset

    [job] = of_kind("RayJob")
    words = job["spec"]["entrypoint"].split()
    assert words[:2] == ["saeflow", "run"]
    load_preset(words[2], words[4::2])


def test_the_worker_may_handle_jobs_and_nothing_else() -> None:
    [role] = of_kind("Role")
    assert not any("*" in rule["verbs"] + rule["resources"] + rule["apiGroups"] for rule in role["rules"])
    assert {verb for rule in role["rules"] if "jobs" not in rule["resources"] for verb in rule["verbs"]} == {
        "get", "list", "watch"
    }  # fmt: skip


COMPOSE = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())


def test_compose_takes_the_file() -> None:
    jsonschema.Draft7Validator(json.loads((HERE / "compose-spec.json").read_text())).validate(COMPOSE)
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0:
        made = subprocess.run([INFRA / "compose" / "secrets.sh"], capture_output=True)
        command = [docker, "compose", "-f", INFRA / "compose" / "compose.yaml", "config", "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True)
        if made.returncode == 0:
            shutil.rmtree(INFRA / "compose" / "secrets")
        assert done.returncode == 0, done.stderr


def test_only_the_proxy_is_reachable_and_every_image_is_pinned() -> None:
    services = COMPOSE["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["proxy"]
    assert all(port.startswith("${SAEFLOW_BIND:-127.0.0.1}:") for port in services["proxy"]["ports"])
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for service in services.values():
        assert re.search(r":\d[\w.-]*$", service["image"]), service["image"]
        for other in service.get("depends_on", ()):
            assert other in services
        assert {*service.get("secrets", ())} <= set(COMPOSE["secrets"])
        assert {volume.split(":")[0] for volume in service.get("volumes", ()) if volume[0] != "."} <= set(
            COMPOSE["volumes"]
        )


def test_the_secrets_are_made_once_and_stay_unread(tmp_path: Path) -> None:
    script = shutil.copy(INFRA / "compose" / "secrets.sh", tmp_path)
    first = subprocess.run([script, "ada", "box.example"], capture_output=True, text=True)
    assert first.returncode == 0 and "login ada, password " in first.stdout
    folder = tmp_path / "secrets"
    assert folder.stat().st_mode & 0o077 == 0
    wanted = {Path(value["file"]).name for value in COMPOSE["secrets"].values()} | {
        "prefect.env",
        "worker.env",
        "proxy.env",
    }
    assert wanted <= {path.name for path in folder.iterdir()}
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = subprocess.run([script], capture_output=True, text=True)
    assert again.returncode == 1 and "is there already" in again.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    ignored = subprocess.run(["git", "check-ignore", "-q", INFRA / "compose" / "secrets" / "logins"], cwd=ROOT)
    assert ignored.returncode == 0, "secrets must not be committed"


def test_the_images_are_pinned_and_run_as_nobody() -> None:
    file = INFRA / "images" / "Dockerfile"
    linted = subprocess.run([BIN / "hadolint", file], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout
    text = file.read_text()
    for image in re.split(r"^FROM .* AS (?:cpu|gpu)$", text, flags=re.MULTILINE)[1:]:
        assert re.findall(r"^USER (\w+)$", image, re.MULTILINE)[-1] == "1000"
    built = [service for service in COMPOSE["services"].values() if "build" in service]
    targets = {service["build"]["target"]: service["image"] for service in built}
    assert targets == {"cpu": "saeflow-cpu:0.1.0", "gpu": "saeflow-gpu:0.1.0"}
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists()
            assert f"!{name}\n" in (ROOT / ".dockerignore").read_text()
    [code] = re.findall(r'/venv/bin/python -c "(.+?)" >', text.replace("\\\n", ""), re.DOTALL)
    listed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    names = {re.split(r"[\[<>=]", line)[0] for line in listed.stdout.split("\n") if line}
    assert {"torch", "prefect", "prefect-redis", "prefect-kubernetes", "ray"} <= names
    assert {name.lower().replace("-", "_") for name in names} <= {
        name.lower().replace("-", "_") for name in CONSTRAINTS
    }


@pytest.mark.parametrize("script", [*sorted(INFRA.rglob("*.sh")), ROOT / ".ci" / "run"], ids=lambda path: path.name)
def test_scripts_are_sound(script: Path) -> None:
    assert os.access(script, os.X_OK)
    linted = subprocess.run([BIN / "shellcheck", script], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


def test_a_bare_machine_is_set_up_by_these_steps() -> None:
    script = INFRA / "gpu-box" / "setup.sh"
    given = ["--dry-run", "--api", "https://prefect.example/api", "--store", "s3://bucket/saeflow"]
    done = subprocess.run([script, *given], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [unit] = re.findall(r"saeflow-worker.service \(mode 644\):\n((?:    .*\n|\n)+)", done.stdout)
    parser = configparser.ConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(re.sub(r"^    ", "", unit, flags=re.MULTILINE))
    assert parser["Service"]["ExecStart"].endswith("prefect worker start --pool saeflow --work-queue gpu --limit 1")
    assert parser["Service"]["User"] == "saeflow" and parser["Service"]["NoNewPrivileges"] == "yes"
    assert "/etc/saeflow/worker.env (mode 600)" in done.stdout
    for wrong, said in (([], "--api is missing"), (["--api", "x", "--store", "y"], "does not end in /api")):
        refused = subprocess.run([script, *wrong], capture_output=True, text=True)
        assert refused.returncode == 2 and said in refused.stderr


def test_the_bucket_policy_allows_what_the_store_does_and_no_more() -> None:
    policy = json.loads((INFRA / "storage" / "bucket-policy.json").read_text())
    allowed = {action for statement in policy["Statement"] for action in statement["Action"]}
    assert allowed == {
        "s3:ListBucket", "s3:ListBucketMultipartUploads", "s3:GetObject", "s3:PutObject", "s3:DeleteObject",
        "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts",
    }  # fmt: skip
    assert all("YOUR-BUCKET" in statement["Resource"] for statement in policy["Statement"])
    [rule] = json.loads((INFRA / "storage" / "lifecycle.json").read_text())["Rules"]
    assert rule["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7}
    assert "Expiration" not in rule, "artifacts go when `saeflow gc` says so, not by age"
