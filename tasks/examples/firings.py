"""What one pass over sparse codes collects for every latent, and how two such collections become one.

    found = functools.reduce(merge, (collect(firings, rows, n_latents, quota) for firings, rows in parts))

A collection's size is O(latents x kept), whatever the number of tokens. `merge` is associative and does not depend on
order, because what is kept is always "the smallest by a key that only the entry itself decides": the strongest rows
by activation, the uniform sample by a hash of (latent, row, position). So any way of cutting the rows into parts gives
the same collection (activation sums to float64 rounding). Rows are never cut: a part holds whole rows.

Shapes: T tokens, R rows, F firings (token, latent pairs with a positive activation), N latents, E kept entries.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

from tasks.hashing import stable_hash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]
    Floats = NDArray[np.float32]
    Keys = NDArray[np.uint64]
    Flags = NDArray[np.bool_]

NO_POSITION = -1


class Firings(NamedTuple):
    """Firings of consecutive tokens, as compressed rows: token t owns [starts[t], starts[t + 1])."""

    starts: Integers  # (T + 1)
    latents: NDArray[np.int32]  # (F), ascending within a token
    values: Floats  # (F), > 0


class Rows(NamedTuple):
    """Where the rows of text lie among those tokens: row r owns tokens [starts[r], starts[r + 1])."""

    ids: Integers  # (R)
    starts: Integers  # (R + 1)


@dataclass(frozen=True)
class Quota:
    """How many entries are kept: for each latent, and of random tokens in each half."""

    top: int
    label: int
    score: int
    random_tokens: int
    seed: int


@dataclass(frozen=True)
class Entries:
    """Some firings, sorted by (latent, order, row, position); or random tokens, with latent 0 and activation 0."""

    latent: Integers
    order: Keys  # the smallest are kept
    row_id: Integers
    position: Integers  # within the row
    activation: Floats
    silent: Integers  # a position of the same row where the latent is silent, or NO_POSITION

    def __len__(self) -> int:
        return len(self.latent)

    def take(self, index: Integers | Flags) -> Entries:
        """The entries at these indices, or where the mask is true."""
        return Entries(*(getattr(self, field.name)[index] for field in fields(self)))


@dataclass(frozen=True)
class Collection:
    """Everything one pass keeps. `label` and `score` are the two halves of the rows; halves share no row."""

    quota: Quota
    rows: int
    tokens: int
    count: Integers  # (N) activations
    score_count: Integers  # (N) activations in the score half
    total: NDArray[np.float64]  # (N) sum of the activations
    maximum: Floats  # (N)
    top: Entries  # one entry a row: its strongest token
    label: Entries  # uniform sample of the activations in the label half
    score: Entries
    label_random: Entries  # uniform sample of tokens, whatever fires there
    score_random: Entries

    @property
    def n_latents(self) -> int:
        """Number of latents, those that never fire included."""
        return len(self.count)


def in_score_half(row_ids: Integers, seed: int) -> Flags:
    """Whether each row belongs to the half that only scoring may see (a coin thrown once per row, by hash)."""
    import numpy as np

    return (stable_hash(seed, row_ids) & np.uint64(1)).astype(bool)


def collect(firings: Firings, rows: Rows, n_latents: int, quota: Quota, so_far: Collection | None = None) -> Collection:
    """What these rows have to offer. With `so_far`, entries that could not displace one kept there are left out early,
    which changes nothing in `merge(so_far, ...)` and saves sorting them."""
    import numpy as np

    lengths_R = np.diff(rows.starts)
    row_T = np.repeat(np.arange(len(rows.ids)), lengths_R)
    token_F = np.repeat(np.arange(len(row_T)), np.diff(firings.starts))
    row_F = row_T[token_F]
    latent_F = firings.latents.astype(np.int64)
    position_F = token_F - rows.starts[row_F]
    score_R = in_score_half(rows.ids, quota.seed)
    score_F = score_R[row_F]

    def entries(chosen: Integers, order: Keys) -> Entries:
        return Entries(
            latent_F[chosen],
            order,
            rows.ids[row_F[chosen]],
            position_F[chosen],
            firings.values[chosen],
            np.full(len(chosen), NO_POSITION, dtype=np.int64),
        )

    def strongest() -> Entries:
        order_F = _strongest_first(firings.values)
        chosen = np.flatnonzero(order_F <= _limits(so_far.top if so_far else None, n_latents, quota.top)[latent_F])
        by_row = np.lexsort((position_F[chosen], order_F[chosen], row_F[chosen], latent_F[chosen]))
        chosen = chosen[by_row]
        same = (np.diff(latent_F[chosen]) == 0) & (np.diff(row_F[chosen]) == 0)
        chosen = chosen[np.concatenate([np.ones(min(len(chosen), 1), dtype=bool), ~same])]
        return _keep(entries(chosen, order_F[chosen]), quota.top)

    order_F = stable_hash(quota.seed + 1, latent_F, rows.ids[row_F], position_F)

    def sample(mask_F: Flags, kept: Entries | None, size: int) -> Entries:
        chosen = np.flatnonzero(mask_F & (order_F <= _limits(kept, n_latents, size)[latent_F]))
        found = _keep(entries(chosen, order_F[chosen]), size)
        return _with_silent(found, rows, row_F * n_latents + latent_F, position_F, n_latents, quota.seed)

    strongest_N = np.zeros(n_latents, dtype=np.float32)
    np.maximum.at(strongest_N, latent_F, firings.values)
    return Collection(
        quota=quota,
        rows=len(rows.ids),
        tokens=len(row_T),
        count=np.bincount(latent_F, minlength=n_latents),
        score_count=np.bincount(latent_F[score_F], minlength=n_latents),
        total=np.asarray(np.bincount(latent_F, firings.values.astype(np.float64), n_latents), dtype=np.float64),
        maximum=strongest_N,
        top=strongest(),
        label=sample(~score_F, so_far.label if so_far else None, quota.label),
        score=sample(score_F, so_far.score if so_far else None, quota.score),
        label_random=_random_tokens(rows, row_T, ~score_R, quota),
        score_random=_random_tokens(rows, row_T, score_R, quota),
    )


def merge(one: Collection, other: Collection) -> Collection:
    """The collection of the rows of both. The two must not share a row."""
    import numpy as np

    def both(name: str, size: int) -> Entries:
        pair = (getattr(one, name), getattr(other, name))
        joined = Entries(*(np.concatenate([getattr(part, field.name) for part in pair]) for field in fields(Entries)))
        return _keep(joined, size)

    quota = one.quota
    return Collection(
        quota=quota,
        rows=one.rows + other.rows,
        tokens=one.tokens + other.tokens,
        count=one.count + other.count,
        score_count=one.score_count + other.score_count,
        total=one.total + other.total,
        maximum=np.maximum(one.maximum, other.maximum),
        top=both("top", quota.top),
        label=both("label", quota.label),
        score=both("score", quota.score),
        label_random=both("label_random", quota.random_tokens),
        score_random=both("score_random", quota.random_tokens),
    )


def _strongest_first(values: Floats) -> Keys:
    """A key that grows as a positive float32 shrinks: the bits of positive floats sort like the floats."""
    import numpy as np

    return np.uint64(0xFFFFFFFF) - np.ascontiguousarray(values, dtype=np.float32).view(np.uint32).astype(np.uint64)


def _keep(entries: Entries, size: int) -> Entries:
    """The `size` smallest entries of each latent, in order; ties go to the earlier row, then position."""
    import numpy as np

    entries = entries.take(np.lexsort((entries.position, entries.row_id, entries.order, entries.latent)))
    return entries.take(rank_in_group(entries.latent) < size)


def rank_in_group(group: Integers) -> Integers:
    """0, 1, 2, ... within each run of equal values of a sorted array."""
    import numpy as np

    first = np.concatenate([np.ones(min(len(group), 1), dtype=bool), np.diff(group) != 0])
    starts = np.flatnonzero(first)
    return np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))


def _limits(kept: Entries | None, n_latents: int, size: int) -> Keys:
    """For each latent the largest key that can still enter `kept`: that of its last entry once it is full."""
    import numpy as np

    limits_N = np.full(n_latents, np.iinfo(np.uint64).max)
    if kept is not None and len(kept):
        full = rank_in_group(kept.latent) == size - 1
        limits_N[kept.latent[full]] = kept.order[full]
    return limits_N


def _random_tokens(rows: Rows, row_T: Integers, mask_R: Flags, quota: Quota) -> Entries:
    """A uniform sample of the tokens of these rows."""
    import numpy as np

    tokens = np.flatnonzero(mask_R[row_T])
    row_ids, positions = rows.ids[row_T[tokens]], tokens - rows.starts[row_T[tokens]]
    nothing = np.zeros(len(tokens), dtype=np.int64)
    order = stable_hash(quota.seed + 2, row_ids, positions)
    activations = np.zeros(len(tokens), dtype=np.float32)
    found = Entries(nothing, order, row_ids, positions, activations, nothing + NO_POSITION)
    return _keep(found, quota.random_tokens)


def _with_silent(
    entries: Entries, rows: Rows, group_F: Integers, position_F: Integers, n_latents: int, seed: int
) -> Entries:
    """Give each entry a uniformly drawn position of its row at which its latent is silent, if there is one.

    group_F numbers (row, latent) pairs. The u-th silent position of a group is u plus the number of firings before it,
    and a firing at p lies before it exactly when p - (its rank among the group's firings) <= u.
    """
    import numpy as np

    if not len(entries):
        return entries
    by_id = np.argsort(rows.ids, kind="stable")
    row = by_id[np.searchsorted(rows.ids, entries.row_id, sorter=by_id)]
    groups, group = np.unique(row * n_latents + entries.latent, return_inverse=True)
    found_F = np.minimum(np.searchsorted(groups, group_F), len(groups) - 1)
    firing = np.flatnonzero(groups[found_F] == group_F)
    firing = firing[np.argsort(found_F[firing], kind="stable")]  # positions ascend within a group already
    rank = rank_in_group(found_F[firing])
    count = np.bincount(found_F[firing], minlength=len(groups))
    first = np.cumsum(count) - count

    length = np.diff(rows.starts)[row]
    free = length - count[group]
    draws = stable_hash(seed + 3, entries.latent, entries.row_id, entries.position)
    u = (draws % np.maximum(free, 1).astype(np.uint64)).astype(np.int64)
    stride = int(length.max()) + 1
    gaps = found_F[firing] * stride + position_F[firing] - rank
    before = np.searchsorted(gaps, group * stride + u, side="right") - first[group]
    silent = np.where(free > 0, u + before, NO_POSITION)
    return Entries(*(silent if f.name == "silent" else getattr(entries, f.name) for f in fields(entries)))
