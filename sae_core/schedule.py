"""Learning rates as pure functions of the step, so that a resumed run needs no scheduler state.

    factor(step, ScheduleConfig(steps=1200, warmup_steps=60))     # share of the peak learning rate
"""

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ScheduleConfig(BaseModel):
    """The course of the learning rate over a training of a known number of steps."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: int = Field(ge=0, description="Steps of the whole training.")
    warmup_steps: int = Field(0, ge=0, description="Steps over which the rate rises linearly to its peak.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear",
        description="After the warm-up. constant: the peak. linear: the peak, then straight to floor over the last "
        "decay_share of the steps. cosine: half a cosine from the peak to floor.",
    )
    decay_share: float = Field(0.2, gt=0, le=1, description="Share of the steps, at the end, over which linear decays.")
    floor: float = Field(0.0, ge=0, le=1, description="Where linear and cosine end, as a share of the peak.")

    @model_validator(mode="after")
    def _warmup_fits(self) -> Self:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps = {self.warmup_steps} is more than all {self.steps} steps; choose fewer.")
        return self


def factor(step: int, config: ScheduleConfig) -> float:
    """Share of the peak learning rate to use at `step`, counted from 0: in (0, 1] while step < steps and floor = 0."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "linear":
        decay_steps = max(1, round(config.decay_share * config.steps))
        remaining = min(1.0, max(0, config.steps - step) / decay_steps)
        return config.floor + (1 - config.floor) * remaining
    if config.schedule == "cosine":
        progress = min(1.0, (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps))
        return config.floor + (1 - config.floor) * 0.5 * (1 + math.cos(math.pi * progress))
    return 1.0
