"""A run in this process: what it writes at its end, however it ends."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from flows.live import Board
from flows.running import _require_writable, _write_result
from tasks.errors import InputError


def test_the_json_file_is_tried_first_and_left_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    _require_writable(file)
    assert not file.exists()
    file.write_text("earlier")
    _require_writable(file)
    assert file.read_text() == "earlier"
    with pytest.raises(InputError, match="Is a directory"):
        _require_writable(tmp_path)


def test_a_json_file_that_cannot_be_written_at_the_end_hides_no_error_of_the_run(tmp_path: Path) -> None:
    out = io.StringIO()
    board = Board(Console(file=out))
    _write_result(board, tmp_path / "result.json")
    assert json.loads((tmp_path / "result.json").read_text()) == {"schema": 1, "stages": []}
    with pytest.raises(InputError, match="could not be written"):
        _write_result(board, tmp_path)
    with pytest.raises(ZeroDivisionError):
        _fail_and_write(board, tmp_path)
    assert "could not be written: Is a directory" in out.getvalue()


def _fail_and_write(board: Board, file: Path) -> None:
    try:
        raise ZeroDivisionError
    finally:
        _write_result(board, file)
