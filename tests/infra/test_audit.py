"""`make audit` finds a vulnerable pin, by the OSV protocol, and says nothing of the others."""

import http.server
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOUND = {
    "id": "PYSEC-2030-1", "modified": "2030-01-01T00:00:00Z", "published": "2030-01-01T00:00:00Z",
    "summary": "Planted by a test.", "details": "Planted by a test.", "aliases": ["CVE-2030-0001"],
    "affected": [{
        "package": {"name": "jinja2", "ecosystem": "PyPI"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.0"}]}],
    }],
}  # fmt: skip


class Osv(http.server.BaseHTTPRequestHandler):
    """Knows one vulnerability."""

    asked: set[str]
    knows: str

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = query["package"]["name"].lower()
        assert query["package"]["ecosystem"] == "PyPI" and query["version"]
        self.asked.add(name)
        answer = json.dumps({"vulns": [FOUND]} if name == self.knows else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(params=["jinja2", "nothing"])
def osv(request: pytest.FixtureRequest) -> Iterator[tuple[str, set[str], str]]:
    """(URL, the names it was asked for, what it knows of)."""
    asked: set[str] = set()
    handler = type("Handler", (Osv,), {"asked": asked, "knows": request.param})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query", asked, request.param
        server.shutdown()
        thread.join()


def test_a_vulnerable_pin_is_found(osv: tuple[str, set[str], str]) -> None:
    url, asked, known = osv
    done = subprocess.run(
        ["make", "audit", f"ARGS=--osv-url {url}"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    said = done.stdout + done.stderr
    assert {"torch", "ray", "prefect", "transformers", "jinja2"} <= asked, said
    if known == "jinja2":
        assert done.returncode != 0 and "PYSEC-2030-1" in said and "99.0" in said, said
    else:
        assert done.returncode == 0 and "No known vulnerabilities found" in said, said
