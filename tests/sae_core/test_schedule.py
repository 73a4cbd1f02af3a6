"""Schedules as functions of the step."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sae_core.schedule import ScheduleConfig, factor


@given(
    steps=st.integers(1, 400),
    warmup=st.floats(0, 1),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
    floor=st.floats(0, 1),
    decay_share=st.floats(0.01, 1),
)
def test_rises_to_the_peak_then_only_falls_and_not_below_the_floor(steps, warmup, schedule, floor, decay_share):
    warmup_steps = int(warmup * steps)
    config = ScheduleConfig(
        steps=steps, warmup_steps=warmup_steps, schedule=schedule, floor=floor, decay_share=decay_share
    )
    factors = [factor(step, config) for step in range(steps)]
    rise, rest = factors[:warmup_steps], factors[warmup_steps:]
    assert rise == sorted(rise)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(rest))
    assert all(0 < f <= 1 + 1e-12 for f in rise)
    assert all(floor - 1e-12 <= f <= 1 + 1e-12 for f in rest)
    assert all(f > 0 for f in rest)


def test_the_shapes_at_known_points():
    linear = ScheduleConfig(steps=100, warmup_steps=10, schedule="linear", decay_share=0.2)
    assert [factor(step, linear) for step in (0, 9, 10, 79, 80, 90, 100)] == [0.1, 1, 1, 1, 1, 0.5, 0]
    cosine = ScheduleConfig(steps=110, warmup_steps=10, schedule="cosine", floor=0.2)
    assert [round(factor(step, cosine), 6) for step in (10, 60, 110)] == [1, 0.6, 0.2]
    assert factor(1000, ScheduleConfig(steps=5, schedule="constant")) == 1


def test_a_warmup_longer_than_the_training_is_refused():
    with pytest.raises(ValidationError, match="warmup_steps = 6 is more than all 5 steps"):
        ScheduleConfig(steps=5, warmup_steps=6)
