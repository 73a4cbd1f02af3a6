"""A run is given secrets; afterwards, and while it runs, none of them is in anything that it wrote or printed."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tasks.folders import files_below
from tests.integration.commands import TINY, command, nothing_is_left
from tests.servers.message_batches import MessageBatches
from tests.servers.swift import Swift
from tests.servers.waiting import eventually, free_port
from tests.servers.webhook import Webhook

CANARIES = {
    "ANTHROPIC_API_KEY": "sk-ant-canary-5d1c9e",
    "HF_TOKEN": "hf_canary_81f3aa",
    "WANDB_API_KEY": "c" * 34 + "a17e90",
    "PREFECT_API_AUTH_STRING": "saeflow:canary-77b2d4",
}


@pytest.fixture
def prefect(tmp_path: Path) -> Iterator[str]:
    """A server that asks for a password; its API's URL."""
    port = free_port()
    environment = {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_SERVER_API_AUTH_STRING": CANARIES["PREFECT_API_AUTH_STRING"],
    }
    start = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(start, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True)
    try:
        eventually(lambda: httpx.get(f"http://127.0.0.1:{port}/api/health").status_code == 200)
        yield f"http://127.0.0.1:{port}/api"
    finally:
        server.terminate()
        server.wait(60)


def found_in(folder: Path, secrets: dict[str, bytes]) -> set[str]:
    """`VARIABLE in FILE` for each file below a folder that holds a secret."""
    found = set()
    for file in files_below(folder):
        with contextlib.suppress(OSError):
            if file.is_file() and not file.is_symlink():
                content = file.read_bytes()
                found |= {f"{name} in {file}" for name, secret in secrets.items() if secret in content}
    return found


def test_no_secret_is_written_or_printed(prefect: str, s3_url: str, swift: Swift, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    ray = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # its sockets need a short name
    outputs.mkdir()
    with MessageBatches({"key": CANARIES["ANTHROPIC_API_KEY"]}) as claude, Webhook() as hook:
        secrets = CANARIES | {"AWS_SECRET_ACCESS_KEY": swift.secret, "SAEFLOW_NOTIFY_URL": hook.url}
        environment = os.environ | secrets | {
            "ANTHROPIC_BASE_URL": claude.url, "PREFECT_API_URL": prefect, "TMPDIR": str(ray),
            "SAEFLOW_CACHE": str(outputs / "cache"), "PREFECT_HOME": str(outputs / "prefect"),
            "HOME": str(outputs / "home"), "XDG_CACHE_HOME": str(outputs / "home" / "cache"),
        }  # fmt: skip
        (outputs / "home").mkdir()
        small = ("claude_latents=12", "label.model=claude-haiku-5-5", "score.model=claude-haiku-5-5")
        sets = [word for value in (*small, "runtime.budget_dollars=5") for word in ("--set", value)]
        bytes_of = {name: secret.encode() for name, secret in secrets.items()} | {"webhook": b"secret-canary"}
        seen: set[str] = set()
        logs: set[Path] = set()
        ended = threading.Event()

        def watch() -> None:  # what Ray writes is gone at the end
            while not ended.wait(2):
                seen.update(found_in(ray, bytes_of))
                logs.update(file for file in files_below(ray) if file.suffix == ".log")

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            with (outputs / "printed.txt").open("wb") as out:
                run = command("run", TINY, "--store", s3_url, "--json", str(outputs / "run.json"), *sets)
                done = subprocess.run(
                    run, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL, cwd=outputs
                )
        finally:
            ended.set()
            watching.join()
        printed = (outputs / "printed.txt").read_text()
        assert done.returncode == 0, printed
        assert claude.created(), "Claude was not asked: its key was not used"
    kept = outputs / "store"
    bucket = s3_url.split("/")[2]
    client = swift.client()
    for number, entry in enumerate(client.list_objects_v2(Bucket=bucket)["Contents"]):
        kept.mkdir(exist_ok=True)
        (kept / str(number)).write_bytes(client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read())
    assert len(list(kept.iterdir())) > 20
    assert len(logs) > 5, "Ray's logs were not where they were looked for"
    assert not seen
    assert not found_in(outputs, bytes_of)
    assert not found_in(tmp_path / "prefect", bytes_of), "the server's data base and logs"
    (outputs / "planted").write_text(f"url?key={CANARIES['HF_TOKEN']}")
    assert found_in(outputs, bytes_of) == {f"HF_TOKEN in {outputs / 'planted'}"}, "this test would see one"
    shutil.rmtree(ray)
    nothing_is_left()


def test_a_wrong_password_of_the_prefect_server_is_said(prefect: str, tmp_path: Path) -> None:
    for variable in ({}, {"PREFECT_API_AUTH_STRING": "saeflow:wrong-canary"}):
        environment = os.environ | {"PREFECT_API_URL": prefect} | variable
        started = time.monotonic()
        run = command("run", TINY, "--store", str(tmp_path / "store"))
        done = subprocess.run(run, env=environment, capture_output=True, text=True)
        assert done.returncode == 1 and time.monotonic() - started < 60
        assert f"The Prefect server at {prefect} asks for a password" in done.stderr, done.stdout + done.stderr
        assert "PREFECT_API_AUTH_STRING" in done.stderr
        assert "wrong-canary" not in done.stderr + done.stdout and "Traceback" not in done.stderr
        assert not (tmp_path / "store").exists(), "nothing was begun"
