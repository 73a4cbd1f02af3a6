import bz2
import gzip
import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks import outside
from tasks.artifacts import Artifact, Store, open_store
from tasks.corpus import CORPUS, ROWS, CorpusSpec, holds_chats, read_rows
from tasks.corpus import sources as corpus_sources
from tasks.errors import InputError, SpecError
from tests.servers.hub import COMMIT, running_hub


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


def build(store: Store, path: Path | str, **fields) -> Artifact:
    return CORPUS.build(store, CorpusSpec(path=str(path), **fields)).artifact


def rows(artifact: Artifact) -> list[tuple[int, str]]:
    table = pq.read_table(artifact.path(ROWS))
    assert table["row_id"].to_pylist() == list(range(len(table))) == list(range(artifact.summary["rows"]))
    return list(zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True))


STORY = "One day. A cat came!\nIt left.\n\nThe end.\n<|endoftext|>\nAnother one.\r\n"


def test_units_of_a_text_file(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(b"\xef\xbb\xbf" + STORY.encode())
    assert rows(build(store, path)) == [
        (0, "One day."),
        (0, "A cat came!"),
        (0, "It left."),
        (0, "The end."),
        (1, "Another one."),
    ]
    paragraphs = rows(build(store, path, unit="paragraph"))
    assert paragraphs == [(0, "One day. A cat came!\nIt left."), (0, "The end."), (1, "Another one.")]
    documents = rows(build(store, path, unit="document"))
    assert documents == [(0, "One day. A cat came!\nIt left.\n\nThe end."), (1, "Another one.")]


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(alphabet="aB. \n<", min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=5))
def test_the_same_documents_make_the_same_rows_from_every_kind_of_file(
    store: Store, tmp_path: Path, texts: list[str]
) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    (tmp_path / "a.txt.bz2").write_bytes(bz2.compress("\n<|endoftext|>\n".join(texts).encode()))
    for unit in ("sentence", "paragraph", "document"):
        digests = {
            build(store, tmp_path / f"a{suffix}", unit=unit).digest
            for suffix in (".jsonl", ".jsonl.gz", ".parquet", ".txt.bz2")
        }
        assert len(digests) == 1


CHATS = [
    [{"role": "user", "content": "Où?"}, {"role": "assistant", "content": "Here."}],
    [],
    [{"role": "user", "content": "When?"}],
]


def test_chats_are_one_row_each_whatever_file_they_come_in(store: Store, tmp_path: Path) -> None:
    told = [[message | {"seen": "yes"} for message in chat] for chat in CHATS]  # what a template reads is kept
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"talk": chat}) + "\n" for chat in told))
    pq.write_table(pa.table({"talk": told}), tmp_path / "a.parquet")
    by_lines, by_table = (
        build(store, tmp_path / name, column="talk", unit="chat") for name in ("a.jsonl", "a.parquet")
    )
    assert [(doc, json.loads(text)) for doc, text in rows(by_lines)] == [(0, CHATS[0]), (2, CHATS[2])]
    assert by_lines.digest == by_table.digest and by_lines.summary["empty"] == 1
    assert holds_chats(by_lines)


def test_what_is_no_chat_is_refused_with_its_place(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"talk": [{"from": "user", "value": "Hi"}]}) + "\n")
    with pytest.raises(InputError, match=r"a\.jsonl, line 1.*no conversation, which is a list of messages"):
        build(store, tmp_path / "a.jsonl", column="talk", unit="chat")
    (tmp_path / "a.txt").write_text("Hi")
    with pytest.raises(InputError, match=r"corpus\.unit is 'chat', but .*a\.txt is plain text"):
        build(store, tmp_path / "a.txt", unit="chat")


def test_folders_globs_and_urls_are_read_in_order_of_names(store: Store, tmp_path: Path) -> None:
    import fsspec

    folder = tmp_path / "texts"
    (folder / "deep").mkdir(parents=True)
    for name, text in {"b.txt": "B.", "a.txt": "A.", "deep/c.jsonl": '{"text": "C."}', "note.pdf": "no text"}.items():
        (folder / name).write_text(text)
    assert rows(build(store, folder)) == [(0, "A."), (1, "B."), (2, "C.")]
    assert rows(build(store, folder / "*.txt")) == [(0, "A."), (1, "B.")]
    assert rows(build(store, folder / "**" / "*.jsonl")) == [(0, "C.")]
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/texts", recursive=True)
    try:
        assert rows(build(store, "memory://texts/*.txt")) == [(0, "A."), (1, "B.")]
        whole = build(store, "memory://texts")
        assert rows(whole) == [(0, "A."), (1, "B."), (2, "C.")]
        memory.pipe_file("/texts/a.txt", b"Z.")  # of the same size
        assert build(store, "memory://texts").digest != whole.digest
        with pytest.raises(InputError, match=r"'memory://nowhere/a\.txt', where there is no"):
            build(store, "memory://nowhere/a.txt")
    finally:
        memory.rm("/texts", recursive=True)


def test_an_edited_file_is_never_served_stale(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("One.")
    os.utime(path, (time.time() - 60, time.time() - 60))
    before = build(store, path)
    monkeypatch.setattr(outside, "_read_here", set())  # as in a later process
    said: list[str] = []
    again = CORPUS.build(store, CorpusSpec(path=str(path), min_characters=2), on_log=said.append).artifact
    assert "not read again" in said[0]
    assert again.digest == before.digest
    path.write_text("Two.")
    assert rows(build(store, path)) == [(0, "Two.")]


def test_what_is_left_out_is_counted(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    values = ["Good one.", None, "", "Ok", "Good one.", "x" * 30, "\ud800", "Last."]
    lines = [json.dumps({"body": value}).encode() for value in values]
    path.write_bytes(b"\n".join([*lines, b'{"body": "\xff"}', b"{", b""]))
    spec = {"column": "body", "min_characters": 3, "max_characters": 20, "deduplicate": True, "invalid": "skip"}
    artifact = build(store, path, **spec)
    assert rows(artifact) == [(0, "Good one."), (7, "Last.")]
    counted = {
        reason: artifact.summary[reason]
        for reason in ("empty", "too_short", "too_long", "duplicate", "not_utf8", "not_json")
    }
    assert counted == {"empty": 2, "too_short": 1, "too_long": 1, "duplicate": 1, "not_utf8": 2, "not_json": 1}
    assert (artifact.summary["documents"], artifact.summary["bytes"]) == (2, 14)


@pytest.mark.parametrize("unit", ["sentence", "paragraph", "document"])
def test_a_row_that_is_not_utf8_ends_the_run_with_its_place(store: Store, tmp_path: Path, unit: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("First é.\n\n".encode() + b"Sec\xe9nd.\nThird.\n\nFourth.\n")
    with pytest.raises(
        InputError, match=r"a\.txt, line 3, byte 11 \(byte 3 of it is 0xe9\) is not UTF-8; .*invalid=skip"
    ):
        build(store, path, unit=unit)
    if unit == "document":
        with pytest.raises(InputError, match=r"has no row \(1 not utf8\)"):
            build(store, path, unit=unit, invalid="skip")
    else:
        artifact = build(store, path, unit=unit, invalid="skip")
        kept = ["First é.", "Third.", "Fourth."] if unit == "sentence" else ["First é.", "Fourth."]
        assert [text for _, text in rows(artifact)] == kept
        assert artifact.summary["not_utf8"] == 1


def test_parquet_names_its_rows_and_columns(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"good", b"b\xffd"]).buffers())
    pq.write_table(pa.table({"text": broken, "number": [1, 2]}), path)
    with pytest.raises(InputError, match=r"a\.parquet, row 1 \(byte 1 of it is 0xff\) is not UTF-8"):
        build(store, path)
    assert rows(build(store, path, invalid="skip")) == [(0, "good")]
    with pytest.raises(InputError, match="no column 'body'; it has text, number"):
        build(store, path, column="body")
    with pytest.raises(InputError, match=r"column 'number' .* holds int64 instead of text"):
        build(store, path, column="number")


BAD = {
    "a.jsonl": (
        b'{"text": "a"}\n{"other": 1}\n',
        r"a\.jsonl, line 2, byte 14: there is no column 'text' \(it has other\)",
    ),
    "b.jsonl": (b'{"text": 3}\n', "the column holds a int instead of text"),
    "c.jsonl": (b'{"text": "a"}\n{"te', r"c\.jsonl, line 2, byte 14 .* is not JSON; mend the file"),
    "d.parquet": (b"PAR1 is not all of it", "cannot be read as parquet"),
    "e.csv": (b"a,b", r"which is no \.txt, \.jsonl or \.parquet"),
    "f.txt": (b"\n \n\n", r"has no row \(it is empty\)"),
    "g.parquet.gz": (b"", r"which is no \.txt"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_used_is_one_clear_error(store: Store, tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        build(store, tmp_path / name)


def test_a_path_with_nothing_is_refused_at_once(store: Store, tmp_path: Path) -> None:
    for path, message in {
        tmp_path / "none.txt": "there is no such file or folder",
        tmp_path / "no" / "*.txt": r"where there is no \.txt, \.jsonl or \.parquet",
        tmp_path / "empty": "where there is no",
    }.items():
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=message):
            CORPUS.find(store, CorpusSpec(path=str(path)))


def test_text_on_s3_without_credentials_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(InputError, match=r"'s3://x/y\.txt' cannot be read \(.*AWS_ACCESS_KEY_ID"):
        corpus_sources.find_files("s3://x/y.txt")


def test_limits_that_let_no_row_pass_are_refused() -> None:
    with pytest.raises(SpecError, match=r"min_characters 9 is above corpus\.max_characters 3"):
        CorpusSpec(min_characters=9, max_characters=3)


def test_slices_are_read_without_the_rest(store: Store, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("tasks.corpus.ROWS_PER_GROUP", 8)
    path = tmp_path / "a.txt"
    path.write_text("\n".join(f"Row {i}." for i in range(50)))
    artifact = build(store, path)
    assert pq.ParquetFile(artifact.path(ROWS)).metadata.num_row_groups == 7
    for start, stop in [(0, 50), (7, 9), (8, 16), (49, 60), (20, 20), (50, 50), (60, 70)]:
        texts, ids = read_rows(artifact, start, stop)
        expected = list(range(start, min(stop, 50)))
        assert texts == [f"Row {i}." for i in expected]
        assert ids.dtype == np.int64
        assert ids.tolist() == expected
    assert build(store, path, max_rows=9).summary["rows"] == 9


def test_memory_is_bounded_by_rows_not_by_files(store: Store, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(corpus_sources, "LONGEST_LINE", 1 << 16)
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.write(b"First.\n\n")
        for _ in range(300):
            file.write(b"x" * (1 << 16))  # one line of 20 MB, then one paragraph of 20 MB
        for _ in range(300):
            file.write(b"\n" + b"y" * 60_000)
        file.write(b"\n\nLast.\n")
    build(store, path, max_rows=1)  # imports are not what is measured
    for unit in ("sentence", "paragraph"):
        tracemalloc.start()
        artifact = build(store, path, unit=unit)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8e6
        assert [rows(artifact)[0][1], rows(artifact)[-1][1]] == ["First.", "Last."]
        assert artifact.summary["too_long"] == (301 if unit == "sentence" else 1)


def test_the_demo_reads_the_standard_library(store: Store, monkeypatch) -> None:
    monkeypatch.setattr("tasks.corpus.stdlib_documents", lambda: ["Of one. And more.\n\nNext.", "Of two."])
    artifact = CORPUS.build(store, CorpusSpec()).artifact
    assert rows(artifact) == [(0, "Of one."), (0, "And more."), (0, "Next."), (1, "Of two.")]
    assert "python" in artifact.manifest.outside


def test_a_relative_path_is_the_file_it_names(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CorpusSpec(path="a.txt").hashed() == CorpusSpec(path=str(tmp_path / "a.txt")).hashed()
    assert CorpusSpec(path="s3://bucket/a.txt").hashed()["path"] == "s3://bucket/a.txt"


HUB_SCRIPT = """
import json, sys
from tasks.artifacts import open_store
from tasks.corpus import CORPUS, CorpusSpec, read_rows
from tasks.errors import SaeflowError

for fields in json.loads(sys.argv[2]):
    try:
        built = CORPUS.build(open_store(sys.argv[1]), CorpusSpec(**fields))
        answer = [built.cached, built.artifact.manifest.outside, *read_rows(built.artifact, 0, 9)[0]]
    except SaeflowError as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer))
"""


def test_a_data_set_of_the_hub_is_pinned_by_commit_and_streamed(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"body": "One. Two."}\n{"body": "Three."}\n')
    asked = [
        {"path": "tiny/open", "column": "body"},
        {"path": "tiny/open", "column": "body"},
        {"path": "tiny/open"},
        {"path": "tiny/open", "column": "body", "part": "test"},
        {"path": "tiny/gated"},
        {"path": "tiny/none"},
    ]
    with running_hub(folder) as endpoint:
        environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": endpoint}
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", HUB_SCRIPT, str(tmp_path / "store"), json.dumps(asked)],
            capture_output=True, text=True, env=os.environ | environment, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    answers = [json.loads(line) for line in ran.stdout.splitlines()]
    assert answers[0] == [False, {"commit": COMMIT}, "One.", "Two.", "Three."]
    assert answers[1][0] is True
    assert "has no column 'text'; it has body" in answers[2]
    assert "(default, test) cannot be read" in answers[3]
    assert "'tiny/gated' is gated" in answers[4]
    assert "'tiny/none' is neither a local path nor a hub dataset" in answers[5]
