"""The published curve: its shape in simulations of some of its points, and the command that compares all of them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sim import published
from sim.published import CURVE, Comparison, Point
from sim.run import simulate
from voltana.errors import UserError

DATA = Path(os.environ.get("VOLTANA_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / CURVE).is_file(), reason="no published curve (VOLTANA_DATA)")

LOW, MIDDLE, HIGH = 50, 75, 100
HEADER = "model,dataset,rps,series,ttft_attainment_pct,itl_attainment_pct,energy_kJ"
GOOD = "Llama-3.1-8B,ShareGPT,50,voltanallm,98.3,100.0,114.4"

Curve = dict[tuple[str, int], Comparison]


@pytest.fixture(scope="module", name="curve")
def _curve(tmp_path_factory: pytest.TempPathFactory) -> Curve:
    """All policies at three rates, simulated as published."""
    folder = tmp_path_factory.mktemp("curve")
    found = {}
    for point in published.read_points(DATA / CURVE):
        if point.rps in (LOW, MIDDLE, HIGH):
            summary = simulate(published.configuration(point.policy, point.rps), folder, overwrite=True)
            ours = published.point_of(point.policy, point.rps, summary)
            found[point.policy, int(point.rps)] = Comparison(point, ours)
    return found


def energy(curve: Curve, policy: str, rps: int) -> float:
    return curve[policy, rps].simulated.energy_kj


@needs_data
@pytest.mark.parametrize("rps", [LOW, MIDDLE, HIGH])
def test_the_low_clock_is_cheapest_and_the_high_clock_dearest(curve: Curve, rps: int) -> None:
    assert energy(curve, "static_1005", rps) < energy(curve, "voltana", rps) < energy(curve, "static_max", rps)


@needs_data
def test_the_low_clock_fails_first(curve: Curve) -> None:
    for policy in published.POLICIES.values():
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


def write(folder: Path, *lines: str) -> Path:
    (folder / CURVE).parent.mkdir()
    (folder / CURVE).write_text("\n".join(lines) + "\n")
    return folder / CURVE


@needs_data
def test_the_published_curve_is_read_whole() -> None:
    points = published.read_points(DATA / CURVE)
    assert {(p.policy, p.rps) for p in points} == {
        (policy, rps) for policy in published.POLICIES.values() for rps in range(50, 101, 5)
    }


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
        ([HEADER, GOOD.replace("ShareGPT", "LMSYS")], "2: dataset: found 'LMSYS', allowed: ShareGPT"),
        ([HEADER, GOOD, GOOD], "found 1 points twice"),
    ],
)
def test_a_malformed_curve_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], message: str
) -> None:
    path = write(tmp_path, *lines)
    with pytest.raises(UserError) as refused:
        published.read_points(path)
    assert message in str(refused.value) and "\n" not in str(refused.value)
    assert published.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"{refused.value}\n"


def test_a_missing_or_binary_curve_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert published.main([str(tmp_path)]) == 2
    assert f"{CURVE}: No such file or directory" in capsys.readouterr().err
    write(tmp_path).write_bytes(b"\xff\xfe\x00")
    assert published.main([str(tmp_path)]) == 2
    assert f"{CURVE}: not a CSV file" in capsys.readouterr().err


def test_deviations_are_told_against_their_targets() -> None:
    near = Comparison(Point("voltana", 50, 98.0, 100.0, 100.0), Point("voltana", 50, 96.0, 99.0, 103.0))
    far = Comparison(Point("static_max", 55, 98.0, 100.0, 200.0), Point("static_max", 55, 99.0, 100.0, 184.0))
    assert (near.ttft_points, near.itl_points, near.energy_pct) == pytest.approx((-2.0, -1.0, 3.0))
    found = published.verdicts([near, far])
    assert [v.found for v in found] == pytest.approx([1.5, 0.5, 5.5, 8.0])
    assert [v.met for v in found] == [True, True, False, False]
    assert "| energy, worst (static_max at 55/s) | 8.0 % | 7 % | missed |" in published.verdict_table(found)
    assert "| voltana | 50 | 96.0 / 98.0 | -2.0 | 99.0 / 100.0 | -1.0 | 103.0 / 100.0 | +3.0 % |" in published.table(
        [near]
    )


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
        assert folder == tmp_path / "records" and folder.is_dir()
        done("voltana 50/s")
        return [Comparison(point, point._replace(energy_kj=energy_kj)) for point in points]

    monkeypatch.setattr(published, "compare", compare)
    assert published.main([str(tmp_path), "--records", str(tmp_path / "records")]) == status
    out, err = capsys.readouterr()
    assert "| energy, mean |" in out
    assert err == "[1/1] voltana 50/s\n"


def test_points_are_simulated_with_the_demo_s_configuration(values: Callable[..., dict[str, Any]]) -> None:
    demo = ["model=llama31_8b", "trace=sharegpt", "policy=static_1005", "rps=75", "duration_s=120"]
    assert published.configuration("static_1005", 75.0) == values(*demo)
    assert published.configuration("static_1005", 75.0, seed=5) == values(*demo, "seed=5")
