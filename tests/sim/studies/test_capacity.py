"""How many requests a second a policy can take: the search on made-up curves, the command on a simulated cluster."""

import csv
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.sim.studies.capacity import Grid, Tried, bisect, capacities, main, rate_cell

GRID = Grid(1.0, 200.0, 0.01)


@given(st.integers(-1, 300), st.integers(0, 300), st.integers(0, 300))
def test_bisection_finds_the_last_that_keeps_in_few_steps(last: int, start: int, top: int) -> None:
    asked: list[int] = []

    def measure(step: int) -> float:
        assert 0 <= step <= top
        asked.append(step)
        return 1.0 if step <= last else 0.0

    expected = min(last, top)
    assert bisect(measure, 0.5, min(start, top), top) == (None if expected < 0 else expected)
    assert len(asked) == len(set(asked)) <= 20


@given(st.floats(2.0, 150.0), st.floats(0.001, 0.01))
def test_capacities_lie_where_the_curve_crosses(knee: float, slope: float) -> None:
    def attainment(rps: float) -> float:
        return 1.0 - slope * max(0.0, rps - knee)

    found = capacities(lambda rps: Tried(rps, attainment(rps), 1.0, 4), GRID, [0.9, 0.99])
    for each, target in zip(found, (0.9, 0.99), strict=True):
        assert each.tried is not None and each.steady
        assert each.tried.attainment >= target
        assert each.beyond or attainment(1.011 * each.tried.rps) < target


def test_beyond_the_bounds_there_is_no_number() -> None:
    all_met, none_met = (
        capacities(lambda rps, met=met: Tried(rps, met, 1.0, 4), Grid(5.0, 20.0, 0.1), [0.9]) for met in (1.0, 0.0)
    )
    assert rate_cell(all_met, Grid(5.0, 20.0, 0.1))[0] == "above 18.99"
    assert rate_cell(none_met, Grid(5.0, 20.0, 0.1))[0] == "below 5"


def test_a_curve_that_rises_again_is_told() -> None:
    found = capacities(lambda rps: Tried(rps, 0.0 if 65 < rps < 67 or rps > 70 else 1.0, 1.0, 4), GRID, [0.9])
    assert not found[0].steady


def command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str
) -> tuple[str, str, object]:
    monkeypatch.setattr(sys, "argv", ["voltana-capacity", *words])
    status: object = 0
    try:
        main()
    except SystemExit as end:
        status = end.code
    told = capsys.readouterr()
    return told.out, told.err, status


@pytest.mark.slow
def test_the_command_searches_and_goes_on_from_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("policy=static_max,static_1005", "duration_s=2", "seeds=2", "precision=0.5", f"out={tmp_path}")
    out, _, status = command(capsys, monkeypatch, *words, "attainment=90")
    rows = list(csv.DictReader((tmp_path / "capacity.csv").open()))
    assert status == 0 and "policy=static_1005" in out
    assert [(row["combination"], row["seed"]) for row in rows] == [
        (f"policy={policy}", seed) for policy in ("static_max", "static_1005") for seed in "12"
    ]
    assert all(float(row["joint_attainment_pct"]) >= 90 for row in rows)
    records = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")}
    again, _, _ = command(capsys, monkeypatch, *words, "attainment=90")
    assert again == out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("summary.json")} == records

    out, _, _ = command(capsys, monkeypatch, *words, "attainment=50", "rate=5")
    assert "The fewest GPUs that keep 50 % at 5 requests/s: 4, policy=static_" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rps=5"], "rps=5: the rate is what is searched, and seeds=5 has the seeds 1 to 5"),
        (["seeds=0"], "seeds: found 0, allowed: a whole number from 1"),
        (["attainment=[90,120]"], "attainment: found [90, 120], allowed: per cents above 0 to 100, such as [90,99]"),
        (["lowest=10", "highest=5"], "highest: found 5, allowed: a number above 10"),
        (["precision"], "found 'precision', allowed: key=value; keys of its own: attainment, seeds,"),
        (["policy=volt"], "policy=volt: no such option; allowed:"),
        (["rate=5", "rate=6"], "rate: found twice, allowed: once"),
        (
            ["arrival=timestamps", "trace=record", "+trace.path=x"],
            "arrival: found timestamps, allowed: arrivals at a rate",
        ),
        (["out=[1]"], "out: found [1], allowed: a path"),
    ],
)
def test_bad_words_name_the_key(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, err, status = command(capsys, monkeypatch, *words)
    assert status == 2
    assert err.startswith("voltana-capacity: error: ") and message in err and err.count("\n") == 1
