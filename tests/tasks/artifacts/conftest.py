"""What the tests of the store share."""

import pytest

from tasks.artifacts import Store, open_store


@pytest.fixture
def store(tmp_path) -> Store:
    """An empty local store."""
    return open_store(str(tmp_path / "store"))
