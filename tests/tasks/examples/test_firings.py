"""The per-latent collection against a plain Python account of the same rows, and the law of its merge."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.examples.firings import (
    NO_POSITION,
    Collection,
    Firings,
    Quota,
    Rows,
    collect,
    in_score_half,
    merge,
)

N_LATENTS = 5
QUOTA = Quota(top=3, label=4, score=6, random_tokens=7, seed=11)

# rows[r][position] = {latent: activation}; few distinct activations, so that ties happen
activation_sets = st.dictionaries(
    st.integers(0, N_LATENTS - 1), st.sampled_from([0.25, 0.5, 1.0, 1.5, 3.0]), max_size=N_LATENTS
)
texts = st.lists(st.lists(activation_sets, max_size=6), max_size=14)


def as_arrays(rows, first_row_id=0):
    tokens = [token for row in rows for token in row]
    firings = [sorted(token.items()) for token in tokens]
    flat = [pair for token in firings for pair in token]
    firings = Firings(
        np.cumsum([0, *(len(token) for token in firings)], dtype=np.int64),
        np.array([latent for latent, _ in flat], dtype=np.int32),
        np.array([value for _, value in flat], dtype=np.float32),
    )
    starts = np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64)
    return firings, Rows(np.arange(first_row_id, first_row_id + len(rows), dtype=np.int64), starts)


def whole(rows, first_row_id=0):
    return collect(*as_arrays(rows, first_row_id), N_LATENTS, QUOTA)


def assert_same(one: Collection, other: Collection):
    assert (one.rows, one.tokens) == (other.rows, other.tokens)
    for name in ("count", "score_count", "maximum"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_allclose(one.total, other.total, rtol=1e-12)
    for name in ("top", "label", "score", "label_random", "score_random"):
        for field in ("latent", "order", "row_id", "position", "activation", "silent"):
            left, right = (getattr(getattr(part, name), field) for part in (one, other))
            np.testing.assert_array_equal(left, right, err_msg=f"{name}.{field}")


@settings(max_examples=60, deadline=None)
@given(rows=texts, cuts=st.lists(st.integers(0, 14), max_size=4), shuffle=st.randoms(use_true_random=False))
def test_any_cut_merged_in_any_order_is_the_whole(rows, cuts, shuffle):
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    parts = [whole(rows[start:end], start) for start, end in itertools.pairwise(edges)]
    shuffle.shuffle(parts)
    assert_same(functools.reduce(merge, parts), whole(rows))


@settings(max_examples=40, deadline=None)
@given(parts=st.tuples(texts, texts, texts))
def test_merge_is_associative(parts):
    starts = np.cumsum([0, *(len(part) for part in parts)])
    a, b, c = (whole(part, int(start)) for part, start in zip(parts, starts, strict=False))
    assert_same(merge(merge(a, b), c), merge(a, merge(b, c)))


@settings(max_examples=60, deadline=None)
@given(rows=texts, cut=st.integers(0, 14))
def test_entries_left_out_early_would_not_have_been_kept(rows, cut):
    first = whole(rows[:cut])
    firings, later = as_arrays(rows[cut:], cut if cut < len(rows) else len(rows))
    assert_same(merge(first, collect(firings, later, N_LATENTS, QUOTA, so_far=first)), whole(rows))


@settings(max_examples=60, deadline=None)
@given(rows=texts)
def test_collection_agrees_with_a_plain_account(rows):
    found = whole(rows)
    score_half = in_score_half(np.arange(len(rows)), QUOTA.seed)
    firings = [
        (latent, row_id, position, value)
        for row_id, row in enumerate(rows)
        for position, token in enumerate(row)
        for latent, value in token.items()
    ]
    for latent in range(N_LATENTS):
        mine = [(row_id, position, value) for which, row_id, position, value in firings if which == latent]
        held_out = [entry for entry in mine if score_half[entry[0]]]
        assert found.count[latent] == len(mine)
        assert found.score_count[latent] == len(held_out)
        assert found.maximum[latent] == max((value for *_, value in mine), default=0)
        best = {}
        for row_id, position, value in mine:  # the first of the strongest tokens of each row
            if row_id not in best or value > best[row_id][1]:
                best[row_id] = (position, value)
        ranked = sorted(((-value, row_id, position) for row_id, (position, value) in best.items()))[: QUOTA.top]
        top = found.top.take(found.top.latent == latent)
        assert list(zip(-top.activation, top.row_id, top.position, strict=True)) == ranked
        for entries, population, size in (
            (found.score, held_out, QUOTA.score),
            (found.label, [entry for entry in mine if not score_half[entry[0]]], QUOTA.label),
        ):
            kept = entries.take(entries.latent == latent)
            triples = set(zip(kept.row_id, kept.position, kept.activation, strict=True))
            assert len(triples) == len(kept) == min(size, len(population))
            assert triples <= set(population)


@settings(max_examples=60, deadline=None)
@given(rows=texts)
def test_the_silent_position_is_silent_and_missing_only_when_the_latent_always_fires(rows):
    found = whole(rows)
    for entries in (found.label, found.score):
        for latent, row_id, silent in zip(entries.latent, entries.row_id, entries.silent, strict=True):
            if silent == NO_POSITION:
                assert all(latent in token for token in rows[row_id])
            else:
                assert latent not in rows[row_id][silent]


def test_every_silent_position_of_a_row_is_drawn_equally_often():
    row = [{0: 1.0} if position in (1, 2, 5) else {} for position in range(8)]
    firings, rows = as_arrays([row] * 4000)
    found = collect(firings, rows, 1, Quota(top=1, label=20000, score=20000, random_tokens=1, seed=0))
    drawn = np.bincount(np.concatenate([found.label.silent, found.score.silent]), minlength=8)
    assert drawn[[1, 2, 5]].sum() == 0
    np.testing.assert_allclose(drawn[[0, 3, 4, 6, 7]] / drawn.sum(), 0.2, atol=0.02)


def test_the_sample_is_uniform_over_activations_and_not_over_rows():
    rows = [[{0: 1.0}] * (9 if row_id % 2 else 1) for row_id in range(2000)]
    firings, where = as_arrays(rows)
    found = collect(firings, where, 1, Quota(top=1, label=1000, score=1000, random_tokens=1, seed=3))
    odd = np.concatenate([found.label.row_id, found.score.row_id]) % 2
    assert np.mean(odd) == pytest.approx(0.9, abs=0.03)


def test_halves_share_no_row_and_hold_about_as_many():
    rows = np.arange(10_000)
    half = in_score_half(rows, seed=5)
    assert 0.47 < half.mean() < 0.53
    assert not np.array_equal(half, in_score_half(rows, seed=6))
    found = whole([[dict.fromkeys(range(N_LATENTS), 1.0)]] * 50)
    assert not set(found.label.row_id) & set(found.score.row_id)
    assert not set(found.label_random.row_id) & set(found.score_random.row_id)
