import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instructgpt.training.schedule import learning_rate_factor

SCHEDULES = ("cosine", "linear", "constant", "wsd")


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("cosine", 0.0, 1.0), ("cosine", 0.5, 0.55), ("cosine", 1.0, 0.1),
        ("linear", 0.25, 0.775), ("linear", 1.0, 0.1),
        ("constant", 0.99, 1.0),
        ("wsd", 0.59, 1.0), ("wsd", 0.8, 0.55), ("wsd", 1.0, 0.1),
    ],
)  # fmt: skip
def test_hand_computed(schedule, progress, expected):
    assert learning_rate_factor(schedule, 1000, progress, 10, 0.0, 0.1, 0.4) == pytest.approx(expected)


def test_warmup_rises_linearly_to_the_peak():
    factors = [learning_rate_factor("linear", step, 0.0, 4, 0.0, 0.0, 0.3) for step in range(5)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0]


@given(st.sampled_from(SCHEDULES), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_never_rises_after_the_warmup_and_stays_in_range(schedule, earlier, later, final, cooldown):
    earlier, later = sorted((earlier, later))
    factors = [learning_rate_factor(schedule, 99, p, 10, 0.0, final, cooldown) for p in (earlier, later)]
    assert factors[0] >= factors[1] - 1e-12
    assert all(min(final, 1.0) - 1e-12 <= f <= 1.0 for f in factors)


@pytest.mark.parametrize(
    ("schedule", "progress", "expected"),
    [
        ("cosine", 0.5, 1.0), ("cosine", 0.75, 0.5), ("cosine", 1.0, 0.0),
        ("linear", 0.5, 1.0), ("linear", 0.6, 0.8), ("linear", 1.0, 0.0),
        ("constant", 0.5, 1.0),
        ("wsd", 0.5, 1.0), ("wsd", 0.75, 0.5), ("wsd", 1.0, 0.0),  # cooldown 0.9 would have begun within the warm-up
    ],
)  # fmt: skip
def test_what_follows_a_long_warmup_begins_at_the_peak(schedule, progress, expected):
    assert learning_rate_factor(schedule, 1000, progress, 10, 0.5, 0.0, 0.9) == pytest.approx(expected)


@given(st.sampled_from(SCHEDULES), st.integers(1, 60), st.integers(2, 60), st.floats(0, 1), st.floats(0, 1))
def test_no_schedule_jumps(schedule, warmup, after, final, cooldown):
    """From one update to the next it never falls by more than it must, on the steepest stretch, to get to its end."""
    steps = warmup + after
    factors = [
        learning_rate_factor(schedule, step, step / steps, warmup, warmup / steps, final, cooldown)
        for step in range(steps)
    ]
    assert factors[warmup - 1] == factors[warmup] == 1.0
    left = after if schedule != "wsd" else max(min(cooldown * steps, after), 1)
    steepest = (math.pi / 2 if schedule == "cosine" else 1) * (1 - final) / left
    assert all(factors[i] - factors[i + 1] <= steepest + 1e-9 for i in range(warmup - 1, steps - 1))
