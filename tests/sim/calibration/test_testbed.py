"""The joint fit of the testbed: a fake testbed whose constants are known, and the deviations it minimises."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from voltana.errors import UserError
from voltana.sim.calibration import testbed
from voltana.sim.calibration.testbed import STEPS, Outcome
from voltana.sim.studies.published import Cell, Point

MODELS = ("llama31_8b", "qwen3_32b")
TRUE_S = {"llama31_8b": 0.05, "qwen3_32b": 0.1}
KEYS = list(STEPS)


@pytest.fixture(name="pool")
def _pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


def respond(point: Point, constants: Mapping[str, float]) -> Outcome:
    """A testbed in which every constant moves latencies and energy of its own rates."""
    deviation = np.array([constants[key] / START[key] - 1 for key in KEYS])
    rng = np.random.default_rng(int(point.cell.rps) + len(point.cell.model))
    effect = rng.normal(size=(3, len(KEYS))) @ deviation
    spread = np.linspace(0.2, 1.8, 400)
    itl_s = TRUE_S[point.cell.model] * spread * np.exp(0.5 * effect[0])
    return Outcome(point, 10 * itl_s * np.exp(0.5 * effect[1]), itl_s, 100 * float(np.exp(effect[2])))


START = dict.fromkeys(KEYS, 1.0)


def published(constants: Mapping[str, float]) -> list[Point]:
    """What that testbed shows with given constants and the true objectives."""
    found = []
    for model in MODELS:
        for rps in range(10, 20):
            blank = Point(Cell(model, "sharegpt", "sglang_f1410", float(rps)), 0.0, 0.0, 100.0)
            ours = respond(blank, constants)
            ttft, itl, _ = ours.misses(TRUE_S[model])
            found.append(Point(blank.cell, ttft, itl, ours.energy_kj))
    return found


@pytest.mark.slow
def test_the_fit_finds_the_constants_that_made_the_points(monkeypatch: pytest.MonkeyPatch, pool: Executor) -> None:
    monkeypatch.setattr(testbed, "run", respond)
    monkeypatch.setattr(testbed, "STEPS", dict.fromkeys(KEYS, 0.02))
    rng = np.random.default_rng(4)
    true = {key: 1.0 + 0.06 * rng.uniform(-1, 1) for key in KEYS}
    points = published(true)
    best = testbed.fit(points, START, pool, testbed.Notes(None, "test"))
    before = np.abs([START[key] - true[key] for key in KEYS])
    after = np.abs([best.constants[key] - true[key] for key in KEYS])
    assert after.mean() < before.mean() / 3
    assert best.objectives_s == pytest.approx(TRUE_S, rel=0.03)
    spans = testbed.intervals(best, pool)
    assert spans.keys() == {*KEYS, *(f"objective of {model}" for model in MODELS)}
    assert all(low <= best.constants[key] <= high for key, (low, high) in spans.items() if key in STEPS)
    assert testbed.fit_table(best, spans).count("\n") == 1 + len(KEYS) + len(MODELS)


def test_residuals_are_weighted_and_grow_with_the_root_beyond_one() -> None:
    def found(ttft_pct: float) -> Sequence[Outcome]:
        point = Point(Cell("llama31_8b", "sharegpt", "sglang_f1410", 50.0), ttft_pct, 50.0, 100.0)
        return [Outcome(point, np.array([0.1, 0.9]), np.array([0.01, 0.09]), 100.0)]

    assert testbed.residuals(found(47.0), {"llama31_8b": 0.05}) == pytest.approx([0.5, 0.0, 0.0])
    assert testbed.residuals(found(62.0), {"llama31_8b": 0.05}) == pytest.approx([-np.sqrt(3), 0.0, 0.0])


@pytest.mark.slow
def test_constants_go_into_the_configuration() -> None:
    shipped = testbed.shipped()
    assert shipped.keys() == STEPS.keys()
    point = Point(Cell("qwen3_32b", "sharegpt", "sglang_f1005", 2.0), 100.0, 100.0, 1.0)
    legs = (0.0, np.float64(0.2))  # as the first pass has it, and as the steps of a fit do
    usual, slow = (testbed.run(point, shipped | {"front_end.leg_s": leg}) for leg in legs)
    assert np.median(slow.ttft_s) - np.median(usual.ttft_s) > 0.4
    assert len(slow.mean_itl_s) == len(usual.mean_itl_s) > 100


def test_bad_data_is_told_in_one_line(tmp_path: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert testbed.main([str(tmp_path)]) == 2
    assert "paper: found no *.csv" in capsys.readouterr().err


@pytest.mark.slow
def test_an_interrupted_fit_goes_on(monkeypatch: pytest.MonkeyPatch, pool: Executor, tmp_path: Path) -> None:
    monkeypatch.setattr(testbed, "STEPS", dict.fromkeys(KEYS, 0.02))
    points, path = published(dict.fromkeys(KEYS, 1.03)), tmp_path / "notes.json"
    left = iter(range(25 * len(points)))

    def interrupted(point: Point, constants: Mapping[str, float]) -> Outcome:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return respond(point, constants)

    monkeypatch.setattr(testbed, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        testbed.fit(points, START, pool, testbed.Notes(path, "test"))
    kept = testbed.Notes(path, "test")
    assert kept.constants is not None and kept.constants != START and 0 < kept.rounds < testbed.ROUNDS
    monkeypatch.setattr(testbed, "run", respond)
    best = testbed.fit(points, START, pool, kept)
    assert testbed.Notes(path, "test").constants == best.constants
    with pytest.raises(UserError, match="allowed: a file written by --notes"):
        path.write_text("[1]")
        testbed.Notes(path, "test")
