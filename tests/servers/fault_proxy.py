"""A proxy between an S3 client and its server that does to single requests what networks do.

    with FaultProxy(swift.endpoint) as proxy:
        rule = proxy.add("drop", method="PUT", path=r"manifest\\.json", times=1)
        ...                                  # use proxy.endpoint in place of swift.endpoint
        assert rule.hits == 1

What a rule does to a request that it matches:
    status     answers with `status`; the server never sees the request
    reset      resets the connection before the server sees the request
    tear       passes on `after` bytes of the request's body, then resets both sides
    drop       lets the server carry the request out, then resets the client: the answer is lost
    truncate   passes on `after` bytes of the answer's body, then closes
    flip       changes one bit of the last byte of the answer's body
    hold       lets the server carry the request out (or not: `after=0`), sets `rule.reached`, never answers
Each request uses a connection of its own, so rules count requests and nothing else. Bodies are held in memory.
"""

import asyncio
import contextlib
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

Fault = Literal["status", "reset", "tear", "drop", "truncate", "flip", "hold"]
ERROR_BODY = b"<?xml version='1.0'?><Error><Code>%s</Code><Message>injected</Message></Error>"
CODES = {500: b"InternalError", 503: b"SlowDown"}


@dataclass
class Rule:
    """One fault: which requests it meets (`skip` the first ones, then `times`), and what it does to them."""

    fault: Fault
    method: str = ".*"
    path: str = ""
    skip: int = 0
    times: int = 1
    after: int = 1
    status: int = 503
    hits: int = 0
    reached: threading.Event = field(default_factory=threading.Event)

    def matches(self, method: str, path: str) -> bool:
        """Says whether the rule meets this request; counts it."""
        if self.times <= 0 or not re.fullmatch(self.method, method) or not re.search(self.path, path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.times -= 1
        self.hits += 1
        return True


class FaultProxy:
    """Runs in a thread of its own between `with` and its end; `requests` lists the (method, path) it has seen."""

    def __init__(self, upstream: str) -> None:
        address = urlsplit(upstream)
        self.upstream = (address.hostname, address.port)
        self.rules: list[Rule] = []
        self.requests: list[tuple[str, str]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20))
        self.endpoint = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def add(self, fault: Fault, **settings: object) -> Rule:
        """Adds a rule; the first rule that matches a request is the one applied."""
        self.rules.append(Rule(fault, **settings))
        return self.rules[-1]

    def _run(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)

    async def _close(self) -> None:
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._answer(reader, writer)
            writer.close()
        except (OSError, asyncio.IncompleteReadError):
            _reset(writer)  # a client that was killed in the middle, or a server that went away
        except asyncio.CancelledError:
            _reset(writer)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, body = await _read_request(reader, writer)
        method, target, _ = head.split(b"\r\n")[0].decode().split(" ")
        path = unquote(target)
        self.requests.append((method, path))
        rule = next((rule for rule in self.rules if rule.matches(method, path)), None)
        fault = rule.fault if rule else None
        if fault == "status":
            writer.write(_error_answer(rule.status))
        elif fault == "reset":
            _reset(writer)
        elif fault == "tear":
            await self._upstream(head, body[: rule.after], torn=True)
            _reset(writer)
        elif fault == "hold":
            if rule.after:
                await self._upstream(head, body)
            rule.reached.set()
            await asyncio.sleep(3600)
        else:
            answer = await self._upstream(head, body)
            if fault == "drop":
                _reset(writer)
                return
            start, blank, content = answer.partition(b"\r\n\r\n")
            if fault == "truncate":
                content = content[: rule.after]
            elif fault == "flip" and content:
                content = content[:-1] + bytes([content[-1] ^ 1])
            writer.write(start + blank + content)
        if not writer.is_closing():
            await writer.drain()

    async def _upstream(self, head: bytes, body: bytes, torn: bool = False) -> bytes:
        """Sends the request on and returns the whole raw answer; a torn one is cut off instead of answered."""
        reader, writer = await asyncio.open_connection(*self.upstream)
        try:
            writer.write(head + body)
            await writer.drain()
            if torn:
                await asyncio.sleep(0.05)  # lets the server begin before it loses the connection
                return b""
            return await reader.read()
        finally:
            _reset(writer)


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    fields = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        fields[name.strip().lower()] = value.strip()
    if fields.get(b"expect", b"").lower() == b"100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = b""
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        size = 1
        while size:
            line = await reader.readuntil(b"\r\n")
            size = int(line.split(b";")[0], 16)
            body += line + await reader.readexactly(size + 2)
    elif b"content-length" in fields:
        body = await reader.readexactly(int(fields[b"content-length"]))
    # one request per connection, and the server is not asked to say "continue" a second time
    kept = [line for line in head.split(b"\r\n")[:-2] if not re.match(rb"(?i)(connection|expect) *:", line)]
    return b"\r\n".join([*kept, b"Connection: close", b"", b""]), body


def _error_answer(status: int) -> bytes:
    body = ERROR_BODY % CODES.get(status, b"InternalError")
    return (
        b"HTTP/1.1 %d Injected\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
        % (status, len(body), body)
    )


def _reset(writer: asyncio.StreamWriter) -> None:
    """Closes with RST, as a machine that died does, in place of an orderly FIN."""
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
