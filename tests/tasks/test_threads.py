"""Threads of one process: results in order, no more in memory than there is room for, errors as they were."""

import threading
import time

import pytest
import torch

from tasks import threads
from tasks.threads import at_once, free_memory


def test_results_come_in_order_whichever_is_ready_first() -> None:
    with at_once(1) as pool:
        found = list(pool.in_order(lambda i: (time.sleep(0.02 * (i % 3 == 0)), i)[1], range(20)))
    assert found == list(range(20))


def test_no_more_is_begun_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "free_memory", lambda: 700)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)), raising=False)
    begun, most = set[int](), 0
    lock = threading.Lock()

    def work(i: int) -> int:
        nonlocal most
        with lock:
            begun.add(i)
            most = max(most, len(begun))
        time.sleep(0.01)
        return i

    with at_once(100) as pool:  # half of 700 bytes: three pieces
        assert pool.count == 3
        for i in pool.in_order(work, range(12)):
            with lock:
                begun.discard(i)
    assert most <= 3
    with at_once(1e9) as pool:
        assert pool.count == 1, "one piece at least"


def test_torch_has_its_threads_back_and_an_error_is_raised_as_it_was() -> None:
    before = torch.get_num_threads()
    with at_once(1) as pool:
        assert torch.get_num_threads() == 1
        results = pool.in_order(lambda i: 1 // (3 - i), range(100))
        with pytest.raises(ZeroDivisionError):
            list(results)
    assert torch.get_num_threads() == before


def test_a_control_group_limits_what_is_free(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "CGROUP", tmp_path)
    unlimited = free_memory()
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory() == pytest.approx(unlimited, rel=0.2)
    (tmp_path / "memory.max").write_text("51000\n")
    assert free_memory() == 50_000
