"""A model and data set hub on loopback: the few requests that looking up and downloading make.

    with running_hub(folder) as endpoint: ...      # HF_ENDPOINT

tiny/open is the folder's content at COMMIT, tiny/gated wants its terms accepted, everything else does not exist.
"""

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

from tasks.artifacts.artifact import sha256_file

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers for models (/api/models/...) and data sets (/api/datasets/...) alike."""

    folder: Path

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        for prefix in ("/api/models/", "/api/datasets/", "/datasets/", "/"):
            path = path.removeprefix(prefix)
        headers: dict[str, str] = {}
        status, content = 200, b"{}"
        files = sorted(self.folder.iterdir())
        file = self.folder / path.rpartition("/")[2]
        if path.startswith("tiny/gated"):
            status, headers = 403, {"X-Error-Code": "GatedRepo"}
        elif not path.startswith("tiny/open"):
            status, headers = 404, {"X-Error-Code": "RepoNotFound"}
        elif "/revision/" in path and not path.endswith(("/main", COMMIT)):
            status, headers = 404, {"X-Error-Code": "RevisionNotFound"}
        elif "/resolve/" in path and not file.is_file():
            status, headers = 404, {"X-Error-Code": "EntryNotFound"}
        elif "/resolve/" in path:
            content = file.read_bytes()
            headers = {"ETag": f'"{sha256_file(file)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            if (wanted := self.headers.get("Range")) and body:
                first, _, last = wanted.removeprefix("bytes=").partition("-")
                end = min(int(last or len(content) - 1), len(content) - 1)
                headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
                status, content = 206, content[int(first) : end + 1]
        elif "/tree/" in path or "/paths-info/" in path:
            entries = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "0" * 40} for f in files]
            content = json.dumps(entries).encode()
        else:
            siblings = [{"rfilename": f.name} for f in files]
            content = json.dumps({"id": "tiny/open", "sha": COMMIT, "siblings": siblings}).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Silent."""


@contextlib.contextmanager
def running_hub(folder: Path) -> Iterator[str]:
    """Serves a folder as tiny/open and yields the endpoint."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"folder": folder}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
