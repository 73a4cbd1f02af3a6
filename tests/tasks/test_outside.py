import os
import time

import pytest

from tasks import outside
from tasks.artifacts.artifact import sha256_file
from tasks.errors import InputError
from tasks.outside import pin_file, pin_files, trust_notice

LONG_AGO = time.time() - 3600


def write(path, text: str, mtime: float = LONG_AGO) -> None:
    path.write_text(text)
    os.utime(path, (mtime, mtime))


def test_a_hash_is_remembered_by_size_and_time_and_a_later_process_tells_that(tmp_path, monkeypatch) -> None:
    path, cache = tmp_path / "file", tmp_path / "cache"
    write(path, "one")
    first = pin_file(path, cache)
    assert first == (3, sha256_file(path), False)
    assert pin_file(path, cache) == first
    monkeypatch.setattr(outside, "_read_here", set())
    assert pin_file(path, cache) == first._replace(trusted=True)
    assert pin_file(path, tmp_path / "other") == first


@pytest.mark.parametrize(("text", "mtime"), [("two", LONG_AGO + 1), ("longer", LONG_AGO)])
def test_an_edited_file_is_read_again(tmp_path, text: str, mtime: float) -> None:
    path, cache = tmp_path / "file", tmp_path / "cache"
    write(path, "one")
    pin_file(path, cache)
    write(path, text, mtime)
    assert pin_file(path, cache) == (len(text), sha256_file(path), False)


def test_a_file_of_this_moment_is_not_remembered(tmp_path) -> None:
    path, cache = tmp_path / "file", tmp_path / "cache"
    now = time.time()
    write(path, "one", now)
    pin_file(path, cache)
    write(path, "two", now)  # as an edit within one tick of the file system's clock looks
    assert pin_file(path, cache).sha256 == sha256_file(path)


def test_a_torn_memory_is_no_harm(tmp_path) -> None:
    path, cache = tmp_path / "file", tmp_path / "cache"
    write(path, "one")
    pinned = pin_file(path, cache)
    [memory] = (cache / "pins").iterdir()
    memory.write_text('{"path": ')
    assert pin_file(path, cache) == pinned


def test_several_files_are_named_relative_to_their_folder(tmp_path, monkeypatch) -> None:
    for name in ("b", "a"):
        write(tmp_path / name, name)
    pin_file(tmp_path / "a", tmp_path / "cache")
    monkeypatch.setattr(outside, "_read_here", set())
    files, trusted = pin_files(tmp_path, ["a", "b"], tmp_path / "cache")
    assert [(file["path"], file["size"]) for file in files] == [("a", 1), ("b", 1)]
    assert trusted == 1
    assert "1 of 2 files" in trust_notice(trusted, 2)


def test_a_missing_file_is_one_sentence(tmp_path) -> None:
    with pytest.raises(InputError, match=r"nothing cannot be read \(No such file"):
        pin_file(tmp_path / "nothing", tmp_path)
