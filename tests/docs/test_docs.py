"""The pages of docs/ are true: their commands run, print what they say, and name only what exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from flows.cli import app
from tests.docs.page import MARK, blocks, missing, outputs, script, unknown_commands
from tests.integration.commands import TINY

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
SECONDS = 800
# The commands as written, with the demo in its smallest size: what runs is the same, in less time.
SMALL = f"""#!{sys.executable}
import os, sys
words = ["{TINY}" if word == "demo" else word for word in sys.argv[1:]]
os.execv("{Path(sys.executable).with_name("saeflow")}", ["saeflow", *words])
"""


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a person who has installed saeflow and set nothing."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "saeflow"
    command.write_text(SMALL)
    command.chmod(0o755)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "infra").symlink_to(ROOT / "infra")  # pages speak from the folder of the clone
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SAEFLOW_")}
    path = f"{tmp_path / 'bin'}:{Path(sys.executable).parent}:{kept['PATH']}"
    return kept | {"PATH": path, "SAEFLOW_CACHE": str(tmp_path / "cache"), "COLUMNS": "160"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_runs_and_prints_what_it_says(page: Path, shell: dict[str, str], tmp_path: Path) -> None:
    found = blocks(page)
    if not any(block.runs and block.kind in ("sh", "python") for block in found):
        return
    done = subprocess.run(
        ["bash"], input=script(found), cwd=tmp_path / "here", env=shell, timeout=SECONDS, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert done.returncode == 0 and f"{MARK}failed" not in done.stdout, done.stdout
    for block, printed in outputs(found, done.stdout):
        assert not missing(block, printed), f"{page.name}, line {block.line}: {missing(block, printed)}\n{printed}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_what_a_page_names_exists(page: Path, tmp_path: Path) -> None:
    group = typer.main.get_command(app)
    for block in blocks(page):
        if block.kind == "sh":
            checked = subprocess.run(["bash", "-n"], input=block.body, text=True, capture_output=True)
            assert checked.returncode == 0, f"{page.name}, line {block.line}: {checked.stderr}"
            assert not unknown_commands(block, group), f"{page.name}, line {block.line}"
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / link).exists(), f"{page.name} links to {link}"
