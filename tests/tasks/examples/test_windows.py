"""Windows of text with real tokenizers: byte-level BPE trained here, and sentencepiece where the shared model is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.examples.codes import Stored
from tasks.examples.windows import TokenText, cut

WORDS = ["hello", "wörld", "naïve", "don't", "日本語", "😀", "x_1", "two\nlines", "  ", "�", "a-b", "…", "ไทย"]
texts = st.lists(st.sampled_from(WORDS) | st.text(max_size=4), min_size=1, max_size=8).map(" ".join)


@pytest.fixture(scope="module")
def byte_level():
    """A small byte-level BPE, in which most characters beyond ASCII are several tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=280, initial_alphabet=alphabet, special_tokens=["<s>"], show_progress=False
    )
    tokenizer.train_from_iterator(["hello hello world the quick brown fox don't"] * 20, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>")


@pytest.fixture(scope="module")
def sentencepiece(shared):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(shared / "models/stories260K")


def stored(rows):
    """A code store in which nothing fires."""
    tokens = np.array([token for row in rows for token in row], dtype=np.int32)
    starts = np.cumsum([0, *(len(row) for row in rows)])
    nothing = np.zeros(0)
    return Stored(tokens, np.zeros(len(tokens) + 1, np.int64), nothing, nothing, np.arange(len(rows)), starts)


def windows(tokenizer, rows, hits, before, after):
    """For each hit: its row, the range of its window, its strings, its word."""
    store = stored(rows)
    text = TokenText(tokenizer, np.unique(store.tokens))
    found = cut(store, text, np.array(hits), before, after)
    index, strings = text.strings(found)
    for n, hit in enumerate(hits):
        place = slice(found.starts[n], found.starts[n + 1])
        pieces = [strings[i] for i in index[place]]
        row = int(np.searchsorted(store.row_starts, hit, side="right") - 1)
        assert found.tokens[place][found.hit[n]] == hit
        yield row, found.ids[place].tolist(), pieces, pieces[found.word_start[n] : found.word_end[n]]


def check_whole_rows(tokenizer, said):
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in said]
    rows = [row for row in rows if row]
    if not rows:
        return
    firsts = np.cumsum([0, *(len(row) for row in rows)])[:-1]
    for row, ids, pieces, _ in windows(tokenizer, rows, firsts.tolist(), 0, 10_000):
        assert ids == rows[row]
        assert "".join(pieces).strip(" ") == tokenizer.decode(ids).strip(" ")


@settings(max_examples=60, deadline=None)
@given(said=st.lists(texts, min_size=1, max_size=3))
def test_strings_of_a_whole_row_join_to_its_text(byte_level, said):
    check_whole_rows(byte_level, said)


@settings(max_examples=40, deadline=None)
@given(said=st.lists(texts, min_size=1, max_size=3))
def test_sentencepiece_rows_too(sentencepiece, said):
    check_whole_rows(sentencepiece, said)


def test_sentencepiece_keeps_the_space_before_a_word(sentencepiece):
    ids = sentencepiece.encode("Once upon a time", add_special_tokens=False)
    ((_, _, pieces, _),) = windows(sentencepiece, [ids], [len(ids) - 1], 1, 0)
    assert "".join(pieces).startswith(" ")


@pytest.mark.parametrize(
    ("text", "inside", "word"),
    [
        ("say hello there", "ell", "hello"),
        ("a naïve idea", "na", "naïve"),
        ("it is wörldwide.", "wide", "wörldwide"),
        ("they don't know", "'", "don't"),
        ("call snake_case now", "_", "snake_case"),
        ("end. Begin", ".", "."),
        ("left-right", "right", "right"),
    ],
)
def test_the_word_around_a_piece_is_whole(byte_level, text, inside, word):
    ids = byte_level.encode(text)
    hit = next(n for n in range(len(ids)) if len(byte_level.decode(ids[: n + 1])) > text.index(inside))
    ((_, _, _, found),) = windows(byte_level, [ids], [hit], 0, 0)
    assert "".join(found).strip() == word


def test_windows_end_with_their_row_and_never_cut_a_word(byte_level):
    rows = [byte_level.encode("hello brownish fox"), byte_level.encode("wonderful worldly quickness")]
    hits = range(sum(map(len, rows)))
    for row, _, pieces, word in windows(byte_level, rows, list(hits), 1, 1):
        whole = byte_level.decode(rows[row])
        assert set("".join(pieces).split()) <= set(whole.split())
        assert "".join(word).strip() in whole.split()


def test_a_special_token_is_shown(byte_level):
    ids = [byte_level.bos_token_id, *byte_level.encode("hello", add_special_tokens=False)]
    ((_, _, pieces, word),) = windows(byte_level, [ids], [0], 0, 5)
    assert "".join(pieces) == "<s>hello"
    assert word == ["<s>"]
