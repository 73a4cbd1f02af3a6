"""How often a run was started again is read from its states; what is told of it goes to the webhook alone."""

from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prefect.client.schemas.objects import FlowRun, State, StateType

from flows.notices import LONGEST, tell
from flows.recovery import RESTARTING, restarts
from tests.servers.webhook import Webhook

CLOCK = count()


def state(kind: StateType, name: str | None = None) -> State:
    return State(type=kind, name=name, timestamp=datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(CLOCK)))


def one_life(name: str | None) -> list[State]:
    return [
        state(StateType.SCHEDULED, name),
        state(StateType.PENDING),
        state(StateType.RUNNING),
        state(StateType.CRASHED),
    ]


@given(st.lists(st.booleans(), max_size=6), st.randoms(use_true_random=False))
def test_restarts_are_counted_since_a_person_started_the_run(automatic: list[bool], shuffle) -> None:
    states = [found for again in [False, *automatic] for found in one_life(RESTARTING if again else None)]
    shuffle.shuffle(states)
    expected = 0
    for again in automatic:
        expected = expected + 1 if again else 0
    assert restarts(states) == expected


def run() -> FlowRun:
    return FlowRun(id=uuid4(), name="demo demo-model resid_post.1 n=2048 k=8", flow_id=uuid4())


def test_a_notice_has_what_a_person_or_a_program_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    about = run()
    with Webhook() as hook:
        monkeypatch.setenv("SAEFLOW_NOTIFY_URL", hook.url)
        tell(about, "Failed", "x" * 5000)
    [told] = hook.received
    assert told["run"] == about.name and told["id"] == str(about.id) and told["state"] == "Failed"
    assert told["message"] == "x" * LONGEST
    assert told["text"].startswith(f"{about.name}: Failed. xxx") and told["url"] in told["text"]
    assert told["url"].endswith(f"/runs/flow-run/{about.id}")


@pytest.mark.parametrize("status", [500, None])
def test_a_notice_that_cannot_be_sent_ends_nothing(
    status: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Webhook(status or 200) as hook:
        monkeypatch.setenv("SAEFLOW_NOTIFY_URL", hook.url if status else "http://127.0.0.1:9/secret-canary")
        tell(run(), "Completed", "")
    assert "secret-canary" not in caplog.text


def test_without_an_address_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SAEFLOW_NOTIFY_URL", raising=False)
    tell(run(), "Completed", "")
