"""What Claude costs: a table of prices with its date, an estimate before anything is sent, the bill afterwards.

The estimate is an upper bound: every answer as long as it may be, nothing read from the prompt cache.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

PRICES_AS_OF = "2026-11-21"
# US dollars per million tokens (input, output), list price of the Messages API; batches cost half of both.
PRICES: dict[str, tuple[float, float]] = {
    "claude-haiku-5-5": (0.10, 0.50),  # prompts up to 100,000 tokens; ours are far below
    "claude-haiku-4-5": (1.00, 5.00),
    "claude-sonnet-5-5": (2.00, 10.00),
    "claude-sonnet-5": (2.00, 10.00),
    "claude-sonnet-4-6": (3.00, 15.00),
    "claude-sonnet-4-5": (3.00, 15.00),
    "claude-opus-5-5": (4.00, 20.00),
    "claude-opus-5": (5.00, 25.00),
    "claude-opus-4-6": (5.00, 25.00),
    "claude-opus-4-5": (5.00, 25.00),
    "claude-fable-5-1": (10.00, 50.00),
    "claude-fable-5": (10.00, 50.00),
}
BATCH_DISCOUNT = 0.5
CACHE_WRITE_FACTOR, CACHE_READ_FACTOR = 2.0, 0.1  # of the input price, for a cache that lives one hour
BYTES_PER_TOKEN = 3.0  # English has about 4; marked sub-words and newer tokenizers have fewer


class Usage(NamedTuple):
    """Tokens as the service bills them."""

    input_tokens: int = 0  # neither written to nor read from the cache
    cache_write_tokens: int = 0
    cache_read_tokens: int = 0
    output_tokens: int = 0

    def plus(self, other: "Usage") -> "Usage":
        """The sum."""
        return Usage(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))


def price(model: str) -> tuple[float, float]:
    """Dollars per million input and output tokens; a model outside the table counts as the dearest one in it."""
    known = [name for name in PRICES if model == name or model.startswith(f"{name}-20")]  # with a date: -20251001
    return PRICES[known[0]] if known else max(PRICES.values())


def tokens_of(size: int) -> int:
    """Upper estimate of the tokens in a text of so many bytes."""
    return math.ceil(size / BYTES_PER_TOKEN)


def estimate_dollars(model: str, input_tokens: int, output_tokens: int, batch: bool = True) -> float:
    """Dollars for so many tokens, with nothing read from the cache."""
    dollars_in, dollars_out = price(model)
    dollars = (input_tokens * dollars_in + output_tokens * dollars_out) / 1e6
    return dollars * BATCH_DISCOUNT if batch else dollars


def bill_dollars(model: str, usage: Usage, batch: bool = True) -> float:
    """Dollars for the tokens that the service reports."""
    dollars_in, dollars_out = price(model)
    cached = usage.cache_write_tokens * CACHE_WRITE_FACTOR + usage.cache_read_tokens * CACHE_READ_FACTOR
    dollars = ((usage.input_tokens + cached) * dollars_in + usage.output_tokens * dollars_out) / 1e6
    return dollars * BATCH_DISCOUNT if batch else dollars


def usage_of(messages: Iterable[Mapping[str, Any]]) -> Usage:
    """Sum of the usage of messages as the service returned them."""
    total = Usage()
    for message in messages:
        given = message.get("usage") or {}
        names = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens")
        total = total.plus(Usage(*(int(given.get(name) or 0) for name in names)))
    return total
