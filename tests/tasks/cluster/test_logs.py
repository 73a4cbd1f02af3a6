"""What actors and jobs log is told where their results are waited for."""

import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.cluster.jobs import Job
from tasks.cluster.logs import MOST, Kept, Line, tell
from tasks.errors import InputError


class Talker:
    """Logs while it works."""

    def __init__(self) -> None:
        logging.getLogger("tasks.talker").info("is loading")

    def talk(self, number: int) -> Iterator[int]:
        for i in range(number):
            logging.getLogger("tasks.talker").info("row %d", i)
            logging.getLogger("elsewhere").info("nobody wants to know")
            yield i
        warnings.warn("the end is near", stacklevel=1)
        logging.getLogger("elsewhere").error("elsewhere it burns")

    def refuse(self, error: type[Exception]) -> Iterator[int]:
        logging.getLogger("tasks.talker").warning("this will not do")
        raise error("No.")
        yield 0

    def die(self, mark: str) -> Iterator[int]:
        if not Path(mark).exists():
            Path(mark).touch()
            os._exit(1)
        yield 1


@pytest.fixture
def pool(ray_cluster, caplog):
    caplog.set_level(logging.INFO, logger="tasks")
    yield ray_cluster.actors("talk to somebody", Talker, count=1)
    ray_cluster.close_actors()


def said(caplog):
    return [(record.levelno, record.getMessage()) for record in caplog.records if record.name == "tasks.cluster.logs"]


def test_what_an_actor_logs_is_told_in_order(pool, caplog):
    assert pool.stream("talk", 3, receive=list) == [0, 1, 2]
    lines = said(caplog)
    assert [text for _, text in lines[:4]] == ["talk actor: is loading", *(f"talk actor: row {i}" for i in range(3))]
    assert [level for level, _ in lines] == [logging.INFO] * 4 + [logging.WARNING, logging.ERROR]
    assert "the end is near" in lines[4][1] and lines[5][1] == "talk actor: elsewhere it burns"


@pytest.mark.parametrize("error", [InputError, ValueError, KeyError, OSError])
def test_what_was_logged_before_an_error_is_told_too(pool, caplog, error):
    with pytest.raises(error):
        pool.stream("refuse", error, receive=list)
    assert (logging.WARNING, "talk actor: this will not do") in said(caplog)


def test_a_death_is_told(pool, caplog, tmp_path):
    assert pool.stream("die", str(tmp_path / "mark"), receive=list) == [1]
    assert any("A talk actor died" in record.getMessage() for record in caplog.records)


def test_a_job_s_lines_are_told_once(ray_cluster, caplog, tmp_path):
    caplog.set_level(logging.INFO, logger="tasks")
    code = "import time\nfor i in range(40): print('line', i, flush=True); time.sleep(0.05)\nprint('ab', end='')"
    script = tmp_path / "job.py"
    script.write_text(code)
    job = Job(ray_cluster.job_client(), "talk-0123456789abcdef", [ray_cluster.python, str(script)])
    assert job.run(lambda: None) is None
    lines = [text for _, text in said(caplog)]
    assert [text for text in lines if ": line" in text] == [f"{job.submission_id}: line {i}" for i in range(40)]
    assert lines[-1] == f"{job.submission_id}: ab"


def test_only_the_last_lines_are_kept():
    kept = Kept()
    for i in range(MOST + 5):
        kept.emit(logging.LogRecord("tasks.x", logging.INFO, "", 0, f"{i}", None, None))
    assert kept.take()[0].text == "5"
    assert kept.take() == []


def test_lines_have_their_level(caplog):
    caplog.set_level(logging.INFO, logger="tasks")
    tell("somebody", [Line(logging.ERROR, "burns")])
    assert caplog.records[0].levelname == "ERROR" and caplog.records[0].getMessage() == "somebody: burns"
