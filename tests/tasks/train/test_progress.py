"""Checkpoints that are whole are found, newest first; torn ones are passed over; a torn snapshot of Ray goes."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tasks.artifacts.files import LocalFiles, open_files
from tasks.train.progress import (
    FAULT,
    SNAPSHOT,
    STATE,
    TENSORS,
    load,
    newest,
    read_request,
    repair_snapshot,
    write,
    write_fault,
)

RUN = "key"


def checkpoint(root: Path, step: int, name: str | None = None) -> Path:
    folder = root / RUN / (name or f"checkpoint_{step}")
    folder.mkdir(parents=True)
    tensors = {"step": torch.tensor(step), "x": torch.full((3,), float(step))}
    write(folder, tensors, [{"step": step, "fvu": 1 / 3}], [{"from_step": 0, "workers": 2}])
    return folder


def cut_tensors(folder: Path) -> None:
    path = folder / TENSORS
    path.write_bytes(path.read_bytes()[:-3])


def flip_a_bit(folder: Path) -> None:
    path = folder / TENSORS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def another_sha(folder: Path) -> None:
    state = json.loads((folder / STATE).read_text())
    (folder / STATE).write_text(json.dumps(state | {"sha256": "0" * 64}))


TORN = [
    cut_tensors,
    flip_a_bit,
    another_sha,
    lambda folder: (folder / TENSORS).unlink(),
    lambda folder: (folder / STATE).unlink(),
    lambda folder: (folder / STATE).write_text('{"step": 30, "sha'),
    lambda folder: (folder / STATE).write_text("[]"),
    lambda folder: (folder / STATE).write_text('{"step": 30}'),
    lambda folder: (folder / STATE).write_bytes(b""),
    lambda folder: shutil.rmtree(folder),
]


def test_the_newest_is_the_one_of_the_most_steps_and_comes_back_equal(tmp_path):
    for step in (9, 100, 20):
        checkpoint(tmp_path, step)
    found = newest(LocalFiles(tmp_path))
    assert found.step == 100
    assert found.history == [{"step": 100, "fvu": 1 / 3}]
    assert torch.equal(found.tensors["x"], torch.full((3,), 100.0))
    assert torch.equal(load(LocalFiles(tmp_path), found.folder).tensors["x"], found.tensors["x"])


@pytest.mark.parametrize("tear", TORN)
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path, tear):
    checkpoint(tmp_path, 20)
    torn = checkpoint(tmp_path, 30)
    tear(torn)
    files = LocalFiles(tmp_path)
    assert newest(files).step == 20
    assert load(files, f"{RUN}/{torn.name}") is None


def test_without_a_whole_checkpoint_there_is_none(tmp_path):
    files = LocalFiles(tmp_path)
    assert newest(files) is None
    cut_tensors(checkpoint(tmp_path, 5))
    assert newest(files) is None


def test_checkpoints_on_s3_are_read_alike(s3_url, tmp_path):
    files = open_files(s3_url)
    for step in (1, 2):
        folder = checkpoint(tmp_path, step)
        for name in (TENSORS, STATE):
            files.keep(folder / name, f"{RUN}/{folder.name}/{name}")
    assert newest(files).step == 2
    files.write(f"{RUN}/checkpoint_2/{TENSORS}", b"torn")
    assert newest(files).step == 1
    files.remove(f"{RUN}/checkpoint_1/{TENSORS}")
    assert newest(files) is None


@pytest.mark.parametrize(
    ("snapshot", "kept"),
    [
        ({"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_5"}]}, True),
        ({"checkpoint_results": []}, True),
        ({"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_6"}]}, False),
        ({"checkpoint_results": [{}]}, False),
        ({}, False),
        ([], False),
        (None, False),
    ],
)
def test_a_snapshot_that_ray_would_refuse_is_removed(tmp_path, snapshot, kept):
    checkpoint(tmp_path, 5)
    path = tmp_path / RUN / SNAPSHOT
    path.write_text(json.dumps(snapshot))
    repair_snapshot(LocalFiles(tmp_path), RUN)
    assert path.exists() is kept


def test_a_torn_snapshot_is_removed_and_a_missing_one_is_fine(tmp_path):
    files = LocalFiles(tmp_path)
    repair_snapshot(files, RUN)
    checkpoint(tmp_path, 5)
    (tmp_path / RUN / SNAPSHOT).write_text('{"checkpoint_results": [')
    repair_snapshot(files, RUN)
    assert not (tmp_path / RUN / SNAPSHOT).exists()


def test_a_fault_is_left_for_who_waits(tmp_path):
    write_fault(LocalFiles(tmp_path), "input", "It is so.")
    assert json.loads((tmp_path / FAULT).read_text()) == {"kind": "input", "message": "It is so."}


def test_a_folder_without_a_request_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no request\.json"):
        read_request(LocalFiles(tmp_path))
