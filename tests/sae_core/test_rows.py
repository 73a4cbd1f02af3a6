"""The order of training rows: every epoch a permutation, shares of ranks make up the batch."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sae_core import RowsError
from sae_core.rows import Rows

D = 3


def write(folder: Path, sizes: list[int]) -> list[Path]:
    """Files whose row r, counted over all files, is [r % 256, r // 256, 0]: exact in bf16."""
    paths, first = [], 0
    for i, size in enumerate(sizes):
        number = torch.arange(first, first + size)
        table = torch.stack([number % 256, number // 256, torch.zeros_like(number)], dim=1).to(torch.bfloat16)
        paths.append(folder / f"train-{i:05}.safetensors")
        save_file({"activations": table}, paths[-1])
        first += size
    return paths


def numbers(x_BD: torch.Tensor) -> list[int]:
    return (x_BD[:, 0].int() + 256 * x_BD[:, 1].int()).tolist()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(0, 70), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 0),
    batch=st.integers(1, 90),
    block=st.integers(1, 40),
    seed=st.integers(0, 5),
)
def test_every_epoch_is_a_permutation_and_nothing_is_thrown_away(tmp_path, sizes, batch, block, seed):
    total = sum(sizes)
    rows = Rows(write(tmp_path, sizes), seed=seed, block=block)
    assert len(rows) == total
    steps = -(-3 * total // batch)
    stream = [number for step in range(steps) for number in numbers(rows.batch(step, batch))]
    assert len(stream) == steps * batch
    for epoch in range(3):
        assert sorted(stream[epoch * total : (epoch + 1) * total]) == list(range(total))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(step=st.integers(0, 50), world=st.sampled_from([1, 2, 3, 4, 6]))
def test_shares_of_the_ranks_are_the_batch_and_a_position_needs_no_history(tmp_path, step, world):
    paths = write(tmp_path, [50, 31, 7])
    whole = Rows(paths, seed=1, block=16).batch(step, 24)
    fresh = Rows(paths, seed=1, block=16)
    parts = [fresh.batch(step, 24, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat(parts), whole)


def test_a_batch_goes_into_memory_that_is_given(tmp_path):
    rows = Rows(write(tmp_path, [50, 31, 7]), seed=1, block=16)
    out_BD = torch.full((12, D), 9.0, dtype=torch.bfloat16)
    assert rows.batch(3, 24, 1, 2, out=out_BD) is out_BD
    assert torch.equal(out_BD, rows.batch(3, 24, 1, 2))


def test_epochs_and_seeds_differ(tmp_path):
    paths = write(tmp_path, [4000])
    rows = Rows(paths, seed=0)
    first, second = numbers(rows.batch(0, 4000)), numbers(rows.batch(1, 4000))
    other = numbers(Rows(paths, seed=1).batch(0, 4000))
    assert first != second
    assert first != other
    assert sorted(first) == sorted(second) == sorted(other)


def test_reads_in_file_order(tmp_path):
    rows = Rows(write(tmp_path, [5, 0, 6]))
    assert numbers(rows.read(3, 9)) == [3, 4, 5, 6, 7, 8]
    assert numbers(rows.read(8, 99)) == [8, 9, 10]
    assert rows.read(0, 2).dtype == torch.bfloat16


def test_reading_writes_nothing_back(tmp_path):
    paths = write(tmp_path, [5])
    before = paths[0].read_bytes()
    Rows(paths).read(0, 5).fill_(9)
    assert paths[0].read_bytes() == before


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut, "not whole bf16"),
        (lambda path: path.write_bytes(b"PK"), "not a safetensors file"),
        (lambda path: path.write_bytes(b"\x04" + b"\0" * 7 + b"nope" + b"\0" * 50), "no table named activations"),
        (lambda path: save_file({"activations": torch.zeros(2, D)}, path), "is F32"),
        (lambda path: save_file({"other": torch.zeros(2, D)}, path), "no table named activations"),
        (lambda path: save_file({"activations": torch.zeros(2, 9, dtype=torch.bfloat16)}, path), "files of one width"),
        (lambda path: path.unlink(), "cannot be read"),
    ],
)
def test_damaged_files_are_one_clear_error(tmp_path, damage, message):
    paths = write(tmp_path, [5, 6])
    damage(paths[1])
    with pytest.raises(RowsError, match=message):
        Rows(paths)


def test_no_rows_at_all_is_refused(tmp_path):
    with pytest.raises(RowsError, match="no row"):
        Rows(write(tmp_path, [0]))
