"""How a run is carried out: where a stage that works in the flow's process computes."""

import pytest
import torch

from tasks.runtime import Runtime


@pytest.mark.parametrize("gpu", [True, False])
def test_auto_takes_a_gpu_where_there_is_one_and_what_is_said_holds(gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert Runtime().device_here() == ("cuda" if gpu else "cpu")
    assert [Runtime(device=device).device_here() for device in ("cpu", "cuda")] == ["cpu", "cuda"]
