"""What is not sent: a wrong key, address or parameter, what costs too much, what the service would refuse."""

import contextlib
import pickle
import traceback
from pathlib import Path

import pytest

from tasks.claude import service as service_module
from tasks.claude.prices import PRICES_AS_OF
from tasks.claude.requests import Request, estimate
from tasks.claude.service import check_access, connect
from tasks.errors import InputError, ServiceError
from tests.servers.message_batches import MessageBatches
from tests.tasks.claude.driven import FAST, run, workspace
from tests.tasks.claude.made_requests import params, requests


def test_a_refused_key_is_one_error_without_the_key(tmp_path: Path) -> None:
    secret = "sk-ant-very-secret"
    with MessageBatches() as service:
        with pytest.raises(InputError, match="refuses the key in ANTHROPIC_API_KEY") as caught:
            run(tmp_path, service.url, requests(3), key=secret)
        assert service.created() == []
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert secret not in "".join(traceback.format_exception(caught.value))
    assert secret.encode() not in pickle.dumps(caught.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_text()]


def test_asking_whether_the_key_serves_leaves_no_connection_open(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = []
    monkeypatch.setattr(service_module, "connect", lambda: clients.append(connect()) or clients[-1])
    with MessageBatches() as service:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", service.url)
        for key in ("test-key", "another"):
            monkeypatch.setenv("ANTHROPIC_API_KEY", key)
            with contextlib.suppress(InputError):
                check_access()
        assert len(service.calls) == 2
    assert [client.is_closed() for client in clients] == [True, True]


def test_bad_parameters_stop_at_the_first_request(tmp_path: Path) -> None:
    with MessageBatches() as service:
        with pytest.raises(ServiceError, match="404 model: gpt-2"):
            run(tmp_path, service.url, [Request("a", params("x", model="gpt-2"))])
        assert service.created() == []


def test_a_service_that_is_down_is_said_soon(tmp_path: Path) -> None:
    with MessageBatches() as service:
        url = service.url
    with pytest.raises(ServiceError, match="cannot be reached"):
        run(tmp_path, url, requests(1), patience=FAST._replace(unreachable=0.05))


def test_a_wrong_address_is_said(tmp_path: Path) -> None:
    with MessageBatches() as service:
        service.message = lambda *_: "<html>welcome</html>"  # type: ignore[assignment, method-assign]
        with pytest.raises(InputError, match="does not answer as the Claude API does"):
            run(tmp_path, service.url, requests(1))


def test_the_budget_is_checked_before_anything_is_sent(tmp_path: Path) -> None:
    with MessageBatches() as service:
        refused = rf"may cost up to \$0\.01 at the prices of {PRICES_AS_OF}, more than the budget of \$0\."
        with pytest.raises(InputError, match=refused):
            run(tmp_path, service.url, requests(3), budget=0.0)
        assert service.calls == []
        run(tmp_path, service.url, requests(3))
        calls = len(service.calls)
        run(tmp_path, service.url, requests(3), budget=0.0)  # all is paid and kept: nothing is asked
        assert len(service.calls) == calls


def test_a_second_sending_stays_within_the_budget(tmp_path: Path) -> None:
    """Answers that cost more than expected use the budget up; what came back is kept, what failed is told."""
    asked, log = [Request(name, {**body, "max_tokens": 1}) for name, body in requests(3)], list[str]()
    cap = estimate(asked) + estimate(asked[:1], batch=False)
    with MessageBatches({"outcomes": [{"custom_id": "-1$", "outcome": "wrong_fields"}]}) as service:
        answers = run(tmp_path, service.url, asked, out=workspace(tmp_path, log, cap))
        assert len(service.created()) == 1
    assert answers.outcomes["1"].status == "malformed"
    assert answers.summary["answered"] == 2
    assert any("not sent again" in line for line in log)


@pytest.mark.parametrize(
    ("bad", "said"),
    [(Request("a b", params("x")), "letters, digits"), (Request("", params("x")), "letters, digits"),
     (Request("x" * 33, params("x")), "32"), (Request("ok\n", params("x")), "letters, digits"),
     (Request("a", {**params("x"), "temperature": 0}), "temperature is not accepted"),
     (Request("a", {**params("x"), "max_tokens": 0}), "no max_tokens"),
     (Request("b", params("x")), "used twice")],
)  # fmt: skip
def test_what_the_service_would_refuse_is_refused_before(tmp_path: Path, bad: Request, said: str) -> None:
    with MessageBatches() as service:
        with pytest.raises(InputError, match=said):
            run(tmp_path, service.url, [Request("b", params("x")), bad])
        assert service.calls == []
