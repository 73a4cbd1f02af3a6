"""A store says at once that it cannot be used; runs side by side do not disturb each other."""

import os
import socket
import subprocess
import threading

import pytest

from tasks.artifacts import open_store
from tasks.artifacts import workspace as workspace_module
from tasks.errors import InputError, StoreError
from tasks.settings import settings


def test_a_store_says_at_once_that_it_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        open_store(str(tmp_path / "file" / "store")).check()
    with pytest.raises(StoreError, match=r"nosuchscheme.*Give a folder or s3://"):
        open_store("nosuchscheme://bucket")


def test_a_check_tries_to_write_but_makes_no_folder(tmp_path):
    store = open_store(str(tmp_path / "deep" / "store"))
    store.check()
    assert not list(tmp_path.iterdir()) and not store.files.exists()
    with pytest.raises(StoreError, match="/proc/no-store"):
        open_store("/proc/no-store").check()
    with pytest.raises(StoreError, match="/etc/passwd is no folder"):
        open_store("/etc/passwd").check()


@pytest.mark.parametrize("url", ["s3://", "s3:///", "s3a://"])
def test_a_url_without_a_bucket_is_refused(url):
    with pytest.raises(StoreError, match="names no bucket"):
        open_store(url)


def test_a_home_that_does_not_exist_is_one_sentence():
    with pytest.raises(InputError, match="--store is '~nobodyx/foo', but there is no such home"):
        open_store("~nobodyx/foo")
    with pytest.raises(InputError, match="SAEFLOW_CACHE is '~nobodyx/foo'"):
        settings({"SAEFLOW_CACHE": "~nobodyx/foo"})


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


def test_a_store_is_listed_while_others_take_folders_away(store):
    files, stop = store.files, threading.Event()
    files.write("report/kept", b"")

    def others():
        while not stop.is_set():
            for number in range(20):
                files.write(f"report/{number}/attempts/1/page", b"")
            for number in range(20):
                files.remove(f"report/{number}")

    thread = threading.Thread(target=others)
    thread.start()
    try:
        for _ in range(200):
            assert "kept" in files.names("report")
            assert files.folders("report/3/attempts") in ([], ["1"])
            assert files.unfinished() == []
    finally:
        stop.set()
        thread.join()
