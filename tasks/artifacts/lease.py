"""One driver at a time per key: a lease in the key's progress folder, kept alive by a heartbeat.

A lease of a process that died on this machine is stale at once; one from elsewhere when its heartbeat has not changed
for STALE_SECONDS of our own watching (so clocks may differ). Where a store cannot create exclusively two drivers may
still both believe to hold it: double work is then possible and harmless, since the first commit wins.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from tasks.artifacts.store import Store, progress_folder
from tasks.errors import LeaseLost, StoreError

HEARTBEAT_SECONDS = 5.0
STALE_SECONDS = 60.0
LEASE = "lease.json"
FORCED = "forced"  # in the progress of a run with --force: an interrupted one is gone on with, not begun again


def this_process() -> dict[str, Any]:
    """Names this process so that another one on the same machine can tell whether it still lives."""
    import psutil

    return {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}


def is_dead(owner: dict[str, Any]) -> bool:
    """True when the owner was a process of this machine that is gone (also when its pid has been given away)."""
    import psutil

    if owner.get("host") != socket.gethostname():
        return False
    try:
        process = psutil.Process(owner["pid"])
        return bool(abs(process.create_time() - owner["started"]) > 1.0 or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def is_dead_mark(mark: bytes) -> bool:
    """Whether nobody stands behind an owner's file: marks are written whole, so a torn or foreign one is nobody's."""
    try:
        found = json.loads(mark)
        return is_dead(found.get("owner", found))
    except (ValueError, KeyError, TypeError, AttributeError):
        return True


def end_if_abandoned(store: Store, stage: str, key: str, watched_seconds: float = STALE_SECONDS) -> bool:
    """Whether nobody works on a key, having watched a lease from elsewhere for its next beat; removes a stale one."""
    path = f"{progress_folder(stage, key)}/{LEASE}"
    found = store.files.read(path)
    if found is None:
        return True
    until = time.monotonic() + watched_seconds
    while not is_dead_mark(found):
        if store.files.read(path) != found:
            return False
        if time.monotonic() > until:
            break
        time.sleep(min(0.5, watched_seconds))
    if store.files.read(path) != found:
        return False
    store.files.remove(path)
    return True


class Lease:
    """A held lease. `require()` raises LeaseLost when another driver took it over."""

    def __init__(self, store: Store, stage: str, key: str) -> None:
        self._store = store
        self._path = f"{progress_folder(stage, key)}/{LEASE}"
        self._owner = this_process() | {"id": uuid.uuid4().hex}
        self._beats = 0
        self._lost = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {stage} {key[:12]}", daemon=True)

    def require(self) -> None:
        """Raises LeaseLost when this driver no longer holds the key."""
        if self._lost:
            raise LeaseLost(
                f"Another driver has taken over {self._path} (this one was silent for {STALE_SECONDS:.0f} s); "
                "run the same command again to wait for it or to go on from its progress."
            )

    def _text(self) -> bytes:
        return json.dumps({"owner": self._owner, "beat": self._beats}, sort_keys=True).encode()

    def _read(self) -> dict[str, Any] | None:
        text = self._store.files.read(self._path)
        if text is None:
            return None
        try:
            found = json.loads(text)
            return {"owner": dict(found["owner"]), "beat": found["beat"]}
        except (ValueError, TypeError, KeyError):
            return {"owner": {}, "beat": -1}  # torn or foreign: belongs to nobody who still beats

    def _mine(self, found: dict[str, Any] | None) -> bool:
        return found is not None and found["owner"].get("id") == self._owner["id"]

    def _acquire(self, waiting: Callable[[str], None], done: Callable[[], bool]) -> bool:
        seen: object = None
        since = time.monotonic()
        while not done():
            if self._store.files.create(self._path, self._text()):
                return True
            found = self._read()
            if self._mine(found):
                return True
            if found is None:
                continue
            if found != seen:
                seen, since = found, time.monotonic()
            if is_dead(found["owner"]) or time.monotonic() - since > STALE_SECONDS:
                self._store.files.write(self._path, self._text())
                time.sleep(0.2)  # two that take over at once: the last write holds, and both read it
                if self._mine(self._read()):
                    return True
            else:
                owner = found["owner"]
                waiting(f"waits for process {owner.get('pid')} on {owner.get('host')}, which works on the same key")
                time.sleep(0.5)
        return False

    def _keep(self) -> None:
        while not self._end.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(StoreError, OSError):  # a store that is away for a moment ends no training
                if not self._mine(self._read()):
                    self._lost = True
                    return
                self._beats += 1
                self._store.files.write(self._path, self._text())

    def _release(self) -> None:
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(timeout=HEARTBEAT_SECONDS)
        with contextlib.suppress(StoreError, OSError):
            if self._mine(self._read()):
                self._store.files.remove(self._path)


@contextlib.contextmanager
def lease(
    store: Store, stage: str, key: str, waiting: Callable[[str], None], done: Callable[[], bool]
) -> Iterator[Lease | None]:
    """Holds the lease of a key, or yields None when `done()` came true while another driver held it.

    `waiting` is told, in words, for whom this driver waits.
    """
    held = Lease(store, stage, key)
    if not held._acquire(waiting, done):
        yield None
        return
    held._thread.start()
    try:
        yield held
    finally:
        held._release()
