"""The whole way on a Ray cluster of several nodes with token authentication, of which two lose their power."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.commands import digests, nothing_is_left, run, started, wait_for
from tests.servers.ray_nodes import RayNodes

WORKERS = ("runtime.train_workers=4", "runtime.capture_workers=5")
SETTINGS = ("train.steps=1000", "runtime.checkpoint_every_steps=50", *WORKERS)
CHANGED = tuple(word for value in SETTINGS for word in ("--set", value))


@pytest.fixture
def ray_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayNodes]:
    """A head that does no work, and three nodes; runs of this terminal use it."""
    with RayNodes(cpus=[0, 2, 2, 2]) as nodes:
        with monkeypatch.context() as here:
            for name, value in nodes.environment.items():
                here.setenv(name, value)
            here.setenv("SAEFLOW_RAY_ADDRESS", nodes.address)
            here.setenv("SAEFLOW_RAY_DASHBOARD", nodes.dashboard)
            yield nodes


def test_nodes_die_under_capture_and_training_and_the_run_ends_as_if_nothing_had_been(
    ray_nodes: RayNodes, calm: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, log, result = tmp_path / "store", tmp_path / "run.log", tmp_path / "result.json"
    for stage in ("model", "corpus"):
        shutil.copytree(calm[0] / stage, store / stage)
    with started(str(store), log, "--json", str(result), *CHANGED) as process:
        wait_for(lambda: list(store.glob("capture/*/attempts/*")), process, log)
        ray_nodes.kill(3)  # five actors on six CPUs: it has at least one
        wait_for(lambda: list(store.glob("train/*/progress/*/checkpoint_*/state.json")), process, log)
        ray_nodes.kill(2)  # four ranks on the four CPUs that are left: it has two
        ray_nodes.add(2)
        assert not list(store.glob("train/*/manifest.json")), "it was over before the node died"
        assert process.wait(300) == 0, log.read_text() + ray_nodes.said()
    said = log.read_text()
    assert "INFO" not in said and "WARNING" not in said
    assert digests(result)["capture"] == digests(calm[1])["capture"]
    for name in ("SAEFLOW_RAY_ADDRESS", "SAEFLOW_RAY_DASHBOARD", *ray_nodes.environment):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SAEFLOW_BASE_STORE", str(calm[0]))
    undisturbed = run(str(tmp_path / "undisturbed"), tmp_path / "undisturbed.json", *CHANGED)
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr
    assert digests(result) == digests(tmp_path / "undisturbed.json")
    nothing_is_left()
