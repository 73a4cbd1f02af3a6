"""A local server that speaks the Message Batches protocol (and Messages, for a probe), for the unmodified SDK.

In a test:   with MessageBatches({"ends_after": 2}) as service: ... service.url, service.created()
As process:  python -m tests.servers.message_batches --port 8123 --log creates.jsonl --script '{"ends_after": 2}'
The process survives the run under test; `GET /log` (no key needed) and the log file name every batch it created.

The script is JSON; every key is optional:
  key          the only API key that is accepted (default "test-key")
  ends_after   a batch ends when it has been asked for this many times (default 0: at once)
  page_limit   batches per page of the list at most (default 1000)
  outcomes     rules for single requests, first match wins: {"custom_id": regex, "outcome": name, "times": n}
               names: succeeded, errored, invalid, expired, canceled, not_json, wrong_fields, truncated, refusal
  faults       rules for HTTP calls: {"method": "POST", "path": regex, "times": n} and one of
               "status": 429 (with "retry_after": seconds)   refused, not carried out
               "drop": true                                  carried out, then the connection closes without an answer
               "hold": seconds                               carried out, answered late
               "cut": bytes                                  the answer ends after so many bytes
"""

import argparse
import collections
import datetime
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

CUSTOM_ID = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")
MOST_REQUESTS, MOST_BYTES = 100_000, 256_000_000
REMOVED_PARAMETERS = {"temperature", "top_p", "top_k"}
MARKED = re.compile(r"<<(.+?)>>", re.DOTALL)


class Refused(Exception):
    """An HTTP error answer: status, error type, message."""


def answer_from_marks(params: dict[str, Any]) -> str:
    """The scripted answerer: labels with the most common marked token, detects the marks that a label names."""
    text = params["messages"][-1]["content"]
    if not isinstance(text, str):
        text = "".join(block["text"] for block in text)
    fields = params["output_config"]["format"]["schema"]["properties"]
    if "active" in fields:
        label = re.search(r"^Label: (.*)$", text, re.MULTILINE)
        items = re.findall(r"^(\d+)\. (.*?)(?=^\d+\. |\Z)", text, re.MULTILINE | re.DOTALL)
        marks = {int(number): MARKED.search(item) for number, item in items}
        named = re.findall(r"[^\s“”,;]+", label.group(1).removeprefix("the token ")) if label else []
        active = [i for i, mark in marks.items() if mark and mark.group(1).strip() in named]
        return json.dumps({"active": active})
    marked = collections.Counter(token.strip() for token in MARKED.findall(text))
    word = max(sorted(marked), key=lambda token: marked[token]) if marked else "nothing"
    answer: dict[str, Any] = dict.fromkeys(fields, "")
    return json.dumps({**answer, "key_words": [word], "common_semantic": f"the token {word}", "certainty": 1})


def message(params: dict[str, Any], text: str, stop_reason: str = "end_turn") -> dict[str, Any]:
    """A Message as the service returns it."""
    words = len(json.dumps(params)) // 4
    usage = {"input_tokens": words, "output_tokens": len(text) // 4 + 1}
    usage |= {"cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
    content = [{"type": "text", "text": text}] if text else []
    return {"id": "msg_test", "type": "message", "role": "assistant", "model": params["model"], "content": content,
            "stop_reason": stop_reason, "stop_sequence": None, "usage": usage}  # fmt: skip


def refusal_of(params: dict[str, Any]) -> str | None:
    """What the service finds wrong with a request's parameters, or None."""
    for name in ("model", "max_tokens", "messages"):
        if name not in params:
            return f"{name}: Field required"
    if not str(params["model"]).startswith("claude-"):
        return f"model: {params['model']}"
    extra = REMOVED_PARAMETERS & params.keys()
    return f"{sorted(extra)[0]}: Extra inputs are not permitted" if extra else None


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")


class MessageBatches:
    """The service: a thread in this process (context manager), or the whole of a process of its own."""

    def __init__(self, script: dict[str, Any] | None = None, *, port: int = 0, log: str | None = None,
                 answer: Callable[[dict[str, Any]], str] = answer_from_marks) -> None:  # fmt: skip
        self.script: dict[str, Any] = {"key": "test-key", "ends_after": 0, "page_limit": 1000, **(script or {})}
        self.answer, self.log = answer, log
        self.batches: dict[str, dict[str, Any]] = {}  # in the order of their creation
        self.calls: list[str] = []  # "POST /v1/messages/batches", ... in the order of their arrival
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"service": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "MessageBatches":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def created(self) -> list[list[str]]:
        """The custom ids of every batch that was created, in order."""
        with self.lock:
            return [[request["custom_id"] for request in batch["requests"]] for batch in self.batches.values()]

    # The protocol.
    def create(self, body: dict[str, Any], size: int, headers: dict[str, str]) -> dict[str, Any]:
        requests = body.get("requests")
        if not isinstance(requests, list) or not requests:
            raise Refused(400, "invalid_request_error", "requests: List should have at least 1 item")
        if len(requests) > MOST_REQUESTS or size > MOST_BYTES:
            raise Refused(413, "request_too_large", "Request exceeds the maximum size")
        seen: set[str] = set()
        for i, request in enumerate(requests):
            custom_id = request.get("custom_id")
            if not isinstance(custom_id, str) or not CUSTOM_ID.match(custom_id):
                wanted = "String should match pattern '^[a-zA-Z0-9_-]{1,64}$'"
                raise Refused(400, "invalid_request_error", f"requests.{i}.custom_id: {wanted}")
            if custom_id in seen:
                raise Refused(400, "invalid_request_error", f"requests.{i}.custom_id: {custom_id} is not unique")
            seen.add(custom_id)
        with self.lock:
            number = len(self.batches)
            batch = {"id": f"msgbatch_{number:06d}", "requests": requests, "created_at": now(), "ended_at": None,
                     "asked": 0, "canceling": None, "results": None}  # fmt: skip
            self.batches[batch["id"]] = batch
            self.write_log({"id": batch["id"], "custom_ids": [r["custom_id"] for r in requests]})
            return self.view(batch)

    def view(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch as an answer shows it; counts stay 0 until the whole batch has ended."""
        counts = dict.fromkeys(("succeeded", "errored", "canceled", "expired", "processing"), 0)
        if batch["ended_at"] is None:
            counts["processing"] = len(batch["requests"])
            status, url = ("canceling" if batch["canceling"] else "in_progress"), None
        else:
            counts.update(collections.Counter(line["result"]["type"] for line in batch["results"]))
            status, url = "ended", f"{self.url}/v1/messages/batches/{batch['id']}/results"
        return {"id": batch["id"], "type": "message_batch", "processing_status": status, "request_counts": counts,
                "created_at": batch["created_at"], "expires_at": batch["created_at"], "ended_at": batch["ended_at"],
                "cancel_initiated_at": batch["canceling"], "archived_at": None, "results_url": url}  # fmt: skip

    def find(self, batch_id: str) -> dict[str, Any]:
        if batch_id not in self.batches:
            raise Refused(404, "not_found_error", f"Message Batch {batch_id} not found")
        return self.batches[batch_id]

    def retrieve(self, batch_id: str) -> dict[str, Any]:
        with self.lock:
            batch = self.find(batch_id)
            batch["asked"] += 1
            if batch["ended_at"] is None and (batch["asked"] > self.script["ends_after"] or batch["canceling"]):
                batch["results"] = [self.result(request, batch) for request in batch["requests"]]
                random.Random(batch["id"]).shuffle(batch["results"])  # results come in any order
                batch["ended_at"] = now()
            return self.view(batch)

    def cancel(self, batch_id: str) -> dict[str, Any]:
        with self.lock:
            batch = self.find(batch_id)
            batch["canceling"] = batch["canceling"] or now()
            return self.view(batch)

    def list(self, limit: int = 20, after_id: str | None = None, before_id: str | None = None) -> dict[str, Any]:
        """Newest first; `after_id` gives older ones, `before_id` newer ones."""
        with self.lock:
            ids = list(reversed(self.batches))
            cursor = after_id or before_id
            if cursor and cursor not in ids:
                raise Refused(404, "not_found_error", f"cursor {cursor} not found")
            limit = min(limit, self.script["page_limit"])
            if before_id:
                newer = ids[: ids.index(before_id)]
                page, more = newer[-limit:], len(newer) > limit
            else:
                rest = ids[ids.index(after_id) + 1 :] if after_id else ids
                page, more = rest[:limit], len(rest) > limit
            data = [self.view(self.batches[batch_id]) for batch_id in page]
            return {"data": data, "has_more": more, "first_id": page[0] if page else None,
                    "last_id": page[-1] if page else None}  # fmt: skip

    def message(self, body: dict[str, Any], size: int, headers: dict[str, str]) -> dict[str, Any]:
        if problem := refusal_of(body):
            if problem.startswith("model: "):
                raise Refused(404, "not_found_error", problem)
            raise Refused(400, "invalid_request_error", problem)
        return self.result({"custom_id": "probe", "params": body}, {"canceling": None})["result"]["message"]

    def result(self, request: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
        """One line of the results: parameters are validated only now, as at the service."""
        custom_id, params = request["custom_id"], request["params"]
        outcome = "canceled" if batch["canceling"] else self.outcome(custom_id)
        if (problem := refusal_of(params)) and outcome != "canceled":
            outcome = "invalid"
        if outcome in ("canceled", "expired"):
            return {"custom_id": custom_id, "result": {"type": outcome}}
        if outcome in ("errored", "invalid"):
            kind = "api_error" if outcome == "errored" else "invalid_request_error"
            error = {"type": "error", "error": {"type": kind, "message": problem or "Internal server error"}}
            return {"custom_id": custom_id, "result": {"type": "errored", "error": error}}
        text = self.answer(params)
        answers = {"succeeded": (text, "end_turn"), "not_json": ("The common theme is", "end_turn"),
                   "wrong_fields": ('{"theme": 3}', "end_turn"), "truncated": (text[: len(text) // 2], "max_tokens"),
                   "refusal": ("", "refusal")}  # fmt: skip
        return {"custom_id": custom_id, "result": {"type": "succeeded", "message": message(params, *answers[outcome])}}

    def outcome(self, custom_id: str) -> str:
        for rule in self.script.get("outcomes", ()):
            if rule.get("times", 1) > 0 and re.search(rule["custom_id"], custom_id):
                rule["times"] = rule.get("times", 1) - 1
                return str(rule["outcome"])
        return "succeeded"

    def fault(self, method: str, path: str) -> dict[str, Any]:
        with self.lock:
            self.calls.append(f"{method} {path}")
            for rule in self.script.get("faults", ()):
                wanted = rule.get("method", method) == method and re.search(rule.get("path", ""), path)
                if wanted and rule.get("times", 1) > 0:
                    rule["times"] = rule.get("times", 1) - 1
                    return dict(rule)
        return {}

    def write_log(self, line: dict[str, Any]) -> None:
        if self.log:
            with Path(self.log).open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())


class _Handler(BaseHTTPRequestHandler):
    service: MessageBatches
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

    def log_message(self, *_: object) -> None:
        """Says nothing: the service keeps its own log."""

    def do_GET(self) -> None:
        self.handle_call("GET")

    def do_POST(self) -> None:
        self.handle_call("POST")

    def handle_call(self, method: str) -> None:
        url = urlparse(self.path)
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if url.path == "/log":
            self.reply(200, json.dumps({"created": self.service.created(), "calls": self.service.calls}).encode())
            return
        fault = self.service.fault(method, url.path)
        try:
            if "status" in fault:
                kind = {429: "rate_limit_error", 529: "overloaded_error"}.get(fault["status"], "api_error")
                raise Refused(fault["status"], kind, "scripted")
            # SDK 2.11 sends the key as a bearer token, older ones as x-api-key.
            bearer = self.headers.get("authorization", "").removeprefix("Bearer ")
            if (self.headers.get("x-api-key") or bearer) != self.service.script["key"]:
                raise Refused(401, "authentication_error", "invalid x-api-key")
            status, payload = 200, self.answer(method, url.path, url.query, body)
        except Refused as refused:
            status, kind, text = refused.args
            payload = json.dumps({"type": "error", "error": {"type": kind, "message": text}}).encode()
        if fault.get("drop"):
            self.close_connection = True
            return
        time.sleep(fault.get("hold", 0))
        self.reply(status, payload, fault)

    def answer(self, method: str, path: str, query: str, body: bytes) -> bytes:
        service, parts = self.service, path.strip("/").split("/")
        headers = {name.lower(): value for name, value in self.headers.items()}
        if (method, parts) == ("POST", ["v1", "messages"]):
            return json.dumps(service.message(json.loads(body), len(body), headers)).encode()
        if parts[:3] != ["v1", "messages", "batches"]:
            raise Refused(404, "not_found_error", path)
        if (method, len(parts)) == ("POST", 3):
            return json.dumps(service.create(json.loads(body), len(body), headers)).encode()
        if (method, len(parts)) == ("GET", 3):
            asked = {name: values[0] for name, values in parse_qs(query).items()}
            limit = int(asked.pop("limit", 20))
            return json.dumps(service.list(limit, asked.get("after_id"), asked.get("before_id"))).encode()
        if (method, len(parts)) == ("GET", 4):
            return json.dumps(service.retrieve(parts[3])).encode()
        if (method, parts[4:]) == ("POST", ["cancel"]):
            return json.dumps(service.cancel(parts[3])).encode()
        if (method, parts[4:]) == ("GET", ["results"]) and service.find(parts[3])["ended_at"]:
            return b"".join(json.dumps(line).encode() + b"\n" for line in service.find(parts[3])["results"])
        raise Refused(404, "not_found_error", path)

    def reply(self, status: int, payload: bytes, fault: dict[str, Any] | None = None) -> None:
        fault = fault or {}
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(payload)))
            if "retry_after" in fault:
                self.send_header("retry-after", str(fault["retry_after"]))
            self.end_headers()
            self.wfile.write(payload[: fault.get("cut")])
            self.close_connection = self.close_connection or "cut" in fault
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the run under test was killed while it waited


def main() -> None:
    """Serves until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any free port; the address is printed")
    parser.add_argument("--log", help="a file that gets one JSON line for each created batch")
    parser.add_argument("--script", type=json.loads, default={}, help="JSON, see above")
    given = parser.parse_args()
    service = MessageBatches(given.script, port=given.port, log=given.log)
    print(service.url, flush=True)
    service.server.serve_forever()


if __name__ == "__main__":
    main()
