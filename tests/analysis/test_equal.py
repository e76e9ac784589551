"""Savings at equal attainment: the rules of `voltana.analysis.equal`, and what they may never do."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.analysis.equal import DIAL, OVER_RATE, DialPoint, Spot, energy_at, request_j_at
from voltana.analysis.runs import load_runs
from voltana.analysis.tables import Row, compare

WriteRun = Callable[..., Path]


def late(of_hundred: int) -> dict[str, Sequence[float]]:
    """100 requests of which so many miss the objective of 600 ms."""
    return {"ttft_s": [0.9] * of_hundred + [0.1] * (100 - of_hundred)}


def equal(rows: Sequence[Row], policy: str, rps: int) -> tuple[float, str | None]:
    (row,) = (row for row in rows if row.policy == policy and row.setting.get("rps", rps) == rps)
    value = row.values["saving_at_equal_attainment_pct"]
    assert value is not None
    return value.mean, row.levelled


def test_over_the_rate_the_baseline_is_loaded_until_it_fails_as_many(tmp_path: Path, write_run: WriteRun) -> None:
    """At 70/s static_max is 10 % late at 250 kJ/100, at 80/s 30 % at 220: level with 20 % at 75/s and 235."""
    for rps, missed, energy in ((60, 0, 300), (70, 10, 250), (80, 30, 220)):
        write_run(f"max{rps}", "static_max", energy, rps=rps, requests=late(missed))
    write_run("low", "voltana", 188, rps=70, requests=late(20))
    rows = compare(load_runs([tmp_path]), "static_max").rows
    assert equal(rows, "voltana", 70) == (pytest.approx(100 * (1 - 188 / 235)), OVER_RATE)
    (plain,) = (row.values["saving_pct"] for row in rows if row.policy == "voltana")
    assert plain is not None and plain.mean == pytest.approx(24.8)  # what it saves at its own rate is more


def test_nothing_is_extrapolated(tmp_path: Path, write_run: WriteRun) -> None:
    for rps, missed in ((60, 0), (70, 10)):
        write_run(f"max{rps}", "static_max", 250, rps=rps, requests=late(missed))
    write_run("low", "voltana", 100, rps=70, requests=late(50))
    (row,) = (row for row in compare(load_runs([tmp_path]), "static_max").rows if row.policy == "voltana")
    assert row.values["saving_at_equal_attainment_pct"] is None and row.levelled is None


def test_a_policy_above_every_rate_of_the_baseline_is_compared_at_its_own(tmp_path: Path, write_run: WriteRun) -> None:
    for rps, missed in ((60, 5), (70, 10)):
        write_run(f"max{rps}", "static_max", 250, rps=rps, requests=late(missed))
    write_run("better", "voltana", 200, rps=70, requests=late(0))
    rows = compare(load_runs([tmp_path]), "static_max").rows
    assert equal(rows, "voltana", 70) == (pytest.approx(20), OVER_RATE)


def test_its_own_dial_comes_first(tmp_path: Path, write_run: WriteRun) -> None:
    """The dial attains 80 % at 100 kJ and 100 % at 180: level with the baseline's 90 % at 140 of its 200."""
    write_run("max", "static_max", 200, requests=late(10))
    for margin, missed, energy in ((1, 20, 100), (2, 0, 180), (3, 10, 190)):  # the second beats the last
        write_run(f"dial{margin}", "mine", energy, policy__decode_controller={"margin": margin}, requests=late(missed))
    rows = compare(load_runs([tmp_path]), "static_max").rows
    found = [equal(rows, row.policy, 75) for row in rows if row.policy != "static_max"]
    assert found == [(pytest.approx(30), DIAL)] * 3


def test_each_seed_is_brought_level_by_itself(tmp_path: Path, write_run: WriteRun) -> None:
    for seed, energy in ((1, 80), (2, 90), (3, 100)):
        write_run(f"max{seed}", "static_max", 200, seed=seed, requests=late(10))
        write_run(f"own{seed}", "voltana", energy, seed=seed, requests=late(10))
    rows = compare(load_runs([tmp_path]), "static_max").rows
    (value,) = (row.values["saving_at_equal_attainment_pct"] for row in rows if row.policy == "voltana")
    assert value is not None and value.n == 3 and value.ci95 is not None
    assert value.mean == pytest.approx(55)


shares = st.floats(0, 1)
joules = st.floats(1, 1e3)
dials = st.lists(st.builds(DialPoint, shares, joules), min_size=1, max_size=6)


@given(dials, shares)
def test_a_dial_is_never_cheaper_than_its_cheapest_point_nor_dearer_than_one_that_attains(
    points: list[DialPoint], level: float
) -> None:
    found = energy_at(points, level)
    attain = [point.energy_j for point in points if point.attainment >= level]
    if not attain:
        assert found is None
    else:
        assert found is not None
        assert min(point.energy_j for point in points) <= found + 1e-9 and found <= min(attain) + 1e-9


@given(st.lists(st.builds(Spot, st.floats(1, 100), shares, joules), min_size=1, max_size=6), shares, joules)
def test_the_baseline_is_read_between_its_own_points(spots: list[Spot], attained: float, used: float) -> None:
    spots = sorted(spots)
    found = request_j_at(spots, Spot(spots[0].rate, attained, used))
    if found is not None:
        assert min(spot.request_j for spot in spots) <= found + 1e-6
        assert found <= max(spot.request_j for spot in spots) + 1e-6
    if any(spot == (spots[0].rate, attained, used) for spot in spots[:1]):
        assert found == used
