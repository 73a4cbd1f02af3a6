"""Rows as a model is fed them: BOS once, cut at the limit, in batches within a budget that hold every token once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import InputError
from tasks.prompts import Prompts, batches, padded, tokenise

BOS = 1


class Letters:
    """A tokenizer whose tokens are characters; "^" is BOS."""

    def __init__(self, bos_token_id: int | None = BOS) -> None:
        self.bos_token_id = bos_token_id

    def __call__(self, texts: list[str], add_special_tokens: bool, verbose: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[BOS if letter == "^" else ord(letter) for letter in text] for text in texts]}


def test_bos_comes_once_and_counts_towards_the_limit() -> None:
    found = tokenise(Letters(), ["ab", "^a", "", "abcd"], bos="add", drop_bos=True, longest=3)
    assert found == Prompts([[BOS, 97, 98], [BOS, 97], [BOS], [BOS, 97, 98]], [1, 1, 1, 1], 1)
    kept = tokenise(Letters(), ["ab"], bos="add", drop_bos=False, longest=3)
    assert kept == Prompts([[BOS, 97, 98]], [0], 0)
    without = tokenise(Letters(), ["ab", "^a"], bos="none", drop_bos=True, longest=3)
    assert without == Prompts([[97, 98], [BOS, 97]], [0, 1], 0)


def test_a_tokenizer_without_bos_can_only_do_without() -> None:
    with pytest.raises(InputError, match=r"no BOS token; set capture\.bos=none"):
        tokenise(Letters(None), ["a"], bos="add", drop_bos=True, longest=3)
    assert tokenise(Letters(None), ["a"], bos="none", drop_bos=True, longest=3) == Prompts([[97]], [0], 0)


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(1, 200))
def test_batches_hold_every_row_with_tokens_once_within_the_budget(lengths: list[int], budget: int) -> None:
    found = list(batches(lengths, budget))
    assert sorted(row for batch in found for row in batch) == [i for i, n in enumerate(lengths) if n]
    for batch in found:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= budget


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 40))
def test_what_counts_in_padded_batches_is_every_token_that_is_not_skipped_once(lengths: list[int], budget: int) -> None:
    ids = [[100 * row + position + 1 for position in range(length)] for row, length in enumerate(lengths)]
    skipped = [min(row % 2, length) for row, length in enumerate(lengths)]
    kept: dict[int, list[int]] = {}
    for rows, ids_BL, kept_BL in padded(Prompts(ids, skipped, 0), budget):
        for row, tokens, mask in zip(rows, ids_BL, kept_BL, strict=True):
            assert tokens[: len(ids[row])].tolist() == ids[row] and not tokens[len(ids[row]) :].any()
            kept[row] = tokens[mask].tolist()
    assert kept == {row: ids[row][skipped[row] :] for row in range(len(ids)) if ids[row]}


class Talker(Letters):
    """With a template that tells the date, and brings BOS itself."""

    chat_template = "^{{ strftime_now('%Y-%m-%d') }}{% for message in messages %}{{ message.content }}{% endfor %}"

    def get_chat_template(self) -> str:
        return self.chat_template

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, chat_template: str) -> str:
        import jinja2

        assert not tokenize
        if messages[0]["role"] == "system":
            raise ValueError("no system messages")
        return jinja2.Template(chat_template).render(messages=messages)


def test_chats_go_through_the_template_on_a_fixed_day() -> None:
    chat = '[{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}]'
    found = tokenise(Talker(), [chat], bos="add", drop_bos=True, longest=99, chats=True)
    assert found == Prompts([[BOS, *b"2024-07-26abc"]], [1], 0)
    with pytest.raises(InputError, match=r"refuses the chat .*no system messages"):
        tokenise(
            Talker(), ['[{"role": "system", "content": ""}]'], bos="add", drop_bos=True, longest=9, chats=True
        )
    silent = Talker()
    silent.chat_template = None
    with pytest.raises(InputError, match="has no chat template; take an instruction-tuned model"):
        tokenise(silent, [chat], bos="add", drop_bos=True, longest=9, chats=True)
