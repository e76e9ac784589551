"""Times of another host's monotonic clock are found from round trips."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.live.gpus.host_clock import HostClock

TRIPS = st.lists(st.tuples(st.floats(1e-5, 0.1), st.floats(1e-5, 0.1)), min_size=1, max_size=30)


@given(st.floats(-1e6, 1e6), TRIPS)
def test_a_time_is_known_to_the_shortest_trip(ahead_s: float, trips: list[tuple[float, float]]) -> None:
    clock, now_s = HostClock(), 1000.0
    for there_s, back_s in trips:
        clock.answered(now_s, now_s + there_s + ahead_s, now_s + there_s + back_s)
        now_s += there_s + back_s + 0.1
    shortest_s = min(there_s + back_s for there_s, back_s in trips)
    assert clock.here(5.0 + ahead_s) == pytest.approx(5.0, abs=shortest_s + 1e-6)


@given(TRIPS)
def test_on_one_host_nothing_is_changed(trips: list[tuple[float, float]]) -> None:
    clock, now_s = HostClock(), 1000.0
    for there_s, back_s in trips:
        clock.answered(now_s, now_s + there_s, now_s + there_s + back_s)
        now_s += there_s + back_s + 0.1
    assert clock.here(1234.5) == 1234.5


def test_a_clock_that_drifts_is_followed() -> None:
    """Fifty millionths, as of poor quartz, for an hour: 0.18 s."""
    clock = HostClock()
    for second in range(3600):
        ahead_s = 500.0 + 50e-6 * second
        clock.answered(second, second + 0.001 + ahead_s, second + 0.002)
        assert clock.here(second + ahead_s) == pytest.approx(second, abs=0.002)
