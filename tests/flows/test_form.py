"""The form: every group and field has a title and says what it is for, in an order that was chosen."""

import importlib
from typing import Any

import pytest

from flows.form import TITLES
from tests.flows.test_deploy import DEPLOYED

FLOWS = sorted({entry["entrypoint"] for entry in DEPLOYED})


def schema(entrypoint: str) -> dict[str, Any]:
    module, name = entrypoint.rsplit(".", 1)
    return getattr(importlib.import_module(module), name).parameters.model_dump()


@pytest.mark.parametrize("entrypoint", [name for name in FLOWS if not name.endswith(".restart")])
def test_every_group_has_a_title_and_a_meaning(entrypoint: str) -> None:
    groups = schema(entrypoint)["properties"]
    for name, about in groups.items():
        assert about["title"] == TITLES[name]
        assert len(about["description"]) > 10, name
    positions = [about["position"] for about in groups.values()]
    assert positions == sorted(positions) and len(set(positions)) == len(positions)


@pytest.mark.parametrize("entrypoint", [name for name in FLOWS if not name.endswith(".restart")])
def test_every_field_inside_a_group_does(entrypoint: str) -> None:
    for kind, definition in schema(entrypoint)["definitions"].items():
        positions = []
        for name, about in definition["properties"].items():
            assert (about.get("title") and about["title"][0].isupper()) or about["title"] == "wandb", (kind, name)
            assert about.get("description"), (kind, name)
            positions.append(about["position"])
        assert len(set(positions)) == len(positions), (kind, "two fields at one place")
