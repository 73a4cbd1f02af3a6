"""Makes or repairs a virtual environment and installs the project (or anything else) into it.

    python3 install.py .venv constraints.txt -e .
    python3 install.py .venv-swift tests/servers/swift-constraints.txt swift

The Makefile calls it. Only the standard library is used, and it must parse on an old Python to say that it is old.
uv installs in seconds what takes pip minutes, so it goes into the environment first; where uv fails, pip does the work.
uv does not read pip's settings: `uv_environment` hands them over.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = (3, 11)
# pip's name of a setting -> uv's variable, and what separates several values there
UV_NAMES = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "cert": ("SSL_CERT_FILE", " "),
}


def uv_environment(pip_config, environment):
    """Returns `environment` plus uv's variables for what `pip config list` printed (lines `section.name='value'`).

    pip's order of precedence is kept (PIP_ variables, [install], [global]); a variable of uv that is set already wins.
    """
    found = {}
    for section in ("global", "install", ":env:"):
        for line in pip_config.splitlines():
            setting, _, value = line.partition("=")
            if setting.startswith(section + ".") and value:
                found[setting[len(section) + 1 :]] = str(ast.literal_eval(value))
    result = dict(environment)
    for name, (variable, separator) in UV_NAMES.items():
        if found.get(name):
            result.setdefault(variable, separator.join(found[name].split()))
    if "extra-index-url" in found:
        result.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # pip looks for the best version in every index
    return result


def runs(python):
    """Says whether `python` exists, starts and has pip (an upgrade of the system's Python leaves dead links)."""
    if not python.exists():
        return False
    nothing = subprocess.DEVNULL
    probe = subprocess.run([python, "-m", "pip", "--version"], stdin=nothing, stdout=nothing, stderr=nothing)
    return probe.returncode == 0


def make_environment(venv):
    """Creates `venv` unless a whole one is there, and marks it as being installed into. Returns (its Python, the mark).

    An install that was interrupted leaves the mark. Packages may then lie there half copied, which neither uv nor pip
    would notice, so such an environment is made anew.
    """
    python, mark = venv / "bin" / "python", venv / ".installing"
    if mark.exists() or not runs(python):
        shutil.rmtree(venv, ignore_errors=True)
        venv.mkdir(parents=True)
        mark.touch()
        if subprocess.run([sys.executable, "-m", "venv", venv]).returncode != 0:
            raise SystemExit(
                f"{sys.executable} cannot create a virtual environment in {venv} (its own message is above). "
                "On Debian and Ubuntu install python3-venv, then run the same command again."
            )
    mark.touch()
    return python, mark



def install(python, constraints, arguments):
    """Installs `arguments` (as for `pip install`) under `constraints` with uv, or with pip where uv fails."""
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    with_uv = [python, "-m", "uv", "pip", "install", "--quiet", "--python", python, "-c", constraints, *arguments]
    listed = subprocess.run([*pip, "config", "list"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    pinned_tools = Path(__file__).parent / "constraints.txt"
    has_uv = subprocess.run([*pip, "install", "--quiet", "-c", pinned_tools, "uv"]).returncode == 0
    if has_uv and subprocess.run(with_uv, env=uv_environment(listed.stdout, os.environ)).returncode == 0:
        return
    print("uv could not do it (its own message is above): going on with pip, which takes some minutes.", flush=True)
    if subprocess.run([*pip, "install", "--quiet", "-c", constraints, *arguments]).returncode != 0:
        raise SystemExit(
            "The installation failed (pip's own message is above). "
            "Check the network and the free space, then run the same command again."
        )


def main():
    """Reads `VENV CONSTRAINTS ARGUMENT...` from the command line and installs."""
    if sys.version_info < OLDEST:
        have, need = ".".join(map(str, sys.version_info[:3])), ".".join(map(str, OLDEST))
        raise SystemExit(
            f"saeflow needs Python {need} or newer, but {sys.executable} is {have}. "
            f"Name another one: make PYTHON=python{need} ..."
        )
    venv, constraints, *arguments = sys.argv[1:]
    print(f"Installing into {venv} ...", flush=True)
    python, mark = make_environment(Path(venv).absolute())
    install(python, constraints, arguments)
    mark.unlink()


if __name__ == "__main__":
    main()
