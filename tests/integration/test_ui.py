"""`saeflow ui` as a person meets it: server, deployed demo, form, Quick run, and runs of other terminals."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.commands import command, nothing_is_left, run
from tests.servers.waiting import eventually, free_port


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory, calm: tuple[Path, Path]) -> Iterator[str]:
    """The URL of a running `saeflow ui` on the store of the undisturbed run."""
    folder = tmp_path_factory.mktemp("ui")
    port, log = free_port(), folder / "ui.log"
    environment = os.environ | {"SAEFLOW_CACHE": str(folder / "cache"), "PREFECT_HOME": str(folder / "prefect")}
    arguments = command("ui", "--port", str(port), "--no-browser", "--store", str(calm[0]))
    with log.open("wb") as out:
        process = subprocess.Popen(arguments, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        eventually(lambda: "Ctrl-C ends" in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0, log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    nothing_is_left()


@pytest.fixture
def beside(ui: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The environment of another terminal of the same person."""
    folder = next(path for path in tmp_path_factory.getbasetemp().glob("ui*") if (path / "cache").is_dir())
    monkeypatch.setenv("SAEFLOW_CACHE", str(folder / "cache"))
    monkeypatch.setenv("PREFECT_HOME", str(folder / "prefect"))
    return ui


def flow_runs(ui: str) -> list[dict[str, Any]]:
    return httpx.post(f"{ui}/api/flow_runs/filter", json={"sort": "START_TIME_DESC"}).raise_for_status().json()


def test_a_run_in_another_terminal_appears_there(beside: str, calm: tuple[Path, Path], tmp_path: Path) -> None:
    done = run(str(calm[0]), tmp_path / "again.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"prefect {beside}/api" in done.stdout
    found = next(entry for entry in flow_runs(beside) if entry["name"].startswith("tiny "))
    assert found["name"] == "tiny demo-model resid_post.1 n=128 k=4"
    assert found["state_name"] == "Completed"
    query = {"flow_runs": {"id": {"any_": [found["id"]]}}}
    tasks = httpx.post(f"{beside}/api/task_runs/filter", json=query | {"limit": 100}).raise_for_status().json()
    assert {task["state_name"] for task in tasks} == {"Cached"}
    assert {"train", "capture 1 of 4", "archive 4 of 4"} <= {task["name"] for task in tasks}
    artifacts = httpx.post(f"{beside}/api/artifacts/filter", json=query).raise_for_status().json()
    assert {artifact["key"] for artifact in artifacts} >= {"report", "figures"}


def test_a_training_leaves_its_curves_on_the_page_of_its_run(
    beside: str, calm: tuple[Path, Path], tmp_path: Path
) -> None:
    done = run(str(calm[0]), tmp_path / "again.json", "--set", "train.k=5", "--set", "name=curves")
    assert done.returncode == 0, done.stdout + done.stderr
    found = next(entry for entry in flow_runs(beside) if entry["name"].startswith("curves "))
    query = {"flow_runs": {"id": {"any_": [found["id"]]}}, "limit": 100}
    artifacts = {
        artifact["key"]: artifact
        for artifact in httpx.post(f"{beside}/api/artifacts/filter", json=query).raise_for_status().json()
    }
    assert set(artifacts) >= {"train-fvu", "train-l0", "train-dead", "train-summary", "report", "figures"}
    assert artifacts["train-fvu"]["type"] == "image"
    assert artifacts["train-fvu"]["data"].startswith("data:image/svg+xml;base64,")
    assert "wandb sync --id" in artifacts["figures"]["data"]
    of_run = {"flow_run_id": {"any_": [found["id"]]}}
    logs = httpx.post(f"{beside}/api/logs/filter", json={"logs": of_run, "limit": 200}).raise_for_status().json()
    said = [line for line in logs if line["name"] == "tasks.cluster.logs"]
    assert any(line["message"].startswith("train-") and "Running entrypoint" in line["message"] for line in said)
    assert all(line["task_run_id"] for line in said), "each is shown with its stage"


def press_run(page: Any, ui: str, how: str) -> None:
    """Opens the demo's deployment and takes `how` from its Run button."""
    page.set_viewport_size({"width": 1400, "height": 1000})
    page.goto(f"{ui}/deployments")
    page.get_by_text("demo", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text(how).click()


def new_run(ui: str, before: set[str]) -> Callable[[], dict[str, Any]]:
    """What the server says of the one run that was not there before, now and later."""
    found = eventually(lambda: [entry["id"] for entry in flow_runs(ui) if entry["id"] not in before])[0]
    return lambda: httpx.get(f"{ui}/api/flow_runs/{found}").raise_for_status().json()


def cancel(page: Any, ui: str, state: Callable[[], dict[str, Any]]) -> None:
    """Cancels a run on its page and waits until that has happened."""
    page.goto(f"{ui}/runs/flow-run/{state()['id']}")
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Confirm", exact=True).click()
    eventually(lambda: state()["state_type"] == "CANCELLED")


@pytest.mark.browser
def test_the_form_is_readable_and_what_is_changed_there_is_run(beside: str, browser_page: Any, tmp_path: Path) -> None:
    page = browser_page
    press_run(page, beside, "Custom run")
    page.get_by_text("The language model to look into").first.wait_for(timeout=30_000)
    for title in ("1. Language model", "6. Sparse autoencoder", "How it is run"):
        assert page.get_by_text(title).count(), f"the form has no group {title}"
    page.screenshot(path=str(tmp_path / "form.png"), full_page=True)
    before = {entry["id"] for entry in flow_runs(beside)}
    inputs = [field for field in page.locator("input, textarea").all() if field.input_value() == "demo"]
    inputs[0].fill("called otherwise")
    # The page checks first and sends then; its requests go through this process, which must wait here for them.
    with page.expect_response(lambda response: response.url.endswith("/create_flow_run")):
        page.get_by_role("button", name="Submit", exact=True).click()
    state = new_run(beside, before)
    assert state()["parameters"]["name"] == "called otherwise"
    eventually(lambda: state()["state_type"] == "RUNNING")  # the worker has it; the whole demo would take minutes
    assert eventually(lambda: state()["name"].startswith("called otherwise demo-model"))
    cancel(page, beside, state)


@pytest.mark.browser
def test_a_quick_run_is_cancelled_and_retried(beside: str, browser_page: Any, tmp_path: Path) -> None:
    page = browser_page
    before = {entry["id"] for entry in flow_runs(beside)}
    press_run(page, beside, "Quick run")
    state = new_run(beside, before)
    eventually(lambda: state()["state_type"] == "RUNNING")
    assert eventually(lambda: state()["name"].startswith("demo demo-model"))
    cancel(page, beside, state)
    page.reload()
    page.get_by_role("button", name="Retry", exact=True).click()
    page.get_by_text("Do you want to retry").or_(page.get_by_role("dialog")).first.wait_for(timeout=30_000)
    page.screenshot(path=str(tmp_path / "retry.png"))
    page.get_by_role("button", name="Retry", exact=True).last.click()
    eventually(lambda: state()["state_type"] == "RUNNING")
    assert state()["run_count"] == 2
    cancel(page, beside, state)


def test_a_second_ui_says_where_the_first_is(beside: str) -> None:
    done = subprocess.run(command("ui", "--no-browser"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"A Prefect server runs already at {beside}/api" in done.stderr


