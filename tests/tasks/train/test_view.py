"""wandb is a view: absent, unreachable or slow, it stops no training; offline, a run has one folder per start."""

import logging
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.train import view as view_module
from tasks.train.view import View

KEY = "0123456789abcdef" * 4


def show(mode, folder: Path, steps: range, key: str = KEY) -> float:
    """Logs some steps and closes; the seconds it took."""
    began = time.monotonic()
    view = View(mode, key, {"k": 4}, folder)
    for step in steps:
        view.log({"step": step, "fvu": 1 / (1 + step)})
    view.close()
    return time.monotonic() - began


def test_a_service_that_is_down_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setattr(view_module, "CLOSE_SECONDS", 2.0)
    monkeypatch.setattr(view_module, "START_SECONDS", 3.0)
    assert show("online", tmp_path, range(5), key="f" * 64) < 30  # of its own: wandb still tries to start it


def test_without_the_library_it_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.WARNING):
        show("offline", tmp_path, range(3))
    assert [record.message for record in caplog.records if "wandb is left out" in record.message]


def test_disabled_it_starts_nothing(tmp_path: Path) -> None:
    before = threading.active_count()
    show("disabled", tmp_path, range(3))
    assert threading.active_count() == before and not list(tmp_path.iterdir())


def test_offline_each_start_leaves_a_folder_of_the_same_id(tmp_path: Path) -> None:
    show("offline", tmp_path, range(2))
    time.sleep(1.1)  # their names have seconds
    show("offline", tmp_path, range(2, 4))
    folders = sorted((tmp_path / "wandb" / "wandb").glob(f"offline-run-*-{KEY[:16]}"))
    assert len(folders) == 2, "as `wandb sync --id` of docs/operations.md takes them, in the order of their names"
    assert all(list(folder.glob("*.wandb")) for folder in folders)
