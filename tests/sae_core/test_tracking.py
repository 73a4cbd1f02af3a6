"""What is told of each latent's life against a count of one row and one latent at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sae_core.tracking import L0_DECAY, WINDOWS, Tracking

N = 5
FIRED = st.lists(st.lists(st.sampled_from([0, 0, 0, 1, 3]), min_size=N, max_size=N), min_size=1, max_size=30)


def tracked(fired: list[list[int]], batch_size: int, dead_after_rows: int) -> Tracking:
    tracking = Tracking(N, batch_size=batch_size, dead_after_rows=dead_after_rows)
    for number, row in enumerate(fired, start=1):
        tracking.add(torch.tensor(row), number)
    return tracking


def life(counts: list[int], batch_size: int, dead_after_rows: int) -> tuple:
    """Of one latent, by watching it step after step."""
    first = last = died = -1
    silent = deaths = revivals = 0
    dead = False
    for number, count in enumerate(counts, start=1):
        rows = number * batch_size
        if count:
            first, last, silent = (rows if first < 0 else first), rows, 0
            revivals += dead
            dead = False
            continue
        silent += batch_size
        if silent >= dead_after_rows and not dead:
            dead, died, deaths = True, rows, deaths + 1
    return sum(counts), first, last, deaths, revivals, died, dead


@settings(max_examples=100, deadline=None)
@given(fired=FIRED, batch_size=st.integers(1, 4), dead_after_rows=st.integers(1, 12))
def test_lives_are_those_of_a_watcher(fired, batch_size, dead_after_rows):
    found = tracked(fired, batch_size, dead_after_rows).lives(len(fired))
    expected = [life(list(counts), batch_size, dead_after_rows) for counts in zip(*fired, strict=True)]
    assert list(zip(*(column.tolist() for column in found), strict=True)) == expected


@settings(max_examples=100, deadline=None)
@given(fired=FIRED, batch_size=st.integers(1, 4), dead_after_rows=st.integers(1, 60))
def test_figures_are_those_of_their_definitions(fired, batch_size, dead_after_rows):
    figures = tracked(fired, batch_size, dead_after_rows).figures(len(fired))
    lives = [life(list(counts), batch_size, dead_after_rows) for counts in zip(*fired, strict=True)]
    silences = [len(fired) * batch_size - max(last, 0) for _, _, last, *_ in lives]
    for name, parts in WINDOWS.items():
        assert figures[name] == pytest.approx(sum(silence >= dead_after_rows / parts for silence in silences) / N)
    assert figures["never_fired_share"] == pytest.approx(sum(first < 0 for _, first, *_ in lives) / N)
    assert figures["deaths"] == sum(deaths for _, _, _, deaths, *_ in lives)
    assert figures["revivals"] == sum(revivals for *_, revivals, _, _ in lives)
    weights = [L0_DECAY ** (len(fired) - number) for number in range(1, len(fired) + 1)]
    l0 = [sum(row) / batch_size for row in fired]
    mean = sum(weight * value for weight, value in zip(weights, l0, strict=True)) / sum(weights)
    assert figures["l0_ema"] == pytest.approx(mean)


@settings(max_examples=30, deadline=None)
@given(fired=FIRED, stop=st.integers(0, 30))
def test_goes_on_from_its_tensors_to_the_bit(fired, stop):
    stop = min(stop, len(fired))
    whole, first, second = tracked(fired, 3, 7), tracked(fired[:stop], 3, 7), tracked(fired[-1:], 3, 7)
    for name, tensor in second.tensors().items():
        tensor.copy_(first.tensors()[name])
    for number in range(stop, len(fired)):
        second.add(torch.tensor(fired[number]), number + 1)
    assert all(torch.equal(tensor, second.tensors()[name]) for name, tensor in whole.tensors().items())
    assert whole.figures(len(fired)) == second.figures(len(fired))
    lives = zip(whole.lives(len(fired)), second.lives(len(fired)), strict=True)
    assert all(torch.equal(one, other) for one, other in lives)
