"""How a run is carried out: where a stage that works in the flow's process computes."""

import pytest
import torch

from tasks.errors import InputError
from tasks.runtime import Runtime
from tasks.settings import settings


@pytest.mark.parametrize("gpu", [True, False])
def test_auto_takes_a_gpu_where_there_is_one_and_what_is_said_holds(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert Runtime().device_here() == ("cuda" if gpu else "cpu")
    assert [Runtime(device=device).device_here() for device in ("cpu", "cuda")] == ["cpu", "cuda"]


def test_the_cluster_of_this_place_is_taken_where_none_is_named() -> None:
    here = settings({"SAEFLOW_RAY_ADDRESS": "head:6379", "SAEFLOW_RAY_DASHBOARD": "http://head:8265"})
    filled = Runtime().resolved(here)
    assert (filled.ray_address, filled.ray_dashboard) == ("head:6379", "http://head:8265")
    other = Runtime(ray_address="other:6379").resolved(here)
    assert (other.ray_address, other.ray_dashboard) == ("other:6379", None)
    assert Runtime().resolved(settings({})).ray_address is None
    with pytest.raises(InputError, match="SAEFLOW_RAY_DASHBOARD is 'head:8265', which is no URL"):
        settings({"SAEFLOW_RAY_DASHBOARD": "head:8265"})
