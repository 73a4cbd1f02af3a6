"""Keys: the same work has the same key for ever, other work another one, and what has no stable form is refused."""

import enum
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from tasks.artifacts import Spec, canonical_json, group_digest, stage_key
from tasks.errors import SpecError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(), part, max_size=4))


class Inner(BaseModel):
    """A nested group of settings."""

    a: int = 1
    b: str | None = None


class ExampleSpec(Spec):
    """A spec as stages have them."""

    steps: int = Field(3, description="Steps.")
    rate: float = Field(0.5, description="Rate.")
    inner: Inner = Field(Inner(), description="Nested.")


class GrownSpec(ExampleSpec):
    """The same, a release later."""

    fresh: float | None = Field(None, description="Added later: None means as before.")


def test_the_key_of_known_work_never_changes():
    key = stage_key("archive", 1, {"codec": "size", "layers": [1, 2], "rate": 0.1}, {"shard": "ab" * 32})
    assert key == "9de0f5a61647998de65d1db74440c0726c552b3f961e9243aaf4a60dd87cc93e"
    assert group_digest(["aa" * 32, "bb" * 32]) == "2ba3056e95d23c0c154eca683e330401c46e441d5074523e16349e29d7597a64"
    assert canonical_json({"b": [1, 2.0, True, None], "a": "é\n"}) == r'{"a":"\u00e9\n","b":[1,2.0,true,null]}'


def test_a_key_is_the_same_in_every_process():
    code = "from tasks.artifacts import stage_key; print(stage_key('s', 1, {'b': 1, 'a': {'y': 2, 'x': [0.1]}}, {}))"
    root = Path(__file__).parents[3]
    runs = [
        subprocess.run([sys.executable, "-c", code], cwd=root, env={"PYTHONHASHSEED": seed}, capture_output=True)
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
    assert len(runs[0].stdout.strip()) == 64


@given(VALUES)
def test_canonical_json_is_read_back_unchanged(value):
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(), VALUES, min_size=2, max_size=6))
def test_the_order_of_settings_does_not_matter(value):
    turned = dict(reversed(value.items()))
    assert canonical_json(turned) == canonical_json(value)


def test_values_that_python_calls_equal_but_json_does_not_stay_apart():
    values = [1, 1.0, True, "1", None, "null", [], {}, "", 0, 0.0, False, [1], [[1]], {"a": 1}, 10**20, 1e20]
    assert len({canonical_json(value) for value in values}) == len(values)


UNSTABLE = [math.nan, math.inf, {1, 2}, b"bytes", Path("a"), {1: "a"}, [{"x": {3}}], 1j, enum.Enum("E", "A").A]


@pytest.mark.parametrize("value", UNSTABLE, ids=repr)
def test_what_has_no_stable_form_is_refused_with_its_place(value):
    with pytest.raises(SpecError, match=r"value\.settings\[1\]"):
        canonical_json({"settings": [0, value]})


def test_a_field_added_later_as_none_keeps_the_key():
    assert GrownSpec().hashed() == ExampleSpec().hashed()
    assert GrownSpec(fresh=0.0).hashed() != ExampleSpec().hashed()
    assert "b" not in ExampleSpec().hashed()["inner"]


def test_a_whole_number_for_a_rate_is_the_same_rate():
    assert canonical_json(ExampleSpec(rate=1).hashed()) == canonical_json(ExampleSpec(rate=1.0).hashed())


def test_every_part_of_the_identity_enters_the_key():
    base: dict[str, Any] = {"stage": "s", "version": 1, "spec": {"a": 1}, "inputs": {"x": "d"}}
    others = [{"stage": "t"}, {"version": 2}, {"spec": {"a": 2}}, {"inputs": {"x": "e"}}, {"inputs": {"y": "d"}}]
    keys = {stage_key(**base), *(stage_key(**(base | other)) for other in others), stage_key(**base, outside={})}
    assert len(keys) == len(others) + 2


def test_the_order_of_shards_enters_the_digest():
    assert group_digest(["a", "b"]) != group_digest(["b", "a"])
    assert group_digest(["a"]) != group_digest(["a", "a"])


@pytest.mark.parametrize("settings", [{"stepz": 1}, {"steps": "many"}, {"rate": math.nan}])
def test_a_spec_refuses_what_it_does_not_know(settings):
    with pytest.raises(ValidationError):
        ExampleSpec(**settings)


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValidationError):
        ExampleSpec().steps = 4
