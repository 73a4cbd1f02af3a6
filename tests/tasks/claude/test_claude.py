"""Batches against a real local server with the real SDK: sent once whatever is killed when, and only failures again."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import anthropic
import pytest

from tasks.claude import requests as claude_requests
from tasks.claude.prices import PRICES_AS_OF
from tasks.claude.requests import estimate
from tasks.errors import ServiceError
from tests.servers.message_batches import MessageBatches
from tests.tasks.claude.driven import FAST, KEY, WANTED, Crash, FolderProgress, run, values, workspace
from tests.tasks.claude.made_requests import params, requests


def test_answers_come_back_under_their_names_whatever_the_order_of_the_results(tmp_path: Path) -> None:
    reports: list[tuple[float, float, str]] = []
    out = workspace(tmp_path, [])
    out.on_report = lambda *told: reports.append(told)
    with MessageBatches({"ends_after": 3}) as service:
        answers = run(tmp_path, service.url, requests(5), out=out)
        assert values(answers) == WANTED
        assert service.created() == [[f"{KEY[:24]}-0-{i}" for i in range(1, 5)]]  # 0 was answered by the probe
    assert reports[-1] == (5, 5, "requests")
    assert answers.summary["answered"] == 5
    assert answers.summary["output_tokens"] > 0
    assert 0 < answers.summary["dollars"] < estimate(requests(5)) + estimate(requests(1), batch=False)
    assert answers.summary["prices_as_of"] == PRICES_AS_OF


def test_a_crash_at_any_write_never_sends_a_request_twice_nor_loses_one(tmp_path: Path) -> None:
    moment, crashes = 0, True
    while crashes:
        with MessageBatches() as service:
            folder = tmp_path / f"{moment}"
            folder.mkdir()
            crashes = False
            with contextlib.suppress(Crash):
                run(folder, service.url, requests(5), crash_at=moment)
                crashes = True
            crashes, moment = not crashes, moment + 1
            assert values(run(folder, service.url, requests(5))) == WANTED
            sent = [custom_id for batch in service.created() for custom_id in batch]
            assert sorted(sent) == [f"{KEY[:24]}-0-{i}" for i in range(1, 5)]
    assert moment > 6  # probe, intent, id, results: before and after each


FAULTS = [{"drop": True}, {"status": 529}, {"status": 429, "retry_after": 0.05}]
CALLS = ["POST messages$", "GET batches$", "POST batches$", "GET batches/msgbatch_0+$", "GET results$"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", CALLS)
def test_a_failed_call_is_made_again_but_a_batch_is_taken_once(tmp_path: Path, fault: dict, call: str) -> None:
    method, path = call.split()
    with MessageBatches({"faults": [{"method": method, "path": path, "times": 2, **fault}]}) as service:
        assert values(run(tmp_path, service.url, requests(5))) == WANTED
        assert len(service.created()) == 1
        made = [made for made in service.calls if made.startswith(method) and re.search(path, made)]
        taken = call == "POST batches$" and "drop" in fault  # it was carried out: seen in the list, not made again
        assert len(made) == 1 if taken else len(made) >= 2


def test_a_cut_results_file_is_fetched_again(tmp_path: Path) -> None:
    with MessageBatches({"faults": [{"path": "results", "cut": 900}]}) as service:
        assert values(run(tmp_path, service.url, requests(5))) == WANTED
        assert sum(call.endswith("/results") for call in service.calls) == 2


def test_a_lost_id_is_found_among_the_batches_of_others(tmp_path: Path) -> None:
    """Others send batches of the same size before the intent, between intent and create, and after it."""
    foreign = [{"custom_id": f"other-0-{i}", "params": params("x")} for i in range(4)]
    with MessageBatches({"ends_after": 2, "page_limit": 2}) as service:
        with anthropic.Anthropic(api_key="test-key", base_url=service.url) as other:
            other.messages.batches.create(requests=foreign)  # type: ignore[arg-type]
            with pytest.raises(Crash):
                run(tmp_path, service.url, requests(5), crash_at=3)  # the intent is written, nothing was sent
            other.messages.batches.create(requests=foreign)  # type: ignore[arg-type]
            with pytest.raises(Crash):
                run(tmp_path, service.url, requests(5), crash_at=2)  # the batch was sent, its id is not written
            for _ in range(3):
                other.messages.batches.create(requests=foreign)  # type: ignore[arg-type]
        assert values(run(tmp_path, service.url, requests(5))) == WANTED
        ours = [ids for ids in service.created() if ids[0].startswith(KEY[:24])]
        assert ours == [[f"{KEY[:24]}-0-{i}" for i in range(1, 5)]]
        assert len(service.created()) == 6


def test_an_intent_whose_batch_never_arrived_is_sent(tmp_path: Path) -> None:
    with MessageBatches() as service:
        with pytest.raises(Crash):
            run(tmp_path, service.url, requests(3), crash_at=3)  # the intent is written, create was not called
        assert service.created() == []
        log: list[str] = []
        answers = run(tmp_path, service.url, requests(3), out=workspace(tmp_path, log))
        assert values(answers) == {k: WANTED[k] for k in "012"}
        assert len(service.created()) == 1
        assert any("may have sent" in line for line in log)


@pytest.mark.parametrize("failure", ["errored", "expired", "not_json", "wrong_fields"])
def test_only_what_failed_is_sent_again(tmp_path: Path, failure: str) -> None:
    with MessageBatches({"outcomes": [{"custom_id": "-3$", "outcome": failure}]}) as service:
        assert values(run(tmp_path, service.url, requests(5))) == WANTED
        assert [len(ids) for ids in service.created()] == [4, 1]
        assert service.created()[1] == [f"{KEY[:24]}-1-3"]


def test_a_cut_off_answer_gets_more_room(tmp_path: Path) -> None:
    room: list[int] = []
    with MessageBatches({"outcomes": [{"custom_id": "-2$", "outcome": "truncated"}]}) as service:
        answer = service.answer
        service.answer = lambda asked: (room.append(asked["max_tokens"]), answer(asked))[1]
        assert values(run(tmp_path, service.url, requests(3)))["2"] == WANTED["2"]
    assert room == [100, 100, 100, 200]


@pytest.mark.parametrize(
    ("failure", "status", "sent"),
    [("errored", "errored", 3), ("not_json", "malformed", 3), ("refusal", "refused", 1), ("invalid", "errored", 1),
     ("canceled", "canceled", 1), ("expired", "expired", 3)],
)  # fmt: skip
def test_what_fails_for_good_is_reported_after_a_bounded_number_of_turns(
    tmp_path: Path, failure: str, status: str, sent: int
) -> None:
    with MessageBatches({"outcomes": [{"custom_id": "-1$", "outcome": failure, "times": 99}]}) as service:
        answers = run(tmp_path, service.url, requests(3))
        assert answers.outcomes["1"].status == status
        assert answers.outcomes["1"].reason
        assert answers.summary["answered"] == 2
        assert sum(name.endswith("-1") for ids in service.created() for name in ids) == sent


def test_a_malformed_probe_is_asked_again_in_the_batch(tmp_path: Path) -> None:
    with MessageBatches({"outcomes": [{"custom_id": "^probe$", "outcome": "not_json"}]}) as service:
        assert values(run(tmp_path, service.url, requests(2))) == {k: WANTED[k] for k in "01"}
        assert service.created() == [[f"{KEY[:24]}-0-0", f"{KEY[:24]}-0-1"]]


def test_many_requests_go_as_several_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claude_requests, "MOST_REQUESTS", 2)
    with MessageBatches({"ends_after": 1}) as service:
        with pytest.raises(Crash):
            run(tmp_path, service.url, requests(5), crash_at=6)  # the first batch has its id, the second is not begun
        assert values(run(tmp_path, service.url, requests(5))) == WANTED
        assert [len(ids) for ids in service.created()] == [2, 2]


def test_results_that_are_no_longer_kept_count_as_expired(tmp_path: Path) -> None:
    with MessageBatches() as service:
        view, gone = service.view, {"msgbatch_000000"}
        service.view = lambda batch: {**view(batch), **({"results_url": None} if batch["id"] in gone else {})}  # type: ignore[method-assign]
        assert values(run(tmp_path, service.url, requests(3))) == {k: WANTED[k] for k in "012"}
        assert len(service.created()) == 2


def test_a_service_that_stays_away_too_long_is_given_up_and_found_again(tmp_path: Path) -> None:
    with MessageBatches({"faults": [{"path": "results$", "status": 503, "times": 10**6}]}) as service:
        with pytest.raises(ServiceError, match="could not give the results of batch"):
            run(tmp_path, service.url, requests(3), patience=FAST._replace(outage=0.1))
        service.script["faults"] = []
        assert values(run(tmp_path, service.url, requests(3))) == {k: WANTED[k] for k in "012"}
        assert len(service.created()) == 1


def test_a_batch_that_does_not_end_is_left_at_the_service_and_found_by_the_next_run(tmp_path: Path) -> None:
    with MessageBatches({"ends_after": 10**6}) as service:
        with pytest.raises(ServiceError, match="has not ended after 1e-05 hours"):
            run(tmp_path, service.url, requests(3), hours=1e-5)
        service.script["ends_after"] = 0
        assert values(run(tmp_path, service.url, requests(3))) == {k: WANTED[k] for k in "012"}
        assert len(service.created()) == 1


def test_a_cancelled_batch_is_not_sent_again(tmp_path: Path) -> None:
    with MessageBatches({"ends_after": 10**6}) as service:
        with pytest.raises(ServiceError):
            run(tmp_path, service.url, requests(3), hours=1e-5)
        with anthropic.Anthropic(api_key="test-key", base_url=service.url) as client:
            client.messages.batches.cancel("msgbatch_000000")
        assert Counter(o.status for o in run(tmp_path, service.url, requests(3)).outcomes.values()) == {
            "answered": 1, "canceled": 2,
        }  # fmt: skip
        assert len(service.created()) == 1


CHILD = """
import sys
from pathlib import Path
from tests.tasks.claude.driven import run, values
from tests.tasks.claude.made_requests import requests
values(run(Path(sys.argv[1]), sys.argv[2], requests(5)))
"""


@pytest.mark.parametrize("instant", ["POST /v1/messages/batches", "GET /v1/messages/batches/msgbatch_000000"])
def test_sigkill_of_the_run_while_the_service_lives_on(tmp_path: Path, instant: str) -> None:
    """The service is a process of its own; the run dies while create is answered, then while it polls."""
    script = {"ends_after": 3, "faults": [{"method": "POST", "path": "batches$", "hold": 1.0}]}
    log, folder = tmp_path / "creates.jsonl", tmp_path / "progress"
    folder.mkdir()
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "tests.servers.message_batches", "--log", str(log), "--script", json.dumps(script)]
    server = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), url], cwd=root)
        while instant not in _calls(url):
            assert child.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        if instant.startswith("POST"):
            while not log.exists():
                time.sleep(0.01)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        assert bool(FolderProgress(folder).names("batches/0-00000.id")) == instant.startswith("GET")
        assert values(run(folder, url, requests(5))) == WANTED
        assert len(log.read_text().splitlines()) == 1
    finally:
        server.kill()
        server.wait()
        assert server.stdout is not None
        server.stdout.close()


def _calls(url: str) -> list[str]:
    with urllib.request.urlopen(f"{url}/log") as answer:
        return json.load(answer)["calls"]
