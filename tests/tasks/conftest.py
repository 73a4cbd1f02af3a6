"""What tests of stages share: one real Ray for the whole session."""

from collections.abc import Iterator

import pytest

from tasks import cluster, guard
from tasks.runtime import Runtime


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cluster.Cluster]:
    """The embedded cluster, under a guard whose record stays out of the user's cache."""
    guard.protect(folder=tmp_path_factory.mktemp("runs"))
    yield cluster.attach_or_start(Runtime())
    cluster.shutdown()
    guard.release()
