"""A pool of long-lived Ray actors: each holds something costly (a model) once and works on one piece after another.

Made by `Cluster.actors`. Actors start when there is work for them and end when there was none for a while, so that the
stages after have the memory and the GPUs. One that dies is replaced and its piece of work done again, at most `RETRIES`
times; an exception of the work itself is raised here as it was there.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from tasks.cluster.logs import Kept, Line, tell
from tasks.errors import ClusterError, SaeflowError

Result = TypeVar("Result")

RETRIES = 2  # after the first attempt
PLACE_SECONDS = 600.0  # a cluster that grows on demand needs minutes for a machine; loading a model is not counted
IDLE_SECONDS = 20.0  # a model stays loaded for this long after the last work
STREAM_AHEAD = 2  # items an actor may be ahead of its reader: bounds memory on both sides

_log = logging.getLogger(__name__)


class _NoPlace(Exception):
    """The cluster has no room for an actor."""


class _Host:
    """What runs in an actor: holds the object that the pool's factory makes, and calls its methods."""

    def ready(self) -> None:
        """Answers once the actor has its place."""

    def start(self, factory: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.log = Kept().install()
        self.held = factory(*args)

    def open(self, method: str, args: tuple[Any, ...]) -> None:
        """Begins a stream; one that was not read to its end is forgotten."""
        self.items = getattr(self.held, method)(*args)

    def next(self) -> tuple[list[Line], tuple[Any, ...]]:
        """What was logged meanwhile, and the stream's next item, alone in a tuple, or () at its end."""
        for item in self.items:
            return self.log.take(), (item,)
        return self.log.take(), ()


class Pool:
    """Up to `count` actors; any number of threads may ask at once and wait for an idle one."""

    def __init__(
        self, name: str, factory: Callable[..., Any], args: tuple[Any, ...], count: int, resources: dict[str, Any]
    ) -> None:
        self.name = name
        self._short = name.split()[0]  # what it is; the rest tells pools apart
        self._factory, self._args, self._resources, self._count = factory, args, resources, count
        self._idle: queue.LifoQueue[Any] = queue.LifoQueue()  # actors; None is a place whose actor must be started
        for _ in range(count):
            self._idle.put(None)
        self._living: set[Any] = set()
        self._lock = threading.Lock()
        self.closed = False
        self._working = 0  # pieces of work that have an actor or wait for one
        self._rest: threading.Timer | None = None

    def stream(self, method: str, *args: Any, receive: Callable[[Iterator[Any]], Result]) -> Result:
        """`receive` of what the generator `method(*args)` yields, while it runs: for progress, and data in pieces.

        When the actor dies, `receive` is called anew with a fresh iterator, so it must start over. The actor stays at
        most `STREAM_AHEAD` items ahead of its reader.
        """
        return self._with_actor(lambda actor: receive(_items(f"{self._short} actor", actor, method, args)))

    def close(self) -> None:
        """Ends the actors, working or not."""
        with self._lock:
            self.closed = True
            if self._rest:
                self._rest.cancel()
            living, self._living = self._living, set()
        for actor in living:
            _kill(actor)

    def _with_actor(self, work: Callable[[Any], Result]) -> Result:
        with self._lock:
            self._working += 1
            if self._rest:
                self._rest.cancel()
        try:
            return self._try(work)
        finally:
            with self._lock:
                self._working -= 1
                if not self._working and not self.closed:
                    self._rest = threading.Timer(IDLE_SECONDS, self._end_idle)
                    self._rest.daemon = True
                    self._rest.start()

    def _end_idle(self) -> None:
        """Ends the actors when there is still no work; their places stay."""
        with self._lock:
            if self._working or self.closed:
                return
            for _ in range(self._idle.qsize()):
                self._idle.get_nowait()
            for _ in range(self._count):
                self._idle.put(None)
            living, self._living = self._living, set()
        for actor in living:
            _kill(actor)

    def _try(self, work: Callable[[Any], Result]) -> Result:
        from ray.exceptions import RayActorError

        deaths = 0
        while True:
            actor = self._idle.get()
            place_is_left = True
            try:
                actor = actor or self._start()
                result = work(actor)
            except _NoPlace as error:
                place_is_left = not self._give_up_place()
                if place_is_left:
                    raise ClusterError(str(error)) from error
            except RayActorError as error:
                self._discard(actor)
                actor, deaths = None, deaths + 1
                _log.warning("A %s actor died (%s).", self._short, _cause(error))
                if deaths > RETRIES and not self.closed:
                    raise ClusterError(
                        f"A {self._short} actor died {deaths} times over the same piece of work ({_cause(error)}). "
                        "If it ran out of memory, use fewer or smaller workers (runtime.capture_workers)."
                    ) from error
            else:
                return result
            finally:
                if place_is_left:
                    self._idle.put(actor)

    def _start(self) -> Any:
        """A new actor with its object made."""
        import ray
        from ray.exceptions import GetTimeoutError

        with self._lock:
            if self.closed:
                raise ClusterError(f"The {self.name} actors were closed; the work that wanted one was not done.")
            actor = ray.remote(max_restarts=0, **self._resources)(_Host).remote()
            self._living.add(actor)
        try:
            _get(actor.ready.remote(), PLACE_SECONDS)
            _get(actor.start.remote(self._factory, self._args))
        except GetTimeoutError as error:
            self._discard(actor)
            raise _NoPlace(
                f"The Ray cluster found no place for a {self.name} actor within {PLACE_SECONDS:.0f} s: it needs "
                f"{self._resources}, free are {ray.available_resources()}. Ask for fewer workers or add machines."
            ) from error
        except BaseException:
            self._discard(actor)
            raise
        return actor

    def _give_up_place(self) -> bool:
        """After a machine was lost the others go on: True, and one place less. False when there is no other actor."""
        with self._lock:
            others = bool(self._living)
            self._count -= others
            return others

    def _discard(self, actor: Any) -> None:
        if actor is not None:
            with self._lock:
                self._living.discard(actor)
            _kill(actor)


def _items(who: str, actor: Any, method: str, args: tuple[Any, ...]) -> Iterator[Any]:
    """Plain calls, one per item, made ahead: Ray's own streaming cannot be used through a ray:// address."""
    from ray.exceptions import RayTaskError

    opened = actor.open.remote(method, args)
    ahead = deque(actor.next.remote() for _ in range(STREAM_AHEAD))
    _get(opened)
    while True:
        try:
            lines, item = _get(ahead.popleft())
        except (SaeflowError, ValueError, RayTaskError):  # of the work; what it logged comes at the end
            tell(who, _get(ahead.popleft())[0])
            raise
        tell(who, lines)
        if not item:
            return
        ahead.append(actor.next.remote())
        yield item[0]


def _get(reference: Any, timeout: float | None = None) -> Any:
    """The value of an object reference; what the work raised there is raised here, caused by its traceback."""
    import ray
    from ray.exceptions import RayTaskError

    try:
        return ray.get(reference, timeout=timeout)
    except RayTaskError as error:
        if isinstance(error.cause, SaeflowError | ValueError):
            raise error.cause from error
        raise


def _kill(actor: Any) -> None:
    import ray

    if ray.is_initialized():
        ray.kill(actor)


def _cause(error: Exception) -> str:
    """The line of Ray's long account that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "exit" in line.lower() or "memory" in line.lower()), lines[0])
