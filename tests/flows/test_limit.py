"""A stage's time: it fails at its next report; one that hangs ends its process, and says why."""

import subprocess
import sys
import time

import pytest

from flows import limit as limit_module
from flows.limit import Limit
from tasks.errors import StageFailed


def test_it_fails_at_the_first_report_after_its_time() -> None:
    with Limit("train", hours=0.2 / 3600) as limit:
        limit.require()
        time.sleep(0.3)
        with pytest.raises(StageFailed, match=r"train has taken longer than runtime.stage_hours \(5.5"):
            limit.require()


def test_without_a_limit_there_is_none() -> None:
    with Limit("train", None) as limit:
        limit.require()


def test_a_stage_that_ends_in_time_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limit_module, "GRACE_SECONDS", 0.1)
    with Limit("train", hours=0.1 / 3600):
        pass
    time.sleep(0.5)  # its timer would have ended this process


def test_a_stage_that_hangs_ends_its_process() -> None:
    code = (
        "import time\nfrom flows import limit\nlimit.GRACE_SECONDS = 0.3\n"
        "with limit.Limit('label', hours=0.1 / 3600):\n    time.sleep(60)\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and time.monotonic() - began < 30
    assert "label has taken longer than runtime.stage_hours" in done.stderr and "its process ends" in done.stderr
