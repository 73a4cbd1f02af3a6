"""A real Redis on loopback for one test, from the distribution's own package.

    with running_redis() as url:      "redis://127.0.0.1:PORT"
"""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator

from tests.servers.waiting import free_port

START_SECONDS = 30.0


def missing() -> str | None:
    """Why no Redis can be started here, or None."""
    if shutil.which("redis-server"):
        return None
    return "Redis is not installed (Debian, Ubuntu: apt-get install redis-server)"


@contextlib.contextmanager
def running_redis() -> Iterator[str]:
    """The URL of an empty Redis; it keeps nothing."""
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="saeflow-redis-") as folder:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            until = time.monotonic() + START_SECONDS
            while True:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    break
                assert server.poll() is None and time.monotonic() < until
                time.sleep(0.1)
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(20)
