import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.model.bigram import SMOOTHINGS, baseline_bits, count_bigrams, log_bigram, low_rank_start

streams = st.lists(st.integers(0, 6), min_size=2, max_size=60)


@settings(deadline=None)
@given(streams)
def test_counts_are_those_of_a_plain_loop(ids: list[int]) -> None:
    counts = count_bigrams(torch.tensor(ids), 7)
    for a in range(7):
        for b in range(7):
            assert counts[a, b] == sum(pair == (a, b) for pair in itertools.pairwise(ids))


@settings(deadline=None)
@given(streams, st.sampled_from(SMOOTHINGS))
def test_each_row_is_a_distribution(ids: list[int], smoothing: float) -> None:
    rows = log_bigram(count_bigrams(torch.tensor(ids), 7), smoothing).exp().sum(dim=1)
    torch.testing.assert_close(rows, torch.ones(7))


@settings(deadline=None)
@given(streams, streams)
def test_the_baseline_takes_the_best_smoothing(ids: list[int], held_out: list[int]) -> None:
    counts = count_bigrams(torch.tensor(ids), 7)
    each = []
    for smoothing in SMOOTHINGS:
        table = log_bigram(counts, smoothing).double()
        each.append(-sum(table[a, b].item() for a, b in itertools.pairwise(held_out)) / math.log(2))
    assert math.isclose(baseline_bits(counts, torch.tensor(held_out)), min(each), rel_tol=1e-4)


def test_a_start_of_more_dimensions_is_nearer_to_the_bigram() -> None:
    generator = torch.Generator().manual_seed(1)
    transition = torch.rand(24, 24, generator=generator).pow(4)
    ids = [0]
    for _ in range(4000):
        ids.append(int(torch.multinomial(transition[ids[-1]], 1, generator=generator)))
    stream = torch.tensor(ids)
    counts = count_bigrams(stream, 24)
    bits = {}
    for rank in (1, 8, 24):
        start = low_rank_start(counts, rank, torch.Generator().manual_seed(0))
        torch.testing.assert_close(start.embedding_VD.square().mean(dim=1), torch.ones(24))
        table = (start.embedding_VD @ start.head_VD.T).log_softmax(dim=1)
        bits[rank] = -table[stream[:-1], stream[1:]].mean().item() / math.log(2)
    bigram = baseline_bits(counts, stream) / 4000
    assert bigram < bits[24] < bits[8] < bits[1] < math.log2(24)
    assert bits[24] - bigram < (math.log2(24) - bigram) / 2
