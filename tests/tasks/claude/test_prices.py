"""What Claude costs."""

import pytest

from tasks.claude.prices import PRICES, Usage, bill_dollars, estimate_dollars, price


def test_prices_are_for_batches_half_and_unknown_models_count_as_the_dearest() -> None:
    assert estimate_dollars("claude-haiku-4-5", 1_000_000, 1_000_000) == pytest.approx(3.0)
    assert estimate_dollars("claude-haiku-4-5", 1_000_000, 1_000_000, batch=False) == pytest.approx(6.0)
    assert price("claude-haiku-4-5-20251001") == PRICES["claude-haiku-4-5"]
    assert price("claude-next") == max(PRICES.values())
    assert bill_dollars("claude-haiku-4-5", Usage(0, 1_000_000, 1_000_000, 0), batch=False) == pytest.approx(2.1)
