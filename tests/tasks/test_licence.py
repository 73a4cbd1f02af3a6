"""Whose text and model it was, and under which terms, is read from cards and kept in manifests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.artifacts import Store
from tasks.corpus import CORPUS, CorpusSpec
from tasks.licence import licence_in
from tests.servers.hub import COMMIT, running_hub


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n", "apache-2.0"),
        ("---\nlicense: [mit, cc-by-4.0]\n---\n", "mit, cc-by-4.0"),
        ("---\nlicense: other\nlicense_name: llama-community\n---\n", "llama-community"),
        ("---\nlicense: other\n---\n", "other"),
        ("# No front matter\n---\nlicense: mit\n---\n", "not stated"),
        ("---\ntags: [x]\n---\n", "not stated"),
        ("---\n: : {{\n---\n", "not stated"),
        ("", "not stated"),
        (None, "not stated"),
    ],
)
def test_what_a_card_says(card: str | None, said: str, tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence_in(tmp_path) == said


def test_a_corpus_carries_it(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("The cat sat on the mat. It was raining all day.\n")
    (texts / "README.md").write_text("---\nlicense: cc0-1.0\n---\n")
    spec = CorpusSpec(path=str(texts / "a.txt"), min_characters=1)
    built = CORPUS.build(Store(str(tmp_path / "store")), spec).artifact
    assert built.summary["licence"] == "cc0-1.0"
    assert built.manifest.summary["licence"] == "cc0-1.0"


def test_the_hub_is_asked_and_may_be_away(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: odc-by\n---\n")
    code = (
        "from tasks.licence import licence_on_hub as ask\n"
        f"print(*(ask(name, '{COMMIT}', kind) for name, kind in (('tiny/open', 'model'), ('tiny/open', 'dataset'), "
        "('tiny/gated', 'model'))), sep='|')"
    )
    with running_hub(folder) as endpoint:
        environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "odc-by|odc-by|not stated", done.stderr
    away = environment | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "other")}
    done = subprocess.run([sys.executable, "-c", code], env=away, capture_output=True, text=True)
    assert done.stdout.strip() == "not stated|not stated|not stated", done.stderr
