"""Energy curves and rows: nothing is lost between readings and rows."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from live.harness.energy import EnergyCurve, History, State, clipped, energy_of
from voltana.record import InstanceRow

steps = st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 400)), min_size=2, max_size=20)
states = st.lists(
    st.tuples(st.floats(0, 3), st.sampled_from([1005, 1410]), st.integers(0, 3), st.integers(0, 9), st.integers(0, 2)),
    min_size=1,
    max_size=30,
)


def curve_of(pieces: list[tuple[float, float]], first_s: float = -1.0) -> tuple[EnergyCurve, float]:
    """A curve of constant powers one after the other, and its end."""
    curve, now_s, energy_j = EnergyCurve(), first_s, 7.0
    curve.add(now_s, energy_j)
    for duration_s, power_w in pieces:
        now_s, energy_j = now_s + duration_s, energy_j + duration_s * power_w
        curve.add(now_s, energy_j)
    return curve, now_s


def history_of(pieces: list[tuple[float, int, int, int, int]]) -> History:
    history, now_s = History(), -0.5
    for wait_s, clock, batch, tokens, queued in pieces:
        now_s += wait_s
        history.add(State(now_s, clock, batch, tokens, queued))
    return history


@given(steps, states)
def test_rows_hold_exactly_the_energy_of_the_curve(
    pieces: list[tuple[float, float]], heard: list[tuple[float, int, int, int, int]]
) -> None:
    curve, end_s = curve_of(pieces)
    rows = history_of(heard).rows("decode-0", "decode", 0.0, end_s, curve)
    if rows:
        assert energy_of(rows, end_s) == pytest.approx(curve.between(rows[0].time_s, end_s), abs=1e-6)


@given(states)
def test_a_row_begins_only_where_clock_batch_or_queue_change(heard: list[tuple[float, int, int, int, int]]) -> None:
    curve, end_s = curve_of([(100.0, 50.0)])
    rows = history_of(heard).rows("decode-0", "decode", -0.5, end_s, curve)
    kinds = [(row.clock_mhz, row.batch_size, row.queued) for row in rows]
    assert all(a != b for a, b in itertools.pairwise(kinds))
    assert [row.time_s for row in rows] == sorted(row.time_s for row in rows)


def test_beyond_its_readings_a_curve_goes_on_as_it_did() -> None:
    curve, _ = curve_of([(1.0, 100.0), (1.0, 300.0)], first_s=0.0)
    assert curve.between(-1.0, 0.0) == pytest.approx(100.0)
    assert curve.between(2.0, 4.0) == pytest.approx(600.0)


def test_a_reading_that_is_not_newer_is_left_out() -> None:
    curve, _ = curve_of([(1.0, 100.0)], first_s=0.0)
    curve.add(1.0, 1e9)
    assert len(curve) == 2


def test_what_is_not_metered_has_no_power() -> None:
    rows = history_of([(1.0, 1410, 2, 30, 0)]).rows("prefill-0", "prefill", 0.0, 2.0, EnergyCurve())
    assert [row.power_w for row in rows] == [0.0]


def test_an_instance_that_ended_draws_nothing_afterwards() -> None:
    row = InstanceRow(0.0, "decode-0", "decode", 1410, 1, 10, 0, 200.0)
    rows = clipped([row], [2.0], 0.5, 5.0)
    assert energy_of(rows, 5.0) == pytest.approx(300.0)
    assert clipped([row], [2.0], 2.5, 5.0) == []
