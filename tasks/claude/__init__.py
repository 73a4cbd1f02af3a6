"""Message Batches of Claude: each is sent once, awaited, fetched and kept; only what failed is sent again.

    answers = run_batches([Request("12", params), ...], parse, out)
    answers.outcomes["12"].value, answers.summary

What a SIGKILL at any instant leaves under the stage's progress, and what the next run does with it:

    results/probe.jsonl             the first request, answered by the Messages API: key and parameters are right
    batches/<turn>-<part>.intent    written before create: the requests, and the newest batch at the service then
    batches/<turn>-<part>.id        written after create; from here on the batch is only asked for
    results/<turn>-<part>.jsonl     all of its results, as they were fetched

An intent without an id means: perhaps sent. Every batch that the service created after the intent's mark and that has
as many requests is then a candidate; its custom ids, visible once it has ended, tell whether it is ours. Only when
none is, the batch is sent. Custom ids are <24 digits of the stage's key>-<turn>-<name of the request>.
"""

import collections
import contextlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.claude.prices import PRICES_AS_OF, Usage, bill_dollars, usage_of
from tasks.claude.requests import Outcome, Request, check_requests, estimate, judge, split
from tasks.claude.service import Patience, Service, connect
from tasks.errors import InputError, ServiceError

if TYPE_CHECKING:
    from tasks.artifacts import Workspace

TURNS = 3  # a request is sent at most this many times
KEY_DIGITS = 24
PROBE = "results/probe.jsonl"

Line = dict[str, Any]  # of the results: {"custom_id": ..., "result": {"type": ..., "message" or "error": ...}}


class Answers(NamedTuple):
    """All outcomes by the requests' names, and the figures for the stage's summary."""

    outcomes: dict[str, Outcome]
    summary: dict[str, Any]


class Part(NamedTuple):
    """One batch: its name under progress and its requests by custom id."""

    name: str
    requests: dict[str, Request]


def run_batches(
    requests: Sequence[Request],
    parse: Callable[[str], Any],
    out: "Workspace",
    patience: Patience | None = None,
    service: Service | None = None,
) -> Answers:
    """Sends the requests as batches and returns an outcome for each; goes on where a killed run stopped.

    `parse` turns an answer's text into a value and raises ValueError when it is malformed. Raises InputError before
    anything is sent when a request cannot be valid, the key is refused, or the estimate exceeds the budget.
    """
    check_requests(requests)
    if not requests:
        return Answers({}, {"requests": 0, "dollars": 0.0})
    patience = patience or Patience()
    with contextlib.ExitStack() as opened:
        service = service or Service(opened.enter_context(connect()), patience, out.log)
        run = _Run(requests, parse, out, patience, service)
        for turn in range(TURNS):
            parts = run.affordable(run.parts(turn), turn)
            if turn == 0:
                run.probe()
                parts = run.parts(turn)  # the first request may have its answer now
            if not parts:
                break
            for part in parts:
                run.send(part)
            run.collect()
        return Answers(run.outcomes(), run.summary())


class _Run:
    """One `run_batches`: everything it knows is read from progress."""

    def __init__(
        self, requests: Sequence[Request], parse: Callable[[str], Any], out: "Workspace", patience: Patience,
        service: Service,
    ) -> None:  # fmt: skip
        self.requests = {request.name: request for request in requests}
        self.model: str = requests[0].params["model"]
        self.parse, self.out, self.patience, self.service = parse, out, patience, service
        self.progress = out.progress
        self.results: dict[str, list[Line]] = {}  # file -> lines
        for file in self.progress.names("results/"):
            self.results[file] = [json.loads(line) for line in (self.progress.read(file) or b"").splitlines()]

    def outcomes(self) -> dict[str, Outcome]:
        """What is known of each request: the last of its results."""
        last: dict[str, Line] = {}
        for file in sorted(self.results, key=_turn):
            last.update((_name(line["custom_id"]), line) for line in self.results[file])
        never = Outcome("errored", None, "it was never sent", False)
        return {name: judge(last[name]["result"], self.parse) if name in last else never for name in self.requests}

    def parts(self, turn: int) -> list[Part]:
        """The batches of a turn: those whose intent is written, then the open requests that are in none of them."""
        parts, taken, room = [], set(), self._cut_off(turn)
        for file in self.progress.names(f"batches/{turn}-"):
            if file.endswith(".intent"):
                names = [_name(custom_id) for custom_id in self.progress.read_json(file)["custom_ids"]]
                parts.append(self._part(_stem(file), turn, [self._with_room(name, room[name]) for name in names]))
                taken.update(names)
        open_ = [name for name, known in self.outcomes().items() if not known.final and name not in taken]
        for group in split(self._with_room(name, room[name]) for name in open_):
            parts.append(self._part(f"{turn}-{len(parts):05d}", turn, group))
        return parts

    def affordable(self, parts: list[Part], turn: int) -> list[Part]:
        """The parts that may go on. Raises InputError when the first sending may exceed the budget."""
        unsent = [part for part in parts if self.progress.read(f"batches/{part.name}.intent") is None]
        begun = [part for part in parts if part not in unsent]
        waiting = [part for part in begun if f"results/{part.name}.jsonl" not in self.results]
        dollars = self.dollars() + sum(estimate(part.requests.values()) for part in [*unsent, *waiting])
        if PROBE not in self.results:
            dollars += estimate([next(iter(self.requests.values()))], batch=False)
        cap = self.out.runtime.budget_dollars
        if not unsent or dollars <= cap:
            return parts
        told = (
            f"{len(self.requests):,} requests to {self.model} may cost up to ${math.ceil(dollars * 100) / 100:,.2f} "
            f"at the prices of {PRICES_AS_OF}, more than the budget of ${cap:,g}"
        )
        if turn == 0:
            raise InputError(f"{told}. Nothing more was sent; raise runtime.budget_dollars, or ask for fewer latents.")
        self.out.log(f"{told}: what failed is not sent again.")
        return begun

    def probe(self) -> None:
        """Asks the first request of the Messages API and keeps the answer, unless an earlier run has got this far."""
        if PROBE in self.results:
            return
        name, params = next(iter(self.requests.values()))
        line = {"custom_id": f"probe-0-{name}", "result": {"type": "succeeded", "message": self.service.ask(params)}}
        self._keep(PROBE, [line])

    def send(self, part: Part) -> None:
        """Makes sure that the batch is at the service, once."""
        intent_file, id_file = f"batches/{part.name}.intent", f"batches/{part.name}.id"
        if self.progress.read(id_file) is not None:
            return
        intent = self.progress.read_json(intent_file)

        def look() -> str | None:
            found = self.find_sent(intent)
            self.progress.write_json(intent_file, intent)  # fails when another driver has taken over meanwhile
            return found

        batch_id = None
        if intent is None:
            newest = self.service.newest()
            mark = None if newest is None else {"id": newest.id, "created_at": newest.created_at}
            intent = {"mark": mark, "custom_ids": list(part.requests)}
            self.progress.write_json(intent_file, intent)
        else:
            self.out.log("An earlier run may have sent a batch without learning its id; looking for it at the service.")
            batch_id = look()
        if batch_id is None:
            bodies = [{"custom_id": custom_id, "params": sent.params} for custom_id, sent in part.requests.items()]
            batch_id = self.service.create(bodies, look)
        self.progress.write(id_file, batch_id.encode())

    def find_sent(self, intent: Mapping[str, Any]) -> str | None:
        """The id of the batch with the intent's custom ids, if the service has one; waits for candidates to end."""
        wanted = set(intent["custom_ids"])
        ruled_out = set(self._sent_ids())
        for pause in (0.0, self.patience.settle):
            time.sleep(pause)
            newer = self.service.newer_than(intent["mark"])
            candidates = [batch.id for batch in newer if batch.requests == len(wanted) and batch.id not in ruled_out]
            for batch_id in self._until_ended(candidates):
                if self.service.first_custom_id(batch_id) in wanted:
                    return batch_id
                ruled_out.add(batch_id)
        return None

    def collect(self) -> None:
        """Waits for every batch that was sent and keeps its results."""
        waiting = {
            batch_id: name for batch_id, name in self._sent_ids().items() if f"results/{name}.jsonl" not in self.results
        }
        for batch_id in self._until_ended(list(waiting)):
            name = waiting[batch_id]
            found: dict[str, Any] = {}
            if self.service.retrieve(batch_id).has_results:
                found = {line["custom_id"]: line["result"] for line in self.service.results(batch_id)}
            else:
                self.out.log(f"The results of batch {batch_id} are no longer kept; its requests count as expired.")
            custom_ids = self.progress.read_json(f"batches/{name}.intent")["custom_ids"]
            lines = [{"custom_id": each, "result": found.get(each, {"type": "expired"})} for each in custom_ids]
            self._keep(f"results/{name}.jsonl", lines)

    def dollars(self) -> float:
        """The bill so far."""
        return sum(bill_dollars(self.model, usage_of(_messages(self.results[f])), f != PROBE) for f in self.results)

    def summary(self) -> dict[str, Any]:
        """Figures for people: outcomes, tokens, dollars and the date of the prices that they are reckoned with."""
        usage = Usage()
        for lines in self.results.values():
            usage = usage.plus(usage_of(_messages(lines)))
        counts: dict[str, Any] = dict(sorted(collections.Counter(o.status for o in self.outcomes().values()).items()))
        figures = {"model": self.model, "requests": len(self.requests), **counts, **usage._asdict()}
        return {**figures, "dollars": round(self.dollars(), 6), "prices_as_of": PRICES_AS_OF}

    def _keep(self, file: str, lines: list[Line]) -> None:
        self.progress.write(file, "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode())
        self.results[file] = lines
        self._report()

    def _part(self, name: str, turn: int, group: Iterable[Request]) -> Part:
        return Part(name, {f"{self.out.key[:KEY_DIGITS]}-{turn}-{request.name}": request for request in group})

    def _cut_off(self, turn: int) -> "collections.Counter[str]":
        """How often each request's answer was cut off at max_tokens before a turn."""
        lines = [line for file, part in self.results.items() if _turn(file) < turn for line in part]
        cut = [line for line in lines if line["result"].get("message", {}).get("stop_reason") == "max_tokens"]
        return collections.Counter(_name(line["custom_id"]) for line in cut)

    def _with_room(self, name: str, cut: int) -> Request:
        """The request as it is sent: after an answer that was cut off it gets twice the room."""
        params = self.requests[name].params
        return Request(name, {**params, "max_tokens": params["max_tokens"] * 2**cut})

    def _sent_ids(self) -> dict[str, str]:
        """Batch id -> name of its part."""
        files = [file for file in self.progress.names("batches/") if file.endswith(".id")]
        return {(self.progress.read(file) or b"").decode(): _stem(file) for file in files}

    def _until_ended(self, ids: list[str]) -> Iterable[str]:
        """Yields each batch when it has ended; polls with growing pauses."""
        begin, pause, hours = time.monotonic(), self.patience.first_poll, self.out.runtime.batch_hours
        while ids:
            for batch_id in list(ids):
                if self.service.retrieve(batch_id).ended:
                    ids.remove(batch_id)
                    yield batch_id
            if ids and time.monotonic() - begin > hours * 3600:
                raise ServiceError(
                    f"Batch {ids[0]} has not ended after {hours:g} hours. It stays at the service and nothing is lost: "
                    "run the same command again to go on waiting, with a larger runtime.batch_hours if you like."
                )
            if ids:
                self._report()
                time.sleep(pause)
                pause = min(1.5 * pause, self.patience.longest_poll)

    def _report(self) -> None:
        done = {_name(line["custom_id"]) for lines in self.results.values() for line in lines}
        self.out.report(len(done), len(self.requests), "requests")


def _messages(lines: Iterable[Line]) -> Iterable[dict[str, Any]]:
    return (line["result"]["message"] for line in lines if line["result"]["type"] == "succeeded")


def _stem(file: str) -> str:
    return file.rpartition("/")[2].rpartition(".")[0]


def _turn(file: str) -> int:
    return -1 if file == PROBE else int(_stem(file).partition("-")[0])


def _name(custom_id: str) -> str:
    return custom_id.split("-", 2)[2]
