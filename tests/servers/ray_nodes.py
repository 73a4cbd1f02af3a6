"""A real Ray cluster of several nodes on loopback, with token authentication, as `ray start` makes one.

    with RayNodes(cpus=[0, 2, 2]) as ray:      # the head first; each node has processes, a raylet and CPUs of its own
        ray.address, ray.dashboard, ray.environment
        ray.kill(2)                            # as a machine does that loses its power
        ray.add(2)                             # as an autoscaler does: one more, with 2 CPUs
"""

import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import psutil

from tests.servers.waiting import eventually, free_port


class RayNodes:
    """The nodes, by number; what one of them started ends with it."""

    def __init__(self, cpus: Sequence[int]) -> None:
        self._cpus = list(cpus)
        self._started = 0
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="nodes-", dir="/tmp")  # paths of unix sockets are short
        folder = Path(self._folder.name)
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Looks sooner and more often than Ray does by itself: a dead node is noticed within seconds.
            "RAY_health_check_initial_delay_ms": "1000",
            "RAY_health_check_period_ms": "1000",
        }
        port, pages = free_port(), free_port()
        self.address, self.dashboard = f"127.0.0.1:{port}", f"http://127.0.0.1:{pages}"
        headers = {"Authorization": f"Bearer {token.read_text()}"}
        try:
            pages_on = ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(pages)]
            self._start(self._cpus[0], "--head", "--port", str(port), *pages_on, "--temp-dir", str(folder / "ray"))
            eventually(lambda: httpx.get(f"{self.dashboard}/api/jobs/", headers=headers).status_code == 200)
            for expected, cpus in enumerate(self._cpus[1:], 2):
                self.add(cpus)
                # One by one: two at once want the same ports.
                eventually(lambda expected=expected: self._alive(headers) == expected, 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in sorted(self._nodes, reverse=True):
            self.kill(number)
        self._folder.cleanup()

    def add(self, cpus: int) -> None:
        """Starts one more node; does not wait until the cluster knows it."""
        self._start(cpus, "--address", self.address)

    def kill(self, number: int) -> None:
        """Kills every process of a node at once."""
        node = self._nodes.pop(number)
        there = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in there:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        node.wait()
        psutil.wait_procs(there, 10)

    def said(self) -> str:
        """What the nodes printed."""
        return "\n".join(file.read_text()[-2000:] for file in sorted(Path(self._folder.name).glob("*.log")))

    def _start(self, cpus: int, *arguments: str) -> None:
        number, self._started = self._started, self._started + 1
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *("--node-ip-address", "127.0.0.1", "--dashboard-agent-listen-port", str(free_port())),
            *("--num-cpus", str(cpus), "--num-gpus", "0", "--object-store-memory", str(128 << 20)),
            *arguments,
        ]
        with (Path(self._folder.name) / f"node{number}.log").open("wb") as log:
            self._nodes[number] = subprocess.Popen(
                command, env=os.environ | self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip

    def _alive(self, headers: dict[str, str]) -> int:
        nodes: dict[str, Any] = httpx.get(f"{self.dashboard}/nodes?view=summary", headers=headers).json()
        found = nodes.get("data", {}).get("summary") or []
        return sum(node.get("raylet", {}).get("state") == "ALIVE" for node in found)
