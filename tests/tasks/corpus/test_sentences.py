import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus.sentences import split_paragraphs, split_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Ada met J. Smith on Jan. 5. They left.", ["Dr. Ada met J. Smith on Jan. 5.", "They left."]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        (
            "Use e.g. Python (see Fig. 3). It is v2.0 of os.path.",
            ["Use e.g. Python (see Fig. 3).", "It is v2.0 of os.path."],
        ),
        ("3. Then the third\nnext line", ["3. Then the third", "next line"]),
        ("Wait... Really?! Yes.", ["Wait...", "Really?!", "Yes."]),
        ("It was I. She knew.", ["It was I.", "She knew."]),
        ("猫が好き。犬も好き！", ["猫が好き。", "犬も好き！"]),
        (" \n\n ", []),
    ],
)
def test_the_rule(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_paragraphs_lie_between_blank_lines() -> None:
    assert split_paragraphs("\n\na\nb\n \t\nc\n\n\n") == ["a\nb", "c"]


@settings(deadline=None)
@given(st.text(alphabet="aB1 .!?\n\"')。Drvs", max_size=80) | st.text(max_size=80))
def test_no_character_but_white_space_is_lost(text: str) -> None:
    bare = re.sub(r"\s+", "", text)
    for split in (split_sentences, split_paragraphs):
        parts = split(text)
        assert re.sub(r"\s+", "", "".join(parts)) == bare
        assert all(part and part == part.strip() for part in parts)


@settings(deadline=None)
@given(st.text(alphabet="aB1 .!?\n", max_size=80))
def test_a_sentence_holds_no_newline(text: str) -> None:
    assert not any("\n" in sentence for sentence in split_sentences(text))
