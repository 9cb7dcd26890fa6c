import hypothesis.strategies as st
import pytest
from hypothesis import given

from kd_plugin.losses.schedules import SCHEDULES, scheduled_value


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_ends_are_met_exactly_and_kept(schedule):
    assert scheduled_value(0.9, 0.1, schedule, 0, 100) == 0.9
    assert scheduled_value(0.9, 0.1, schedule, 100, 100) == 0.1
    assert scheduled_value(0.9, 0.1, schedule, 10**6, 100) == 0.1


def test_shapes_of_the_schedules():
    assert scheduled_value(1.0, 0.0, "linear", 25, 100) == pytest.approx(0.75)
    assert scheduled_value(1.0, 0.0, "cosine", 25, 100) == pytest.approx(0.5 * (1 + 2**-0.5))
    assert scheduled_value(1.0, 0.0, "cosine", 50, 100) == pytest.approx(0.5)
    assert scheduled_value(0.3, 0.0, "constant", 50, 100) == 0.3


@given(st.sampled_from(sorted(SCHEDULES)), st.floats(0, 1), st.floats(0, 1), st.integers(0, 200), st.integers(1, 100))
def test_stays_between_its_ends_and_moves_one_way(schedule, start, end, update, total):
    now = scheduled_value(start, end, schedule, update, total)
    later = scheduled_value(start, end, schedule, update + 1, total)
    low, high = min(start, end), max(start, end)
    assert low - 1e-12 <= now <= high + 1e-12
    assert (later - now) * (end - start) >= -1e-12
