"""A store says at once that it cannot be used; runs side by side do not disturb each other."""

import os
import socket
import subprocess
import threading

import pytest

from tasks.artifacts import open_store
from tasks.artifacts import workspace as workspace_module
from tasks.errors import StoreError


def test_a_store_says_at_once_that_it_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        open_store(str(tmp_path / "file" / "store")).check()
    with pytest.raises(StoreError, match=r"nosuchscheme.*Give a folder or s3://"):
        open_store("nosuchscheme://bucket")


def test_two_runs_may_check_the_same_store_at_once(store):
    failures = []

    def check():
        try:
            for _ in range(20):
                store.check()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=check) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not store.files.names("")


def test_scratch_folders_of_dead_processes_go_but_not_those_of_other_machines(tmp_path):
    """A home may be shared by the nodes of a cluster: a process id means nothing on another node."""
    mine = workspace_module.own_scratch()
    dead = mine.with_name(mine.name.replace(f".{os.getpid()}.", f".{dead_pid()}."))
    theirs = mine.with_name(dead.name.replace(socket.gethostname(), "another-node"))
    mine.rename(dead)
    theirs.mkdir()
    workspace_module.own_scratch()
    assert sorted(path.name for path in mine.parent.iterdir()) == sorted([mine.name, theirs.name])


def dead_pid() -> int:
    """The id of a process that has just ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid
