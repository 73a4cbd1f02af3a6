"""When each latent fires, dies and revives during a training, and how many fire per row.

    tracking = Tracking(n_latents, batch_size=1024, dead_after_rows=10_000_000)
    tracking.add(fired_N, number)            # after step `number`, from 1: in how many of its rows each latent fired
    tracking.figures(number)                 # dead shares, deaths and revivals so far, l0_ema
    tracking.lives(number)                   # one value a latent: firings, when it first and last fired, deaths ...

All is counted in rows of whole steps of B rows, and rows = B x steps made. With silent_i the rows since latent i last
fired, or since the start:

    dead_share(w)   mean_i [silent_i >= w] at the windows w = dead_after_rows / WINDOWS
    death           a silence that reaches dead_after_rows, also of a latent that has never fired
    revival         a dead latent fires: revivals_i = deaths_i - [i is dead now]
    l0_ema          m_t / (1 - d^t), m_t = d m_(t-1) + (1 - d) firings_t / B, d = L0_DECAY: about the last 100 steps;
                    corrected for its start at 0 as in Kingma and Ba 2015, "Adam", section 3

`add` never waits for a GPU. Shapes: N latents.
"""

from typing import NamedTuple

import torch
from torch import Tensor

L0_DECAY = 0.99  # per step
WINDOWS = {"dead_share_sixteenth": 16, "dead_share_quarter": 4, "dead_share": 1}


class Lives(NamedTuple):
    """What became of each latent, int64 (N,) except `dead`; a moment is the number of rows at the end of its step."""

    firings_N: Tensor  # rows in which it fired
    first_fired_N: Tensor  # -1: never
    last_fired_N: Tensor  # -1: never
    deaths_N: Tensor
    revivals_N: Tensor
    last_died_N: Tensor  # -1: never
    dead_N: Tensor  # bool: whether it is dead now


class Tracking:
    """The counters, whose tensors are part of a training's state."""

    def __init__(
        self, n_latents: int, *, batch_size: int, dead_after_rows: int, device: torch.device | str = "cpu"
    ) -> None:
        self._batch_size = batch_size
        self._dead_after_rows = dead_after_rows
        self._death = -(-dead_after_rows // batch_size) * batch_size  # silences come in whole steps
        zeros_5N = torch.zeros(5, n_latents, dtype=torch.int64, device=device)
        self._silent_N, self._firings_N, self._unfired_N, self._deaths_N, self._died_N = zeros_5N
        self._fired_ema = torch.zeros((), dtype=torch.float64, device=device)  # m_t x B

    @property
    def dead(self) -> Tensor:
        """Which latents are dead now, bool (N,)."""
        return self._silent_N >= self._dead_after_rows

    def add(self, fired_N: Tensor, number: int) -> None:
        """Counts one step, the `number`th: in how many rows of its global batch each latent fired, (N,)."""
        fired_N = fired_N.long()
        self._silent_N.add_(self._batch_size).masked_fill_(fired_N > 0, 0)
        self._firings_N.add_(fired_N)
        self._unfired_N.add_(self._firings_N == 0, alpha=self._batch_size)
        if number * self._batch_size >= self._death:  # before, none can have been silent for so long
            dies_N = self._silent_N == self._death
            self._deaths_N.add_(dies_N)
            self._died_N.masked_fill_(dies_N, number * self._batch_size)
        self._fired_ema.lerp_(fired_N.sum(dtype=torch.float64), 1 - L0_DECAY)

    def figures(self, number: int) -> dict[str, float]:
        """The figures after step `number`; deaths and revivals are those of all latents since the start."""
        deaths, dead = self._deaths_N.sum(), self.dead.sum()
        found = {"l0_ema": self._fired_ema / self._batch_size / (1 - L0_DECAY**number)}
        for name, parts in WINDOWS.items():
            found[name] = (self._silent_N * parts >= self._dead_after_rows).double().mean()
        found["never_fired_share"] = (self._firings_N == 0).double().mean()
        found |= {"deaths": deaths, "revivals": deaths - dead}
        values = torch.stack([value.double() for value in found.values()]).tolist()  # a GPU is waited for once
        return dict(zip(found, values, strict=True))

    def lives(self, number: int) -> Lives:
        """What became of each latent up to step `number`, on the CPU."""
        never_N = self._firings_N == 0
        found = Lives(
            firings_N=self._firings_N,
            first_fired_N=(self._unfired_N + self._batch_size).masked_fill(never_N, -1),
            last_fired_N=(number * self._batch_size - self._silent_N).masked_fill(never_N, -1),
            deaths_N=self._deaths_N,
            revivals_N=self._deaths_N - self.dead.long(),
            last_died_N=self._died_N.masked_fill(self._deaths_N == 0, -1),
            dead_N=self.dead,
        )
        return Lives(*(tensor.cpu() for tensor in found))

    def tensors(self) -> dict[str, Tensor]:
        """All that a next step depends on, by name; filling them in place brings another's state here."""
        return {
            "silent_rows": self._silent_N,
            "firings": self._firings_N,
            "unfired_rows": self._unfired_N,
            "deaths": self._deaths_N,
            "last_died": self._died_N,
            "fired_ema": self._fired_ema,
        }
