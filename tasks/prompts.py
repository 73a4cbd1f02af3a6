"""Rows of text as a language model is fed them: tokenised, sorted by length into batches, padded on the right.

Capture reads the corpus so, and whoever measures an autoencoder on text must read it the same way.

Shapes: B rows of a batch, L padded length.
"""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

TEXTS_AT_ONCE = 1000
FIXED_DAY = (  # before a chat template: the day that Llama's templates say where they cannot know it
    "{%- macro strftime_now(format) -%}"
    "{{- {'%Y-%m-%d': '2024-07-26'}.get(format, '26 Jul 2024') -}}"
    "{%- endmacro -%}"
)


class Prompts(NamedTuple):
    """Tokenised rows; a row without tokens stays in its place."""

    ids: list[list[int]]  # what the model is fed
    skipped: list[int]  # how many of its first tokens (BOS) are fed but neither stored nor measured
    cut: int  # rows that were longer than the limit


class Batch(NamedTuple):
    """Some rows, padded on the right to the longest of them."""

    rows: list[int]  # their numbers
    ids_BL: "Tensor"  # int64
    kept_BL: "Tensor"  # bool: the tokens that count, neither padding nor skipped


def tokenise(
    tokenizer: Any, texts: list[str], *, bos: str, drop_bos: bool, longest: int, chats: bool = False
) -> Prompts:
    """Tokens of each text, at most `longest`, BOS included; `bos` and `drop_bos` as in CaptureSpec.

    Chats (JSON lists of messages) go through the tokenizer's chat template, whose special tokens are tokens like any.
    Raises InputError when a BOS is to be added and the tokenizer has none, or a template for chats.
    """
    bos_id = tokenizer.bos_token_id
    if bos == "add" and bos_id is None:
        raise InputError("capture.bos is 'add', but the model's tokenizer has no BOS token; set capture.bos=none.")
    ids, cut = [], 0
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = texts[start : start + TEXTS_AT_ONCE]
        if chats:
            some = [_as_read(tokenizer, chat) for chat in some]
        for row in tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]:
            if bos == "add" and row[:1] != [bos_id]:
                row = [bos_id, *row]
            cut += len(row) > longest
            ids.append(row[:longest])
    skipped = [int(drop_bos and bos_id is not None and row[:1] == [bos_id]) for row in ids]
    return Prompts(ids, skipped, cut)


def _as_read(tokenizer: Any, chat: str) -> str:
    """A conversation as the model reads it. Templates that tell today's date get the same one on every day."""
    if not tokenizer.chat_template:
        raise InputError(
            "corpus.unit is 'chat', but the model's tokenizer has no chat template; take an instruction-tuned model, "
            "or corpus.unit=document."
        )
    try:
        template = FIXED_DAY + tokenizer.get_chat_template()
        return str(tokenizer.apply_chat_template(json.loads(chat), tokenize=False, chat_template=template))
    except Exception as error:  # a template is a program of the model's maker, and may raise what it likes
        raise InputError(f"The model's chat template refuses the chat {chat[:80]!r}: {error}. Leave it out.") from error


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Numbers of rows, longest first, so that rows x longest row stays within `budget` (a longer row is alone).

    Longest first: what does not fit into memory fails in the first second. Rows without tokens are in no batch.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        if lengths[row] == 0:
            break
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def padded(prompts: Prompts, budget: int) -> Iterator[Batch]:
    """The rows in batches of at most `budget` tokens, padding included."""
    import torch

    for rows in batches([len(row) for row in prompts.ids], budget):
        longest = len(prompts.ids[rows[0]])
        ids_BL = torch.tensor([prompts.ids[row] + [0] * (longest - len(prompts.ids[row])) for row in rows])
        lengths_B1 = torch.tensor([len(prompts.ids[row]) for row in rows]).unsqueeze(1)
        skipped_B1 = torch.tensor([prompts.skipped[row] for row in rows]).unsqueeze(1)
        position_L = torch.arange(longest)
        yield Batch(rows, ids_BL, (position_L >= skipped_B1) & (position_L < lengths_B1))
