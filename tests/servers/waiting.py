"""What tests of servers share: a free port, waiting for something to come true, and what a missing server means.

    port = free_port()
    eventually(lambda: httpx.get(f"http://127.0.0.1:{port}/api/health").status_code == 200)
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import Any, NoReturn

import httpx
import pytest

START_SECONDS = 240.0


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(what: Callable[[], Any], seconds: float = START_SECONDS) -> Any:
    """What `what()` returns once that is true; a server that does not answer yet is not there yet."""
    until = time.monotonic() + seconds
    while True:
        with contextlib.suppress(httpx.HTTPError):
            found = what()
            if found:
                return found
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.5)


def unavailable(reason: str, variable: str) -> NoReturn:
    """Skips with the reason, or fails where `variable` says that the part must be there."""
    if os.environ.get(variable) == "1":
        pytest.fail(f"{reason} ({variable}=1 demands it)")
    pytest.skip(reason)
