"""Batches of rows that are on the device before the step asks for them, in the order of their steps.

    with Feed(rows, range(trainer.step_number, steps), batch_size=1024, device=device) as feed:
        for x_BD in feed:                       # float32 on the device; the next one takes its place
            trainer.step(x_BD)

A thread of its own copies up to `ahead` batches into memory that is used over and over: on a GPU pinned memory, and
from there to the device on a stream of its own. It reads nothing beyond the last step, and ends with the `with`.

Shapes: B rows of this rank, D width.
"""

import queue
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from sae_core.rows import Rows

AHEAD = 3  # on a GPU: one that is copied to it, one that is read, one for a reader that is late for once


class Feed:
    """This rank's batches of a range of steps, to be gone through once."""

    def __init__(
        self,
        rows: Rows,
        steps: range,
        *,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        device: "torch.device | str" = "cpu",
        ahead: int | None = None,
    ) -> None:
        """`ahead`: batches that are read in advance, 0: none and no thread; None: what is best for the device."""
        device = torch.device(device)
        if ahead is None:
            ahead = AHEAD if device.type == "cuda" else 0
        self._rows, self._steps = rows, steps
        self._share = (batch_size, rank, world_size)
        self._x_BD = torch.empty(batch_size // world_size, rows.d, device=device)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._free: queue.SimpleQueue[_Slot | None] = queue.SimpleQueue()  # None: end
        self._full: queue.SimpleQueue[_Slot | BaseException] = queue.SimpleQueue()
        for _ in range(max(1, ahead)):
            self._free.put(_Slot(self._x_BD, self._stream))
        if self._stream:  # which may not write to memory that work in the queue still reads
            self._stream.wait_stream(torch.cuda.current_stream(device))
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        if ahead and len(steps):
            self._thread = threading.Thread(target=self._read_all, name="feed", daemon=True)
            self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread, as soon as it has the batch it is reading."""
        self._closed.set()
        self._free.put(None)
        if self._thread:
            self._thread.join()
        if self._stream:
            self._stream.synchronize()

    def __iter__(self) -> Iterator[Tensor]:
        """float32 (B, D) for each step. What goes wrong in the thread is raised at the step it was reading for."""
        for step in self._steps:
            if self._thread is None:
                self._read(step)
            slot = self._full.get()
            if isinstance(slot, BaseException):
                raise slot
            slot.give(self._x_BD)
            self._free.put(slot)
            yield self._x_BD

    def _read_all(self) -> None:
        try:
            for step in self._steps:
                self._read(step)
                if self._closed.is_set():
                    return
        except BaseException as error:
            self._full.put(error)

    def _read(self, step: int) -> None:
        """The batch of one step into the next free slot."""
        slot = self._free.get()
        if slot is not None:
            slot.take(self._rows, step, self._share)
            self._full.put(slot)


class _Slot:
    """Memory for one batch on its way: on the host and, where that is elsewhere, on the device."""

    def __init__(self, like_BD: Tensor, stream: "torch.cuda.Stream | None") -> None:
        self._host_BD = torch.empty(like_BD.shape, dtype=torch.bfloat16, pin_memory=stream is not None)
        self._stream = stream
        if stream:
            self._device_BD = torch.empty(like_BD.shape, dtype=torch.bfloat16, device=like_BD.device)
            self._arrived, self._left = torch.cuda.Event(), torch.cuda.Event()

    def take(self, rows: Rows, step: int, share: tuple[int, int, int]) -> None:
        """Reads a batch and sends it on its way to the device."""
        if self._stream is None:
            rows.batch(step, *share, out=self._host_BD)
            return
        self._arrived.synchronize()  # the batch before it, of which this thread overwrites the host's copy
        rows.batch(step, *share, out=self._host_BD)
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._left)
            self._device_BD.copy_(self._host_BD, non_blocking=True)
            self._arrived.record(self._stream)

    def give(self, x_BD: Tensor) -> None:
        """Copies the batch to where the step finds it; on a GPU in the order of its current stream."""
        if self._stream is None:
            x_BD.copy_(self._host_BD)
            return
        current = torch.cuda.current_stream(x_BD.device)
        current.wait_event(self._arrived)
        x_BD.copy_(self._device_BD)
        self._left.record(current)
