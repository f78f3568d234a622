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
    assert learning_rate_factor(schedule, 1000, progress, 10, 0.1, 0.4) == pytest.approx(expected)


def test_warmup_rises_linearly_to_the_peak():
    factors = [learning_rate_factor("linear", step, 0.0, 4, 0.0, 0.3) for step in range(5)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0]


@given(st.sampled_from(SCHEDULES), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1))
def test_never_rises_after_the_warmup_and_stays_in_range(schedule, earlier, later, final, cooldown):
    earlier, later = sorted((earlier, later))
    factors = [learning_rate_factor(schedule, 99, p, 10, final, cooldown) for p in (earlier, later)]
    assert factors[0] >= factors[1] - 1e-12
    assert all(min(final, 1.0) - 1e-12 <= f <= 1.0 for f in factors)
