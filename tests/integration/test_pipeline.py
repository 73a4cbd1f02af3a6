"""The whole way as a person runs it: the installed command, real Prefect, Ray and S3; killed, stopped and gone on."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

TINY = str(Path(__file__).with_name("tiny.yaml"))
STAGES = "model corpus capture archive preprocess train evaluate examples label score report".split()
RUN_SECONDS = 600


def command(*arguments: str) -> list[str]:
    return [str(Path(sys.executable).with_name("saeflow")), *arguments]


def run(store: str, json_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("run", TINY, "--store", store, "--json", str(json_file), *arguments),
        capture_output=True, text=True, timeout=RUN_SECONDS,
    )  # fmt: skip


def stages(json_file: Path) -> dict[str, dict[str, Any]]:
    content = json.loads(json_file.read_text())
    assert content["schema"] == 1
    return {entry["stage"]: entry for entry in content["stages"]}


def digests(json_file: Path) -> dict[str, str]:
    return {name: entry["digest"] for name, entry in stages(json_file).items()}


@contextlib.contextmanager
def started(store: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The command in a session of its own; whatever the test does, it does not outlive it."""
    with log.open("wb") as out:
        arguments = command("run", TINY, "--store", store)
        process = subprocess.Popen(arguments, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(what: Callable[[], Any], process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + RUN_SECONDS
    while not what():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)


def marked_processes() -> list[str]:
    """Command lines of everything that carries the mark of a run (tasks/guard.py) of this test's home."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            if "SAEFLOW_RUN" in environment and environment.get("HOME") == os.environ["HOME"]:
                found.append(" ".join(process.cmdline())[:120])
    return found


def nothing_is_left() -> None:
    until = time.monotonic() + 20
    while marked_processes():
        assert time.monotonic() < until, marked_processes()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(store, result) of one undisturbed run on a local folder."""
    folder = tmp_path_factory.mktemp("calm")
    done = run(str(folder / "store"), folder / "first.json")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "first.log").write_text(done.stdout)
    return folder / "store", folder / "first.json"


def test_the_whole_way_is_built_and_said(calm: tuple[Path, Path]) -> None:
    store, result = calm
    found = stages(result)
    assert list(found) == STAGES
    assert {entry["state"] for entry in found.values()} == {"Built"}
    assert found["capture"]["shards"] == found["archive"]["shards"] == {"built": 4, "cached": 0}
    assert found["model"]["summary"]["validation_bits_per_byte"] > 0
    assert 0 < found["evaluate"]["summary"]["fvu"] < 1
    said = result.with_name("first.log").read_text()
    assert "labels by keywords: no language model was asked" in said
    report = Path(said.split("file://")[1].split()[0])
    assert report.is_file() and report.is_relative_to(store)


def test_again_everything_is_cached(calm: tuple[Path, Path], tmp_path: Path) -> None:
    store, first = calm
    done = run(str(store), tmp_path / "again.json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = stages(tmp_path / "again.json")
    assert {entry["state"] for entry in found.values()} == {"Cached"}
    assert digests(tmp_path / "again.json") == digests(first)
    assert found["capture"]["shards"] == {"built": 0, "cached": 4}


def test_a_changed_k_rebuilds_the_training_and_what_follows(calm: tuple[Path, Path], tmp_path: Path) -> None:
    store, _ = calm
    planned = subprocess.run(
        command("plan", TINY, "--store", str(store), "--set", "train.k=3"), capture_output=True, text=True, check=True
    ).stdout
    lines = {line.split()[0]: line for line in planned.splitlines() if line.strip()}
    assert "Cached" in lines["preprocess"]
    assert "will run" in lines["train"] and "train.k (4 -> 3) changed" in lines["train"]
    assert "depends" in lines["report"]


def test_a_forced_stage_with_the_same_result_disturbs_nothing_after_it(calm: tuple[Path, Path], tmp_path: Path) -> None:
    store, first = calm
    done = run(str(store), tmp_path / "forced.json", "--force", "score")
    assert done.returncode == 0, done.stdout + done.stderr
    found = stages(tmp_path / "forced.json")
    assert [name for name, entry in found.items() if entry["state"] == "Built"] == ["score"]
    assert digests(tmp_path / "forced.json") == digests(first)


def test_lineage_status_and_verify_know_the_run(calm: tuple[Path, Path]) -> None:
    store, first = calm
    lineage = subprocess.run(command("lineage", "report", "--store", str(store)), capture_output=True, text=True)
    assert all(name in lineage.stdout for name in STAGES)
    status = subprocess.run(command("status", "--store", str(store)), capture_output=True, text=True)
    assert all(name in status.stdout for name in STAGES)
    verify = subprocess.run(command("verify", "--store", str(store)), capture_output=True, text=True)
    assert verify.returncode == 0 and "17 artifacts read, 0 damaged" in verify.stdout
    train = stages(first)["train"]
    weights = next((store / "train" / train["key"] / "attempts").glob("*/sae.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    verify = subprocess.run(command("verify", "--store", str(store)), capture_output=True, text=True)
    assert verify.returncode == 1 and "sae.safetensors" in verify.stdout
    data[-1] ^= 1
    weights.write_bytes(data)


@pytest.mark.s3
def test_killed_at_several_moments_on_s3_it_goes_on_and_ends_the_same(
    calm: tuple[Path, Path], s3_url: str, tmp_path: Path
) -> None:
    from tasks.artifacts import Store

    store = Store(s3_url)
    moments: list[Callable[[], Any]] = [
        lambda: store.keys("model") and not list(store.manifests("model")),  # while the model is trained
        lambda: any(True for _ in store.manifests("archive")),  # some shards are there, others not
        lambda: any("checkpoint" in name for key in store.keys("train") for name in store.files.names(f"train/{key}")),
    ]
    kept: set[tuple[str, str]] = set()
    for number, moment in enumerate(moments):
        log = tmp_path / f"killed.{number}.log"
        with started(s3_url, log) as process:
            wait_for(moment, process, log)
            process.kill()
        nothing_is_left()
        attempts = {(manifest.key, manifest.attempt) for manifest in store.manifests()}
        assert kept <= attempts, "what was committed before the kill is not made again"
        kept = attempts
    done = run(s3_url, tmp_path / "end.json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "goes on from step" in done.stdout
    assert digests(tmp_path / "end.json") == digests(calm[1])
    assert kept <= {(manifest.key, manifest.attempt) for manifest in store.manifests()}
    assert stages(tmp_path / "end.json")["capture"]["shards"]["cached"] >= 1
    assert not [name for name in store.files.names("") if "/progress/" in name]
    nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_everything_and_leaves_nothing_unfinished(number: int, tmp_path: Path) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    with started(str(store), log) as process:
        wait_for(lambda: list(store.glob("capture/*/attempts/*")), process, log)
        process.send_signal(number)
        assert process.wait(60) == 130 if number == signal.SIGINT else process.wait(60) != 0
    assert "Stopped" in log.read_text() and "Traceback" not in log.read_text()
    nothing_is_left()
    owners = list(store.rglob("*.owner"))
    assert not owners, "unfinished attempts are put away"
