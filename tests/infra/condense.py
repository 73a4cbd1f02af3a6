"""Makes kuberay.json from KubeRay's resource definitions: their schemas without words and without pods.

    python -m tests.infra.condense FOLDER_WITH_CRDS

The definitions are Apache-2.0 (helm-chart/kuberay-operator/crds of the KubeRay project). Pods inside them are checked
with Kubernetes' own schema instead (test_infra.py).
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

POD = {"x-pod": True}
HERE = Path(__file__).parent


def condensed(schema: Any) -> Any:
    """A schema without descriptions, closed against unknown names; pod templates become a mark."""
    if isinstance(schema, list):
        return [condensed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    properties = schema.get("properties")
    if (
        isinstance(properties, dict)
        and "spec" in properties
        and "containers" in properties["spec"].get("properties", {})
    ):
        return POD
    kept = {name: condensed(value) for name, value in schema.items() if name not in ("description", "properties")}
    if isinstance(properties, dict):
        kept["properties"] = {name: condensed(value) for name, value in properties.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            kept.setdefault("additionalProperties", False)
    return kept


def main(folder: str) -> None:
    """Writes the file."""
    kinds = {}
    for name in ("rayclusters", "rayjobs"):
        definition = yaml.safe_load((Path(folder) / f"ray.io_{name}.yaml").read_text())["spec"]
        [schema] = [
            version["schema"]["openAPIV3Schema"] for version in definition["versions"] if version["name"] == "v1"
        ]
        schema["properties"]["metadata"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        kinds[definition["names"]["kind"]] = condensed(schema)
    (HERE / "kuberay.json").write_text(json.dumps(kinds, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
