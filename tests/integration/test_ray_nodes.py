"""The whole way on a Ray cluster of several nodes with token authentication, one of which loses its power."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.commands import digests, nothing_is_left, started, wait_for
from tests.servers.ray_nodes import RayNodes


@pytest.fixture
def ray_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayNodes]:
    """A head that does no work, and three nodes; runs of this terminal use it."""
    with RayNodes(cpus=[0, 2, 2, 2]) as nodes:
        for name, value in nodes.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("SAEFLOW_RAY_ADDRESS", nodes.address)
        monkeypatch.setenv("SAEFLOW_RAY_DASHBOARD", nodes.dashboard)
        yield nodes


def test_nodes_die_under_capture_and_training_and_the_run_goes_on(
    ray_nodes: RayNodes, calm: tuple[Path, Path], tmp_path: Path
) -> None:
    store, log = tmp_path / "store", tmp_path / "run.log"
    result = tmp_path / "result.json"
    with started(str(store), log, "--json", str(result), "--set", "runtime.train_workers=2") as process:
        wait_for(lambda: list(store.glob("capture/*/attempts/*")), process, log)
        ray_nodes.kill(3)
        wait_for(lambda: list(store.glob("train/*/progress/*/checkpoint_*/state.json")), process, log)
        ray_nodes.kill(2)
        assert process.wait(600) == 0, log.read_text() + ray_nodes.said()
    assert digests(result)["archive"] == digests(calm[1])["archive"]
    print(log.read_text())
    nothing_is_left()
