"""Which tokens become examples of a latent, and in which role, from what one pass has collected.

    chosen = choose(found, store, range(0, 1024), negatives={"label": 20, "score": 40})

Half of the negatives are silent tokens of the positives' own rows, half come from tokens drawn from all rows of the
same half. Shapes: L latents, P tokens of the pool, S of them taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from tasks.examples.codes import Stored
    from tasks.examples.firings import Collection, Entries

    Integers = NDArray[np.int64]

ROLES = (
    "top",
    "label_positive",
    "label_negative_same_row",
    "label_negative_random",
    "score_positive",
    "score_negative_same_row",
    "score_negative_random",
)


class Chosen(NamedTuple):
    """The examples of some latents, in the order of the file."""

    latent: Integers
    role: Integers  # index in ROLES
    row_id: Integers
    position: Integers
    activation: NDArray[np.float32]


def choose(found: Collection, store: Stored, latents: range, negatives: dict[str, int]) -> Chosen:
    """All examples of a range of latents; `negatives` says how many silent tokens each half gets."""
    import numpy as np

    parts: list[Chosen] = []

    def add(role: str, entries: Entries, position: Integers, activation: NDArray) -> None:
        number = np.full(len(entries), ROLES.index(role))
        parts.append(Chosen(entries.latent, number, entries.row_id, position, activation))

    def within(entries: Entries) -> Entries:
        return entries.take((entries.latent >= latents.start) & (entries.latent < latents.stop))

    top = within(found.top)
    add("top", top, top.position, top.activation)
    for half, size in negatives.items():
        positives, pool = within(getattr(found, half)), getattr(found, f"{half}_random")
        add(f"{half}_positive", positives, positives.position, positives.activation)
        beside = _distinct_silent(positives, size // 2)
        add(f"{half}_negative_same_row", beside, beside.silent, np.zeros(len(beside), np.float32))
        far = _silent_at(pool, np.unique(positives.latent), store, size - size // 2, found.quota.seed)
        add(f"{half}_negative_random", far, far.position, far.activation)
    every = Chosen._make(np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.lexsort((every.role, every.latent))  # stable: the rank within a role stays
    return Chosen._make(column[order] for column in every)


def _distinct_silent(positives: Entries, size: int) -> Entries:
    """The first `size` positives of each latent that name a silent position no earlier one has named."""
    import numpy as np

    from tasks.examples.firings import rank_in_group

    kept = np.flatnonzero(positives.silent >= 0)
    order = np.lexsort((kept, positives.silent[kept], positives.row_id[kept], positives.latent[kept]))
    columns = (positives.latent, positives.row_id, positives.silent)
    changes = [np.diff(column[kept[order]], prepend=-1) != 0 for column in columns]
    entries = positives.take(np.sort(kept[order][np.logical_or.reduce(changes)]))
    return entries.take(rank_in_group(entries.latent) < size)


def _silent_at(pool: Entries, latents: Integers, store: Stored, size: int, seed: int) -> Entries:
    """For each latent, `size` tokens of the pool at which it is silent, in an order of its own."""
    import numpy as np

    from tasks.examples.firings import Entries
    from tasks.hashing import stable_hash

    size = min(size, len(pool))
    if not size or not len(latents):
        return pool.take(np.zeros(0, dtype=np.int64))
    tokens = store.token_of(pool.row_id, pool.position)
    order_LP = stable_hash(seed + 4, latents[:, None], pool.row_id[None], pool.position[None])
    latent_LP, token_LP = np.broadcast_arrays(latents[:, None], tokens[None])
    fires_LP = store.activation(token_LP.ravel(), latent_LP.ravel()).reshape(order_LP.shape) > 0
    order_LP[fires_LP] = np.iinfo(np.uint64).max
    first_LS = np.argpartition(order_LP, size - 1, axis=1)[:, :size]
    first_LS = np.take_along_axis(first_LS, np.argsort(np.take_along_axis(order_LP, first_LS, 1), axis=1), 1)
    silent = ~np.take_along_axis(fires_LP, first_LS, 1).ravel()
    picked = pool.take(first_LS.ravel()[silent])
    latent = np.repeat(latents, size)[silent]
    return Entries(latent, picked.order, picked.row_id, picked.position, picked.activation, picked.silent)
