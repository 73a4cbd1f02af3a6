"""The calls to the Claude API, with one rule for retries: what is certain fails at once, what may pass is waited out.

No error that leaves this module carries the SDK's own: that one holds the request with the key in its headers.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from tasks.errors import InputError, SaeflowError, ServiceError
from tasks.settings import settings

if TYPE_CHECKING:
    import anthropic

T = TypeVar("T")
TRANSIENT = {408, 409, 429}  # and everything from 500 on
PAGE = 100


class Patience(NamedTuple):
    """How long to wait for what, in seconds; none of it changes a result."""

    first_poll: float = 0.5
    longest_poll: float = 60.0
    unreachable: float = 10.0  # until a service that never answered counts as down
    outage: float = 600.0  # until one that answered before does
    settle: float = 10.0  # until a batch that was created must show in the list


class Batch(NamedTuple):
    """A batch as the service shows it."""

    id: str
    created_at: str
    ended: bool
    requests: int
    has_results: bool  # False while it runs, and again 29 days after its creation


def connect() -> "anthropic.Anthropic":
    """A client with the key of the environment, to be closed. Raises InputError when there is none."""
    import anthropic

    found = settings()
    if found.anthropic_api_key is None:
        raise InputError("There is no Claude key: set ANTHROPIC_API_KEY, or use the keywords labeller and scorer.")
    key = found.anthropic_api_key.get_secret_value()
    return anthropic.Anthropic(api_key=key, base_url=found.anthropic_base_url, max_retries=0)


def check_access() -> None:
    """Asks for the newest batch, which costs nothing: a missing or refused key and a dead endpoint are told at once."""
    with connect() as client:
        Service(client, Patience()).newest()


class Service:
    """The Messages and Message Batches API, with retries that never send a batch blindly a second time."""

    def __init__(
        self, client: "anthropic.Anthropic", patience: Patience, log: Callable[[str], None] = lambda message: None
    ) -> None:
        self.client, self.patience, self.log = client, patience, log
        self.answered = False

    def ask(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """One message, at once: the service validates key, model and parameters here and in batches only when run."""
        made = self._patiently("answer a first request", lambda: self.client.messages.create(**params))
        if not hasattr(made, "stop_reason"):
            where = self.client.base_url
            raise InputError(f"{where} does not answer as the Claude API does; correct or remove ANTHROPIC_BASE_URL.")
        return made.to_dict(mode="json")

    def create(self, requests: Sequence[Any], sent_before: Callable[[], str | None]) -> str:
        """Creates a batch and returns its id; `sent_before` is asked after a failure, before a second try."""
        return self._patiently(
            f"take a batch of {len(requests)} requests",
            lambda: self.client.messages.batches.create(requests=requests).id,
            sent_before,
        )

    def retrieve(self, batch_id: str) -> Batch:
        """The batch's state now."""
        return self._patiently(
            f"show batch {batch_id}", lambda: _batch(self.client.messages.batches.retrieve(batch_id))
        )

    def newest(self) -> Batch | None:
        """The batch that was created last, by anyone with this key's workspace."""
        page = self._patiently("list its batches", lambda: self.client.messages.batches.list(limit=1))
        return _batch(page.data[0]) if page.data else None

    def newer_than(self, mark: Mapping[str, str] | None) -> list[Batch]:
        """All batches created after the marked one (id and created_at, by the service's own clock), oldest first."""

        def look() -> list[Batch]:
            found = []
            for entry in self.client.messages.batches.list(limit=PAGE):  # newest first, pages follow by themselves
                batch = _batch(entry)
                if mark is not None and (batch.id == mark["id"] or batch.created_at < mark["created_at"]):
                    break
                found.append(batch)
            return found[::-1]

        return self._patiently("list its batches", look)

    def results(self, batch_id: str) -> list[dict[str, Any]]:
        """All results of a batch that has ended, in any order: {"custom_id", "result": {...}}."""
        return self._patiently(f"give the results of batch {batch_id}", lambda: list(self._lines(batch_id)))

    def first_custom_id(self, batch_id: str) -> str:
        """A custom id of a batch that has ended, which tells whose it is."""
        return self._patiently(
            f"give the results of batch {batch_id}", lambda: next(self._lines(batch_id), {"custom_id": ""})["custom_id"]
        )

    def _lines(self, batch_id: str) -> Iterator[dict[str, Any]]:
        stream = self.client.messages.batches.results(batch_id)
        try:
            for line in stream:
                yield line.to_dict(mode="json")
        finally:
            stream.close()

    def _patiently(
        self, what: str, call: Callable[[], T], before_retry: Callable[[], T | None] = lambda: None
    ) -> T:
        began, pause = time.monotonic(), self.patience.first_poll
        while True:
            try:
                done = call()
                self.answered = True
                return done
            except Exception as error:
                problem, wait, reached = _explain(what, error)
            limit = self.patience.outage if self.answered or reached else self.patience.unreachable
            if wait is None or time.monotonic() - began + max(wait, pause) > limit:
                raise problem  # here, outside the except block, it has no context that holds the key
            self.log(f"{problem} Trying again.")
            time.sleep(max(wait, pause))
            pause = min(2 * pause, self.patience.longest_poll)
            if (found := before_retry()) is not None:
                return found


def _batch(found: Any) -> Batch:
    counts = found.request_counts
    total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
    ended = found.processing_status == "ended"
    return Batch(found.id, found.created_at.isoformat(), ended, total, found.results_url is not None)


def _explain(what: str, error: Exception) -> tuple[SaeflowError, float | None, bool]:
    """The error to tell, the seconds to wait before another try (None: it cannot help), whether anyone answered."""
    import anthropic
    import httpx2

    if isinstance(error, anthropic.APIStatusError):
        status, said = error.status_code, f"{error.status_code} {error.api_message or error.type or ''}".strip()
        if status in TRANSIENT or status >= 500:
            given = error.response.headers.get("retry-after", "")
            wait = float(given) if given.replace(".", "", 1).isdigit() else 0.0
            return ServiceError(f"The Claude API could not {what} ({said})."), wait, True
        if status == 401:
            told = f"The Claude API refuses the key in ANTHROPIC_API_KEY ({said}); set a valid one."
        elif status == 403 or (status == 404 and "msgbatch" in what):
            told = f"The key in ANTHROPIC_API_KEY may not {what} ({said}); use the one of the workspace it belongs to."
        else:
            return ServiceError(f"The Claude API will not {what} ({said}); correct the model or request."), None, True
        return InputError(told), None, True
    if isinstance(error, anthropic.APIConnectionError | httpx2.TransportError):
        cause = f"{error.__cause__ or error}".strip() or type(error).__name__
        told = f"The Claude API cannot be reached ({cause}); check the network and ANTHROPIC_BASE_URL."
        return ServiceError(told), 0.0, False
    if isinstance(error, json.JSONDecodeError):
        return ServiceError(f"The Claude API could not {what}: its answer ended early."), 0.0, True
    raise error
