"""The published curve: its shape in simulations of some of its points, and the command that compares all of them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from voltana.errors import UserError
from voltana.record import RunRecord
from voltana.sim.studies import published
from voltana.sim.studies.published import Cell, Comparison, Point

pytestmark = pytest.mark.slow

DATA = Path(os.environ.get("VOLTANA_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))
LLAMA = DATA / "paper" / "llama31_8b_sharegpt.csv"
needs_data = pytest.mark.skipif(not LLAMA.is_file(), reason="no published curves (VOLTANA_DATA)")

POLICIES = {"sglang_f1410": "static_max", "sglang_f1005": "static_1005", "voltanallm": "voltana"}
LOW, MIDDLE, HIGH = 50, 75, 100
HEADER = "model,dataset,rps,series,ttft_attainment_pct,itl_attainment_pct,energy_kJ"
GOOD = "Llama-3.1-8B,ShareGPT,50,voltanallm,98.3,100.0,114.4"

Curve = dict[tuple[str, int], Comparison]


@pytest.fixture(scope="module", name="curve")
def _curve(tmp_path_factory: pytest.TempPathFactory) -> Curve:
    """All policies at three rates of one panel, simulated as published."""
    folder = tmp_path_factory.mktemp("curve")
    points = [point for point in published.read_points(LLAMA) if point.cell.rps in (LOW, MIDDLE, HIGH)]
    found = [Comparison(point, published.simulate_point(point.cell, folder / point.cell.name)) for point in points]
    return {(POLICIES[c.published.cell.series], int(c.published.cell.rps)): c for c in found}


def energy(curve: Curve, policy: str, rps: int) -> float:
    return curve[policy, rps].simulated.energy_kj


@needs_data
@pytest.mark.parametrize("rps", [LOW, MIDDLE, HIGH])
def test_the_low_clock_is_cheapest_and_the_high_clock_dearest(curve: Curve, rps: int) -> None:
    low, adaptive, high = (energy(curve, policy, rps) for policy in ("static_1005", "voltana", "static_max"))
    assert 0.99 * low < adaptive < high


@needs_data
def test_the_low_clock_fails_first(curve: Curve) -> None:
    for policy in POLICIES.values():
        assert curve[policy, LOW].simulated.itl_pct > 99
    assert curve["static_1005", MIDDLE].simulated.itl_pct < 75
    for policy in ("static_max", "voltana"):
        assert curve[policy, MIDDLE].simulated.itl_pct > 95
    for rps in (MIDDLE, HIGH):
        for other in ("static_max", "voltana"):
            low, high = curve["static_1005", rps].simulated, curve[other, rps].simulated
            assert low.ttft_pct < high.ttft_pct - 20 and low.itl_pct < high.itl_pct - 15


@needs_data
def test_voltana_goes_from_the_low_clock_to_the_high_one(curve: Curve) -> None:
    """Its energy as a share of the way from the low clock's to the high clock's."""

    def share(rps: int) -> float:
        low, high = energy(curve, "static_1005", rps), energy(curve, "static_max", rps)
        return (energy(curve, "voltana", rps) - low) / (high - low)

    assert share(LOW) < 0.1
    assert share(LOW) < share(MIDDLE) < share(HIGH)
    assert share(HIGH) > 0.5


@needs_data
@pytest.mark.parametrize("rps", [LOW, MIDDLE, HIGH])
def test_voltana_attains_nearly_what_the_high_clock_does(curve: Curve, rps: int) -> None:
    ours, most = curve["voltana", rps].simulated, curve["static_max", rps].simulated
    assert ours.ttft_pct > most.ttft_pct - 8
    assert ours.itl_pct > most.itl_pct - 8


@needs_data
def test_every_energy_is_near_the_published_one(curve: Curve) -> None:
    assert len(curve) == 9
    for comparison in curve.values():
        assert abs(comparison.energy_pct) < 10, comparison


# The command


def write(folder: Path, *lines: str, name: str = "one.csv") -> Path:
    path = folder / "paper" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


@needs_data
def test_the_published_panels_are_read_whole() -> None:
    cells = [point.cell for point in published.read_panels(DATA)]
    assert len(cells) == len(set(cells)) == 78
    assert {cell.rps for cell in cells if cell.model == "llama31_8b"} == set(range(50, 101, 5))
    assert {cell.series for cell in cells} == set(published.SERIES)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "found no rows"),
        ([HEADER], "found no rows"),
        ([HEADER.replace(",rps", ""), GOOD], "2: rps: missing"),
        ([HEADER, GOOD.rpartition(",")[0]], "2: energy_kJ: missing"),
        (
            [HEADER, GOOD, GOOD.replace("98.3", "good")],
            "3: ttft_attainment_pct: found 'good', allowed: a number from 0",
        ),
        ([HEADER, GOOD.replace("114.4", "nan")], "2: energy_kJ: found 'nan', allowed: a number from 0"),
        ([HEADER, GOOD.replace("98.3", "101")], "2: found rps 50, 101 %, 100 %, 114.4 kJ; allowed: > 0, up to 100 %"),
        ([HEADER, GOOD.replace("voltanallm", "dynamollm")], "2: series: found 'dynamollm', allowed: sglang_f1410, "),
        ([HEADER, GOOD.replace("ShareGPT", "Azure")], "2: dataset: found 'Azure', allowed: ShareGPT, LMSYS"),
        ([HEADER, GOOD, GOOD], "found 1 points twice"),
    ],
)
def test_a_malformed_curve_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], message: str
) -> None:
    write(tmp_path, *lines)
    with pytest.raises(UserError) as refused:
        published.read_panels(tmp_path)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert published.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{refused.value}\n"


def test_a_missing_or_binary_curve_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert published.main([str(tmp_path)]) == 2
    assert "paper: found no *.csv; allowed: published curves" in capsys.readouterr().err
    write(tmp_path).write_bytes(b"\xff\xfe\x00")
    assert published.main([str(tmp_path)]) == 2
    assert "one.csv: not a CSV file" in capsys.readouterr().err


def test_a_point_in_two_files_is_refused(tmp_path: Path) -> None:
    write(tmp_path, HEADER, GOOD)
    write(tmp_path, HEADER, GOOD, name="two.csv")
    with pytest.raises(UserError, match="found 1 points twice"):
        published.read_panels(tmp_path)


def compared(series: str, rps: float, ours: tuple[float, ...], theirs: tuple[float, ...]) -> Comparison:
    cell = Cell("llama31_8b", "sharegpt", series, rps)
    return Comparison(Point(cell, *theirs), Point(cell, *ours))


def test_deviations_are_told_against_their_targets() -> None:
    near = compared("voltanallm", 50, (96.0, 99.0, 103.0), (98.0, 100.0, 100.0))
    far = compared("sglang_f1410", 55, (99.0, 100.0, 180.0), (98.0, 100.0, 200.0))
    assert (near.ttft_points, near.itl_points, near.energy_pct) == pytest.approx((-2.0, -1.0, 3.0))
    found = published.verdicts([near, far])
    assert [v.found for v in found] == pytest.approx([1.5, 0.5, 6.5, 10.0, 0.0, 0])
    assert [v.met for v in found] == [True, True, False, False, True, True]
    worst = "energy, worst (llama31_8b_sharegpt_sglang_f1410_55)"
    assert f"| {worst} | 10.0 % | 9 % | missed |" in published.verdict_table(found)
    line = "| 96.0 / 98.0 | -2.0 | 99.0 / 100.0 | -1.0 | 103.0 / 100.0 | +3.0 % |"
    assert f"| llama31_8b | voltanallm | 50 {line}" in published.table([near])
    assert "| llama31_8b, sharegpt | 1.5 | 0.5 | 6.5 % | 10.0 % | 0.0 |" in published.panel_table([near, far])


def test_savings_and_the_order_of_policies_are_compared_at_the_same_rate() -> None:
    static = compared("sglang_f1410", 95, (60.0, 62.0, 200.0), (60.0, 75.0, 200.0))
    right = compared("voltanallm", 95, (60.0, 70.0, 190.0), (60.0, 82.0, 180.0))
    wrong = compared("voltanallm", 95, (60.0, 50.0, 190.0), (60.0, 82.0, 180.0))
    close = compared("voltanallm", 95, (60.0, 50.0, 190.0), (60.0, 78.0, 180.0))
    alone = compared("voltanallm", 100, (60.0, 50.0, 190.0), (60.0, 82.0, 180.0))
    assert published.ratio_points([static, right, alone]) == pytest.approx([5.0])
    orders = [published.itl_order([static, other]) for other in (right, wrong, close, alone)]
    assert orders == [(0, 1), (1, 1), (0, 0), (0, 0)]


def test_energy_counts_from_the_first_to_the_last_busy_moment() -> None:
    rows = pd.DataFrame(
        {
            "instance": ["a"] * 5 + ["b"] * 2 + ["c"],
            "time_s": [0.0, 1.0, 2.0, 4.0, 5.0, 0.0, 9.0, 0.0],
            "batch_size": [0, 3, 0, 2, 0, 0, 1, 0],
            "power_w": [10.0, 100.0, 20.0, 200.0, 10.0, 10.0, 300.0, 10.0],
        }
    )
    assert published.busy_energy_j(rows, end_s=10.0) == pytest.approx(100 + 2 * 20 + 200 + 300)


@pytest.mark.parametrize(("energy_kj", "status"), [(114.0, 0), (130.0, 1)])
def test_the_exit_status_says_whether_targets_are_met(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    energy_kj: float,
    status: int,
) -> None:
    write(tmp_path, HEADER, GOOD)

    def compare(points: list[Point], folder: Path, seed: int | None, done: Callable[[str], None]) -> list[Comparison]:
        assert folder == tmp_path / "records"
        done(points[0].cell.name)
        return [Comparison(point, point._replace(energy_kj=energy_kj)) for point in points]

    monkeypatch.setattr(published, "compare", compare)
    assert published.main([str(tmp_path), "--records", str(tmp_path / "records")]) == status
    out, err = capsys.readouterr()
    assert "| energy, mean |" in out and f"records are in {tmp_path / 'records'}" in out
    assert err == "[1/1] llama31_8b_sharegpt_voltanallm_50\n"


@pytest.mark.slow
def test_what_was_simulated_is_taken_from_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "SETTING", ("duration_s=1",))
    cell = Cell("llama31_8b", "sharegpt", "sglang_f1005", 20.0)
    first = published.simulate_point(cell, tmp_path)
    started = RunRecord(tmp_path).provenance["started"]
    (tmp_path / "summary.json").touch()
    assert published.simulate_point(cell, tmp_path) == first
    assert RunRecord(tmp_path).provenance["started"] == started
    assert (tmp_path / "instances.parquet").stat().st_mtime_ns < (tmp_path / "summary.json").stat().st_mtime_ns


def test_points_are_simulated_with_the_demo_s_configuration(values: Callable[..., dict[str, Any]]) -> None:
    demo = ["model=llama31_8b", "trace=sharegpt", "policy=static_1005", "rps=75", "duration_s=120"]
    cell = Cell("llama31_8b", "sharegpt", "sglang_f1005", 75.0)
    assert published.configuration(cell) == values(*demo)
    assert published.configuration(cell, seed=5) == values(*demo, "seed=5")
    adaptive = published.configuration(cell._replace(series="voltanallm"))["policy"]
    assert adaptive["decode_router"]["_target_"] == "voltana.policies.balancers.TileAware"
