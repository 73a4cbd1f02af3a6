"""Requests to Claude and what becomes of each: checks before anything is sent, groups, estimate, outcome."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from tasks.claude.prices import estimate_dollars, tokens_of
from tasks.errors import InputError

MOST_REQUESTS = 10_000  # one reference page of the service says 100,000 a batch, another this: stay under
MOST_BYTES = 256_000_000  # of a batch
NAME = re.compile(r"[a-zA-Z0-9_-]{1,32}")  # with the stage's key and the turn before it at most 64 characters
REMOVED = ("temperature", "top_p", "top_k")  # the newest models refuse them, and the whole request with them
HOPELESS = ("invalid_request_error", "authentication_error", "permission_error", "not_found_error", "billing_error")

Status = Literal["answered", "refused", "malformed", "errored", "expired", "canceled"]


class Request(NamedTuple):
    """One request: a name of its own (letters, digits, _ and -; at most 32) and the parameters of a message."""

    name: str
    params: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of its parameters as JSON."""
        return len(json.dumps(self.params))


class Outcome(NamedTuple):
    """What became of a request: `value` is what the parser made of the answer, `reason` says why there is none."""

    status: Status
    value: Any
    reason: str
    final: bool  # False: sending it again may help


def check_requests(requests: Sequence[Request]) -> None:
    """Raises InputError for what the service would refuse: one bad custom id refuses a whole batch."""
    seen: set[str] = set()
    for request in requests:
        name, params = request
        problem = None
        if not NAME.fullmatch(name):
            problem = "its name must have 1 to 32 letters, digits, _ or -"
        elif name in seen:
            problem = "its name is used twice"
        elif missing := [field for field in ("model", "max_tokens", "messages") if not params.get(field)]:
            problem = f"it has no {missing[0]}"
        elif extra := [field for field in REMOVED if field in params]:
            problem = f"{extra[0]} is not accepted any more"
        elif request.size > MOST_BYTES // 2:
            problem = f"its {request.size:,} bytes do not fit into a batch"
        if problem:
            raise InputError(f"The Claude request {name!r} cannot be sent: {problem}. Nothing was sent.")
        seen.add(name)


def split(requests: Iterable[Request]) -> list[list[Request]]:
    """Groups in order, each small enough for one batch."""
    groups: list[list[Request]] = []
    room = 0
    for request in requests:
        size = request.size + 128  # custom id and braces
        if not groups or len(groups[-1]) == MOST_REQUESTS or size > room:
            groups.append([])
            room = MOST_BYTES - 1024
        groups[-1].append(request)
        room -= size
    return groups


def estimate(requests: Iterable[Request], batch: bool = True) -> float:
    """Upper bound in dollars: every answer as long as max_tokens allows, nothing read from the cache."""
    return sum(
        estimate_dollars(request.params["model"], tokens_of(request.size), request.params["max_tokens"], batch)
        for request in requests
    )


def judge(result: Mapping[str, Any], parse: Callable[[str], Any]) -> Outcome:
    """What one result of a batch means; `parse` raises ValueError for a malformed answer."""
    kind = result["type"]
    if kind == "errored":
        error = result["error"].get("error") or {}
        reason = f"{error.get('type')}: {error.get('message')}"
        return Outcome("errored", None, reason, error.get("type") in HOPELESS)
    if kind != "succeeded":
        return Outcome(kind, None, f"the service reports it as {kind}", kind == "canceled")  # canceled: by a person
    message = result["message"]
    if message["stop_reason"] == "refusal":
        return Outcome("refused", None, "Claude declined to answer", True)
    if message["stop_reason"] == "max_tokens":
        return Outcome("malformed", None, "the answer was cut off at max_tokens", False)
    try:
        text = "".join(block["text"] for block in message["content"] if block["type"] == "text")
        return Outcome("answered", parse(text), "", True)
    except ValueError as error:
        return Outcome("malformed", None, f"{error}", False)
