"""install.py: pip's settings reach uv, and an interrupted installation is repaired."""

import subprocess
import sys
from pathlib import Path

import install

CONFIG = """\
:env:.find-links='/wheels /more wheels'
global.index-url='https://index.example/simple'
global.extra-index-url='https://a.example\\nhttps://b.example'
global.find-links='/elsewhere'
global.timeout='60'
install.index-url='https://inner.example/simple'
"""


def test_pip_settings_reach_uv_in_pips_order_of_precedence():
    given = install.uv_environment(CONFIG, {"PATH": "/bin"})
    assert given == {
        "PATH": "/bin",
        "UV_DEFAULT_INDEX": "https://inner.example/simple",
        "UV_INDEX": "https://a.example https://b.example",
        "UV_FIND_LINKS": "/wheels,/more,wheels",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
    }


def test_a_variable_of_uv_that_is_set_wins():
    assert install.uv_environment(CONFIG, {"UV_FIND_LINKS": "/mine"})["UV_FIND_LINKS"] == "/mine"


def test_nothing_is_set_where_pip_has_no_settings():
    assert install.uv_environment("", {}) == {}


def test_an_interrupted_environment_is_made_anew_and_a_whole_one_kept(tmp_path):
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to("/no/such/python")  # the system's Python has moved
    python, mark = install.make_environment(venv)
    assert subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0
    assert mark.exists()

    mark.unlink()
    half_copied = venv / "half-copied"
    half_copied.touch()
    install.make_environment(venv)
    assert half_copied.exists()  # it was whole; now the mark of an install that never ended is there
    install.make_environment(venv)
    assert not half_copied.exists()


def test_an_old_python_is_named_with_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(install, "OLDEST", (9, 9))
    monkeypatch.setattr(sys, "argv", ["install.py", ".venv", "constraints.txt", "-e", "."])
    try:
        install.main()
    except SystemExit as end:
        message = str(end)
    assert "needs Python 9.9 or newer" in message
    assert "make PYTHON=python9.9" in message


def test_everything_that_the_project_names_is_pinned():
    import tomllib

    root = Path(install.__file__).parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    named = project["dependencies"] + project["optional-dependencies"]["test"] + ["uv"]
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (root / "constraints.txt").read_text().split()}
    for requirement in named:
        name = requirement.split("[")[0].split("<")[0].split(">")[0].strip().lower().replace("_", "-")
        assert name in pinned, f"{requirement} has no pinned version in constraints.txt"
