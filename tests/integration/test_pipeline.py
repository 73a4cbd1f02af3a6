"""The whole way as a person runs it: the installed command, real Prefect, Ray and S3; killed, stopped and gone on."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import STAGES, TINY, command, digests, nothing_is_left, run, stages, started, wait_for


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


ALONE = """
import os, sys
from flows.server import ENVIRONMENT
os.environ |= ENVIRONMENT | {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120"}
from flows import single
from flows.config import PipelineConfig, load_preset
config = load_preset(sys.argv[1], sys.argv[3:])
single.report(**{name: getattr(config, name) for name in PipelineConfig.model_fields}, store=sys.argv[2])
"""


def test_each_stage_is_a_flow_of_its_own_on_earlier_artifacts(calm: tuple[Path, Path]) -> None:
    def report_alone(*settings: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-c", ALONE, TINY, str(calm[0]), *settings]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=300)

    done = report_alone()
    assert done.returncode == 0, done.stderr
    done = report_alone("train.k=2")
    assert done.returncode != 0
    assert "report needs the artifact of train" in done.stderr


def test_a_sweep_trains_only_the_points_that_are_new(calm: tuple[Path, Path], tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(calm[0], store)
    sweep = command("sweep", TINY, "--grid", "train.k=4,6", "--store", str(store), "--json", str(tmp_path / "it.json"))
    done = subprocess.run(sweep, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = stages(tmp_path / "it.json")
    assert list(found) == [*STAGES[: STAGES.index("examples")], "sweep"]
    assert found["preprocess"]["state"] == "Cached"
    assert found["train"]["shards"] == found["evaluate"]["shards"] == {"built": 1, "cached": 1}
    page = Path(done.stdout.split("file://")[1].strip())
    points = json.loads(page.with_name("points.json").read_text())["points"]
    assert [point["settings"] for point in points] == [{"k": 4}, {"k": 6}]
    assert points[0]["fvu"]["value"] > points[1]["fvu"]["value"]
    nothing_is_left()


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


@pytest.mark.parametrize(
    ("number", "stage", "begun"),
    [(signal.SIGINT, "capture", "capture/*/attempts/*"), (signal.SIGTERM, "train", "train/*/progress/request.json")],
)
def test_ctrl_c_ends_everything_and_leaves_nothing_unfinished(
    number: int, stage: str, begun: str, calm: tuple[Path, Path], tmp_path: Path
) -> None:
    store, log = tmp_path / "store", tmp_path / "log"
    for earlier in STAGES[: STAGES.index(stage)]:
        shutil.copytree(calm[0] / earlier, store / earlier, ignore=shutil.ignore_patterns("*.owner"))
    with started(str(store), log) as process:
        wait_for(lambda: list(store.glob(begun)), process, log)
        os.killpg(process.pid, number)  # as a terminal or a scheduler does: to all of the run's own group
        assert process.wait(60) == 130 if number == signal.SIGINT else process.wait(60) != 0
    assert "Stopped" in log.read_text() and "Traceback" not in log.read_text()
    nothing_is_left()
    owners = list(store.rglob("*.owner"))
    assert not owners, "unfinished attempts are put away"
