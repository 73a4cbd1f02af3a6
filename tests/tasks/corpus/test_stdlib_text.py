import gc
import re
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import pytest

from tasks.corpus import stdlib_text
from tasks.corpus.sentences import split_sentences
from tasks.corpus.stdlib_text import prose, stdlib_documents, stdlib_fingerprint
from tasks.errors import InputError


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return stdlib_documents()


def test_there_is_enough_text(documents: list[str]) -> None:
    assert sum(len(document.encode()) for document in documents) > 1_500_000


def test_no_sentence_comes_twice(documents: list[str]) -> None:
    sentences = [
        re.sub(r"\d+", "0", sentence.lower())
        for document in documents
        for paragraph in document.split("\n\n")
        for sentence in split_sentences(paragraph)
    ]
    # Sentences are cut again after joining, where a dropped neighbour can change a cut: a handful may coincide.
    assert len(sentences) - len(set(sentences)) < 0.002 * len(sentences)


def test_prose_is_kept_and_code_markup_and_tables_are_not(documents: list[str]) -> None:
    docstring = """
    Return the :func:`len` of *things* as ``int``, wrapped
    at the mar-
    gin of the page.

    >>> thing(1)
    2

    ============
    * The first point stands alone here.
    * The second one does so, too.

    +-----+-----+
    | a b | c d |

        value = function(argument)[0] ** 2

    See "the docs" for what it’s good for.
    """
    assert list(prose(docstring)) == [
        "Return the len of things as int, wrapped at the mar-gin of the page.",
        "The first point stands alone here.",
        "The second one does so, too.",
        'See "the docs" for what it\'s good for.',
    ]
    text = "\n".join(documents)
    assert [mark for mark in (">>>", "::=", "----", "====") if mark in text] == []


def make_library(folder, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))


def test_tests_and_installed_packages_are_skipped_and_nothing_is_imported(tmp_path, monkeypatch) -> None:
    make_library(
        tmp_path,
        {
            "one.py": '"""The one module says this."""\nraise SystemExit\n# A comment that says something, too.\n',
            "two.py": 'def f():\n    """The ONE module says this. But this is new here."""\n',
            "test/three.py": '"""The test module says this."""\n',
            "site-packages/four.py": '"""The installed module says this."""\n',
            "pydoc_data/topics.py": 'topics = {"b": "The second topic is this.", "a": "The first topic is this."}\n',
        },
    )
    monkeypatch.setattr(stdlib_text, "_stdlib_folder", lambda: tmp_path)
    assert stdlib_documents() == [
        "The first topic is this.",
        "The second topic is this.",
        "The one module says this.\n\nA comment that says something, too.",
        "But this is new here.",
    ]


def test_two_stages_may_make_it_at_once(tmp_path, monkeypatch) -> None:
    """Python code that the garbage collector runs, as libraries have it, lets the other thread in amidst a parse."""
    function = "def f():\n if 1:\n  for i in range(3):\n   return [[i + 2 * (3 - i)], {4: [5, (6, 7)]}]\n"
    said = '"""The module says this, {}."""\n'
    make_library(tmp_path, {f"{i}.py": said.format("abcdefghij"[i]) + 100 * function for i in range(10)})
    monkeypatch.setattr(stdlib_text, "_stdlib_folder", lambda: tmp_path)
    thresholds, interval, let_in = gc.get_threshold(), sys.getswitchinterval(), lambda *_: sum(range(30))
    gc.callbacks.append(let_in)
    gc.set_threshold(50, 5, 5)
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as threads:
            first, second = (threads.submit(stdlib_documents) for _ in range(2))
            assert first.result() == second.result()
            assert len(first.result()) == 10
    finally:
        gc.callbacks.remove(let_in)
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)


def test_the_fingerprint_follows_the_files(tmp_path, monkeypatch) -> None:
    make_library(tmp_path, {"one.py": "x = 1\n"})
    monkeypatch.setattr(stdlib_text, "_stdlib_folder", lambda: tmp_path)
    before = stdlib_fingerprint()
    assert before == stdlib_fingerprint()
    make_library(tmp_path, {"two.py": "x = 1\n"})
    assert before != stdlib_fingerprint()


def test_a_python_without_sources_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(stdlib_text, "_stdlib_folder", lambda: tmp_path)
    with pytest.raises(InputError, match=r"no Python source files.*corpus\.path"):
        stdlib_documents()
