"""The feed gives rows.batch's batches in order, whatever the reader does, and leaves no thread behind."""

import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sae_core import Feed, Rows, RowsError

D, BATCH = 3, 24
AHEAD = (0, 1, 3)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


class SlowRows(Rows):
    """Rows whose reader takes its time, notes what it was asked for, and fails at one step."""

    asked: list[int]
    fails_at = -1

    def batch(self, step, *share, out=None):
        self.asked.append(step)
        time.sleep(0.002 * (step % 3))
        if step == self.fails_at:
            raise RowsError(f"Step {step} cannot be read.")
        return super().batch(step, *share, out=out)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    table = torch.randn(101, D, generator=torch.Generator().manual_seed(0)).bfloat16()
    for i, part in enumerate(table.split(37)):
        save_file({"activations": part.contiguous()}, tmp_path / f"train-{i:05}.safetensors")
    return sorted(tmp_path.glob("*.safetensors"))


@pytest.fixture
def rows(paths) -> SlowRows:
    rows = SlowRows(paths, seed=1, block=10)
    rows.asked = []
    return rows


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ahead", [*AHEAD, None])
@pytest.mark.parametrize("first", [0, 11])
def test_gives_the_batches_of_rows_in_order_from_any_step_on(rows, paths, ahead, first, device):
    plain, steps = Rows(paths, seed=1, block=10), range(first, first + 12)
    with Feed(rows, steps, batch_size=BATCH, device=device, ahead=ahead) as feed:
        found = [x_BD.clone() for x_BD in feed]
    assert len(found) == len(steps)
    for step, x_BD in zip(steps, found, strict=True):
        assert x_BD.dtype == torch.float32
        assert torch.equal(x_BD.cpu(), plain.batch(step, BATCH).float())
    assert rows.asked == list(steps)  # nothing twice, nothing beyond the last


@pytest.mark.parametrize("ahead", AHEAD)
def test_shares_of_the_ranks_are_the_batch(rows, paths, ahead):
    share = {"batch_size": BATCH, "world_size": 2, "ahead": ahead}
    with Feed(rows, range(5), rank=0, **share) as first, Feed(rows, range(5), rank=1, **share) as second:
        found = [torch.cat(parts) for parts in zip(first, second, strict=True)]
    plain = Rows(paths, seed=1, block=10)
    assert all(torch.equal(x_BD, plain.batch(step, BATCH).float()) for step, x_BD in enumerate(found))


@pytest.mark.parametrize("ahead", [1, 2, 3])
def test_reads_ahead_so_far_and_no_further(rows, ahead):
    with Feed(rows, range(50), batch_size=BATCH, ahead=ahead) as feed:
        next(iter(feed))
        end = time.monotonic() + 5
        while len(rows.asked) < ahead + 1 and time.monotonic() < end:
            time.sleep(0.005)
        time.sleep(0.03)
        assert rows.asked == list(range(ahead + 1))


@pytest.mark.parametrize("ahead", AHEAD)
def test_an_error_of_the_reader_is_raised_at_its_step(rows, ahead):
    rows.fails_at = 4
    with Feed(rows, range(9), batch_size=BATCH, ahead=ahead) as feed:
        batches = iter(feed)
        for _ in range(4):
            next(batches)
        with pytest.raises(RowsError, match="Step 4 cannot be read"):
            next(batches)
    assert rows.asked == list(range(5))


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("ahead", AHEAD)
def test_a_step_that_fails_or_is_interrupted_ends_the_thread(rows, ahead, error):
    def train() -> None:
        with Feed(rows, range(1000), batch_size=BATCH, ahead=ahead) as feed:
            for step, _ in enumerate(feed):
                if step == 3:
                    raise error

    with pytest.raises(error):
        train()
    assert len(rows.asked) <= 4 + ahead


def test_no_steps_and_closing_twice_are_fine(rows):
    with Feed(rows, range(7, 7), batch_size=BATCH, ahead=2) as feed:
        assert list(feed) == []
    feed.close()
    assert rows.asked == []
