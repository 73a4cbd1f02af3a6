"""A real PostgreSQL on loopback for one test, from the distribution's own package; it refuses root: we lend it a user.

    with running_postgres() as url:      "postgresql+asyncpg://saeflow@127.0.0.1:PORT/prefect"
"""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.servers.waiting import free_port

START_SECONDS = 60.0


def missing() -> str | None:
    """Why no PostgreSQL can be started here, or None."""
    if _programs() is None:
        return "PostgreSQL is not installed (Debian, Ubuntu: apt-get install postgresql)"
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        return "PostgreSQL refuses root, and there is no setpriv to become somebody else"
    return None


def _programs() -> Path | None:
    """Folder of initdb and postgres, the newest version's."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """The URL of an empty data base; all of it is gone afterwards."""
    programs = _programs()
    assert programs is not None
    folder = Path(tempfile.mkdtemp(prefix="saeflow-postgres-"))
    become: list[str] = []
    if os.geteuid() == 0:
        os.chown(folder, 65534, 65534)  # nobody
        become = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    port = free_port()
    try:
        initialise = f"{programs}/initdb -D {folder}/data -U saeflow --auth=trust -N -E UTF8".split()
        subprocess.run([*become, *initialise], check=True, capture_output=True, cwd="/")
        serve = f"{programs}/postgres -D {folder}/data -p {port} -k {folder} -h 127.0.0.1".split()
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen([*become, *serve], stdout=log, stderr=log, cwd="/", start_new_session=True)
        try:
            _create_database(programs, folder, port, become, server)
            yield f"postgresql+asyncpg://saeflow@127.0.0.1:{port}/prefect"
        finally:
            server.send_signal(signal.SIGINT)  # a fast shutdown
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(20)
            server.kill()
            server.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _create_database(
    programs: Path, folder: Path, port: int, become: list[str], server: subprocess.Popen[bytes]
) -> None:
    create = [*become, str(programs / "createdb"), "-h", str(folder), "-p", str(port), "-U", "saeflow", "prefect"]
    until = time.monotonic() + START_SECONDS
    while True:
        done = subprocess.run(create, capture_output=True, text=True, cwd="/")
        if done.returncode == 0:
            return
        assert server.poll() is None and time.monotonic() < until, done.stderr + (folder / "log").read_text()
        time.sleep(0.2)
