"""Rows of text as a language model is fed them: tokenised, sorted by length into batches, padded on the right.

Capture reads the corpus so, and whoever measures an autoencoder on text must read it the same way.

Shapes: B rows of a batch, L padded length.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

TEXTS_AT_ONCE = 1000


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


def tokenise(tokenizer: Any, texts: list[str], *, bos: str, drop_bos: bool, longest: int) -> Prompts:
    """Tokens of each text, at most `longest`, BOS included; `bos` and `drop_bos` as in CaptureSpec.

    Raises InputError when a BOS is to be added and the tokenizer has none.
    """
    bos_id = tokenizer.bos_token_id
    if bos == "add" and bos_id is None:
        raise InputError("capture.bos is 'add', but the model's tokenizer has no BOS token; set capture.bos=none.")
    ids, cut = [], 0
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = texts[start : start + TEXTS_AT_ONCE]
        for row in tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]:
            if bos == "add" and row[:1] != [bos_id]:
                row = [bos_id, *row]
            cut += len(row) > longest
            ids.append(row[:longest])
    skipped = [int(drop_bos and bos_id is not None and row[:1] == [bos_id]) for row in ids]
    return Prompts(ids, skipped, cut)


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
