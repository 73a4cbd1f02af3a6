"""One undisturbed run of the whole way, shared by the tests that look at it."""

from pathlib import Path

import pytest

from tests.integration.commands import run


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(store, result) of one undisturbed run on a local folder."""
    folder = tmp_path_factory.mktemp("calm")
    done = run(str(folder / "store"), folder / "first.json")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "first.log").write_text(done.stdout)
    return folder / "store", folder / "first.json"
