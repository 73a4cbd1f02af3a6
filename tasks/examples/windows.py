"""The text around a token: which tokens of its row to show, their strings, and the whole word it belongs to.

    text = TokenText(tokenizer, used_token_ids)
    windows = cut(store, text, token_numbers, before=24, after=8)
    strings = text.strings(windows)              # concatenated, a window's strings read as the text

Shapes: E windows, W tokens over all windows.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tasks.examples.codes import Stored

    Integers = NDArray[np.int64]

LONGEST_WORD = 16  # tokens to each side of the hit that may belong to its word
BROKEN = "\ufffd"  # what a decoder writes for bytes that are not a whole character


class Windows(NamedTuple):
    """E stretches of tokens, one after the other in flat arrays of W tokens."""

    starts: Integers  # (E + 1) into the flat arrays
    tokens: Integers  # (W) numbers of the tokens in the code store
    ids: Integers  # (W) token ids
    hit: Integers  # (E) index of the token in question within its window
    word_start: Integers  # (E) its whole word is window[word_start:word_end]
    word_end: Integers


class TokenText:
    """Strings of token ids such that joining neighbours gives the text, whatever kind of tokenizer it is."""

    def __init__(self, tokenizer: Any, token_ids: Integers) -> None:
        import numpy as np

        self._tokenizer = tokenizer
        self._anchor = _anchor(tokenizer)
        self._runs: dict[tuple[int, ...], list[str]] = {}
        size = int(token_ids.max(initial=0)) + 1
        self._place = np.zeros(size, dtype=np.int64)
        self._place[token_ids] = np.arange(len(token_ids))
        self.pieces = self.decode(token_ids.tolist())
        self.begins_inside = np.zeros(size, dtype=bool)  # could continue a word to its left
        self.ends_inside = np.zeros(size, dtype=bool)
        self._broken = np.zeros(size, dtype=bool)
        self.begins_inside[token_ids] = [not piece or _in_word(piece[0]) for piece in self.pieces]
        self.ends_inside[token_ids] = [not piece or _in_word(piece[-1]) for piece in self.pieces]
        self._broken[token_ids] = [BROKEN in piece for piece in self.pieces]

    def decode(self, token_ids: list[int]) -> list[str]:
        """Each token's string by itself."""
        return self._decode([[token] for token in token_ids])

    def strings(self, windows: Windows) -> tuple[Integers, list[str]]:
        """Index (W) of each token's string in the returned list of strings."""
        import numpy as np

        strings = list(self.pieces)
        index = self._place[windows.ids]
        broken = np.flatnonzero(self._broken[windows.ids])
        if len(broken):
            window = np.searchsorted(windows.starts, broken, side="right")
            breaks = np.flatnonzero((np.diff(broken) != 1) | (np.diff(window) != 0)) + 1
            for run in np.split(broken, breaks):
                texts = self._split_run(tuple(windows.ids[run].tolist()))
                index[run] = np.arange(len(strings), len(strings) + len(run))
                strings.extend(texts)
        return index, strings

    def _split_run(self, run: tuple[int, ...]) -> list[str]:
        """Strings of neighbouring tokens that are parts of characters: a character goes to the token that ends it."""
        if run not in self._runs:
            texts, told = [], 0
            for whole in self._decode([list(run[: n + 1]) for n in range(len(run))]):
                complete = whole.rstrip(BROKEN)
                texts.append(complete[told:])
                told = max(told, len(complete))
            texts[-1] += whole[told:]  # what stays incomplete at the window's end is shown as such
            self._runs[run] = texts
        return self._runs[run]

    def _decode(self, sequences: list[list[int]]) -> list[str]:
        """Text of token sequences inside a text: after an anchor, so that no decoder strips a leading space."""
        anchor = self._anchor
        told = len(_texts(self._tokenizer, [anchor])[0]) if anchor else 0
        return [text[told:] for text in _texts(self._tokenizer, [anchor + sequence for sequence in sequences])]


def cut(store: Stored, text: TokenText, tokens: Integers, before: int, after: int) -> Windows:
    """Windows around tokens of the store, within their rows, widened so that no word is cut at either end."""
    import numpy as np

    row = np.searchsorted(store.row_starts, tokens, side="right") - 1
    first, last = store.row_starts[row], store.row_starts[row + 1]

    def joined(token: Integers) -> NDArray[np.bool_]:
        """Whether a token, not the first of its row, continues the word of the token before it."""
        inside = (token > first) & (token < last)
        here, there = np.where(inside, token, tokens), np.where(inside, token - 1, tokens)
        return inside & text.begins_inside[store.tokens[here]] & text.ends_inside[store.tokens[there]]

    def outwards(token: Integers, step: int) -> Integers:
        for _ in range(LONGEST_WORD):
            token = token + step * joined(token)
        return token

    word_start, word_end = outwards(tokens, -1), outwards(tokens + 1, 1)
    start = np.minimum(outwards(np.maximum(first, tokens - before), -1), word_start)
    end = np.maximum(outwards(np.minimum(last, tokens + after + 1), 1), word_end)
    starts = np.concatenate([[0], np.cumsum(end - start)])
    flat = np.arange(starts[-1]) + np.repeat(start - starts[:-1], end - start)
    ids = store.tokens[flat].astype(np.int64)
    return Windows(starts, flat, ids, tokens - start, word_start - start, word_end - start)


def _anchor(tokenizer: Any) -> list[int]:
    return list(tokenizer.encode("a", add_special_tokens=False))[-1:]


def _texts(tokenizer: Any, sequences: list[list[int]]) -> list[str]:
    return list(tokenizer.batch_decode(sequences, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _in_word(character: str) -> bool:
    """Letters, digits, marks, underscores, apostrophes, parts of a character; not scripts without spaces."""
    if character in "_'’" + BROKEN:
        return True
    if unicodedata.category(character)[0] not in "LNM":
        return False
    return not any(name in unicodedata.name(character, "") for name in ("CJK", "HIRAGANA", "KATAKANA", "THAI"))
