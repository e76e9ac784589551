"""Energy curves and rows: nothing is lost between readings and rows, nothing is made up where a meter is silent."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.live.gpus.energy import EnergyCurve, History, Metered, clipped, metered
from voltana.record import InstanceRow

steps = st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 400)), min_size=2, max_size=20)
counters = st.floats(0, 1e9, allow_nan=False)
readings = st.lists(st.tuples(st.floats(0.01, 5), counters, counters), max_size=20)
"""Of two GPUs: time since the last reading, both counters."""
times = st.lists(st.floats(-5, 60), min_size=2, max_size=6, unique=True).map(sorted)


class Heard(NamedTuple):
    """What telemetry or a GPU's clock tell, some time after the last."""

    wait_s: float
    clock_mhz: int | None
    batch_size: int
    kv_tokens: int
    queued: int


heard_of = st.lists(
    st.builds(
        Heard,
        st.floats(0, 3),
        st.sampled_from([None, 1005, 1410]),
        st.integers(0, 3),
        st.integers(0, 9),
        st.integers(0, 2),
    ),
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


def read(pieces: Sequence[tuple[float, float, float]]) -> tuple[EnergyCurve, float]:
    """A curve of any readings of two GPUs, and all that their counters rose by where neither fell."""
    curve, now_s, counted_j = EnergyCurve(), 0.0, 0.0
    for wait_s, *pair in pieces:
        now_s += wait_s
        curve.add(now_s, *pair)
    for (_, *before), (_, *after) in itertools.pairwise(pieces):
        rises = [now_j - last_j for now_j, last_j in zip(after, before, strict=True)]
        counted_j += sum(rises) if min(rises) >= 0 else 0.0
    return curve, counted_j


def history_of(heard: list[Heard]) -> History:
    history, now_s = History(), -0.5
    for each in heard:
        now_s += each.wait_s
        history.load(now_s, each.batch_size, each.kv_tokens, each.queued)
        history.clock(now_s - 0.01, each.clock_mhz)
    return history


@given(steps, heard_of)
def test_rows_hold_exactly_the_energy_of_the_curve(pieces: list[tuple[float, float]], heard: list[Heard]) -> None:
    curve, end_s = curve_of(pieces)
    if end_s <= 0:
        return
    energy_j = curve.between(0.0, end_s)
    rows = history_of(heard).rows("decode-0", "decode", 0.0, end_s, curve)
    told = metered(rows, 0.0, end_s)
    assert told.energy_j == pytest.approx(energy_j, abs=1e-6) and told.unknown_s == 0


@given(readings, heard_of, times)
def test_with_any_readings_energy_is_never_negative_and_never_more_than_was_counted(
    pieces: list[tuple[float, float, float]], heard: list[Heard], edges: list[float]
) -> None:
    curve, counted_j = read(pieces)
    history, total = history_of(heard), Metered()
    for from_s, to_s in itertools.pairwise(edges):
        assert 0 <= curve.between(from_s, to_s) <= counted_j * (1 + 1e-9)
        rows = history.rows("decode-0", "decode", from_s, to_s, curve)
        assert rows[0].time_s == from_s and all(row.power_w is None or row.power_w >= 0 for row in rows)
        total = total.plus(metered(rows, from_s, to_s))
    assert 0 <= total.energy_j <= counted_j * (1 + 1e-6)
    assert 0 <= total.unknown_s <= (edges[-1] - edges[0]) * (1 + 1e-9)


@given(readings, heard_of, times)
def test_rows_asked_for_bit_by_bit_tell_the_same(
    pieces: list[tuple[float, float, float]], heard: list[Heard], edges: list[float]
) -> None:
    history, curve = history_of(heard), read(pieces)[0]
    parts = [history.rows("p", "prefill", a, b, curve) for a, b in itertools.pairwise(edges)]
    told = [metered(rows, a, b) for rows, (a, b) in zip(parts, itertools.pairwise(edges), strict=True)]
    whole = history_of(heard).rows("p", "prefill", edges[0], edges[-1], read(pieces)[0])
    total = metered(whole, edges[0], edges[-1])
    assert sum(each.energy_j for each in told) == pytest.approx(total.energy_j, rel=1e-6, abs=1e-3)
    assert sum(each.unknown_s for each in told) == pytest.approx(total.unknown_s, abs=1e-6)
    pieces_of = {row.time_s: row[3:5] + row[6:7] for rows in parts for row in rows}
    assert all(pieces_of[row.time_s] == row[3:5] + row[6:7] for row in whole)


def test_of_the_time_in_which_a_counter_starts_again_nothing_is_known() -> None:
    curve = EnergyCurve()
    for time_s, energy_j in ((0.0, 1000.0), (1.0, 1100.0), (2.0, 50.0), (3.0, 250.0)):
        curve.add(time_s, energy_j)
    rows = history_of([Heard(0.0, 1410, 2, 30, 0)]).rows("decode-0", "decode", 0.0, 3.0, curve)
    assert [(row.time_s, row.power_w) for row in rows] == [(0.0, 100.0), (1.0, None), (2.0, 200.0)]
    assert metered(rows, 0.0, 3.0) == Metered(300.0, 1.0)


def test_one_gpu_of_two_that_starts_again_is_not_hidden_by_the_other() -> None:
    curve = EnergyCurve()
    curve.add(0.0, 1000.0, 10.0)
    curve.add(1.0, 1400.0, 5.0)
    assert [part.energy_j for part in curve.stretches(0.0, 1.0)] == [None]


def test_beyond_its_readings_nothing_is_known() -> None:
    curve, _ = curve_of([(1.0, 100.0), (1.0, 300.0)], first_s=0.0)
    assert list(curve.stretches(-1.0, 4.0)) == [(-1.0, 0.0, None), (0.0, 2.0, 400.0), (2.0, 4.0, None)]


@given(heard_of)
def test_a_row_begins_only_where_clock_batch_or_queue_change(heard: list[Heard]) -> None:
    curve, end_s = curve_of([(100.0, 50.0)])
    rows = history_of(heard).rows("decode-0", "decode", -0.5, end_s, curve)
    kinds = [(row.clock_mhz, row.batch_size, row.queued) for row in rows]
    assert all(a != b for a, b in itertools.pairwise(kinds))
    assert [row.time_s for row in rows] == sorted(row.time_s for row in rows)


def test_a_clock_that_is_told_late_holds_from_its_own_time() -> None:
    history = History()
    history.load(0.0, 1, 10, 0)
    history.load(1.0, 1, 14, 0)
    history.load(2.0, 3, 40, 1)
    history.clock(1.5, 1005)
    rows = history.rows("decode-0", "decode", 0.0, 3.0, EnergyCurve())
    assert [row[:1] + row[3:7] for row in rows] == [
        (0.0, None, 1, 10, 0),
        (1.5, 1005, 1, 14, 0),
        (2.0, 1005, 3, 40, 1),
    ]


def test_a_reading_that_is_not_newer_is_left_out() -> None:
    curve, _ = curve_of([(1.0, 100.0)], first_s=0.0)
    curve.add(1.0, 1e9)
    assert curve.between(0.0, 1.0) == pytest.approx(100.0)


def test_what_is_not_metered_has_no_power() -> None:
    rows = history_of([Heard(0.5, 1410, 2, 30, 0)]).rows("prefill-0", "prefill", 0.0, 2.0, EnergyCurve())
    assert [row.power_w for row in rows] == [None]
    assert metered(rows, 0.0, 2.0) == Metered(0.0, 2.0)


def test_rows_are_cut_to_a_stretch_of_time() -> None:
    rows = [InstanceRow(time_s, "decode-0", "decode", 1410, 1, 10, 0, 200.0) for time_s in (0.0, 2.0)]
    assert clipped(rows, [2.0, 9.0], 0.5, 5.0) == [rows[0]._replace(time_s=0.5), rows[1]]
    assert clipped(rows, [2.0, 9.0], 2.5, 5.0) == [rows[1]._replace(time_s=2.5)]
