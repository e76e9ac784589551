"""EcoPred learned from a profile: what went in comes out, noise and outliers aside."""

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from voltana.errors import UserError
from voltana.prediction.ecopred import BIN_ENDS, EcoPred, decode_bin
from voltana.prediction.fit import (
    DECODE,
    PREFILL,
    Ransac,
    _least_squares,
    _trials,
    fit_ecopred,
    held_out_error,
    predict,
    robust_fit,
)
from voltana.prediction.profile import Sample

Latency = Callable[[str, int, int, int], float]


def disturbed(profile: list[Sample], copies: int, noise: float, outliers: float, seed: int = 5) -> list[Sample]:
    """Repeated measurements with relative noise, of which a share took three times as long."""
    draw = np.random.default_rng(seed)
    return [
        s._replace(
            latency_s=s.latency_s * (1 + noise * draw.standard_normal()) * (3 if draw.random() < outliers else 1)
        )
        for s in profile * copies
    ]


def coefficients(predictor: EcoPred) -> list[tuple[float, ...]]:
    return [
        row
        for clock in predictor.clocks_mhz
        for row in (tuple(predictor.prefill_line(clock)), *map(tuple, predictor.decode_planes(clock)))
    ]


def test_a_noise_free_plant_is_recovered_exactly(predictor: EcoPred, profile: list[Sample]) -> None:
    assert [predict(predictor, s) for s in profile] == pytest.approx([s.latency_s for s in profile], rel=1e-9)


def test_a_clock_that_was_not_profiled_is_predicted(predictor: EcoPred, latency: Latency) -> None:
    assert predictor.decode_s(40, 30_000, 1305) == pytest.approx(latency("decode", 1305, 40, 30_000), rel=1e-9)
    assert predictor.prefill_s(700, 1500) == pytest.approx(latency("prefill", 1500, 4, 700), rel=1e-9)


def test_noise_and_gross_outliers_hardly_matter(profile: list[Sample]) -> None:
    predictor = fit_ecopred(disturbed(profile, copies=8, noise=0.02, outliers=0.05), seed=1)
    error = held_out_error(predictor, profile)
    assert error["prefill"]["mape_pct"] < 2
    assert error["decode"]["mape_pct"] < 2


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**31))
def test_slopes_are_never_negative(profile: list[Sample], seed: int) -> None:
    draw = np.random.default_rng(seed)
    few = [s for s in profile if s.batch_size in (4, 5, 8) and s.clock_mhz < 1410]
    predictor = fit_ecopred([s._replace(latency_s=float(draw.uniform(1e-3, 1))) for s in few])
    assert all(slope >= 0 for _, *slopes in coefficients(predictor) for slope in slopes)


def test_a_bin_without_rows_borrows_the_nearest(predictor: EcoPred, profile: list[Sample]) -> None:
    planes = predictor.decode_planes(1200)
    known = sorted({decode_bin(s.batch_size) for s in profile if s.phase == "decode"})
    assert known == [0, 1, 5, 16, 17]
    assert planes[2] == planes[1]
    assert planes[4] == planes[5]
    assert planes[10] == planes[5]
    assert planes[11] == planes[16]
    assert set(planes[17:]) == {planes[17]}
    assert len(planes) == len(BIN_ENDS)


def test_the_held_out_error_is_the_noise(profile: list[Sample]) -> None:
    noisy = disturbed(profile, copies=8, noise=0.02, outliers=0)
    about = fit_ecopred(noisy, {"gpu": "synthetic"}, seed=1).about
    error = about["held_out_error"]
    assert (about["gpu"], about["samples"]) == ("synthetic", len(noisy))
    assert sum(error[phase]["samples"] for phase in error) == pytest.approx(len(noisy) / 5, rel=0.02)
    for phase in ("prefill", "decode"):
        assert error[phase]["mape_pct"] == pytest.approx(2 * np.sqrt(2 / np.pi), rel=0.25)  # mean |N(0, 2 %)|


def test_the_error_is_in_milliseconds_and_percent(predictor: EcoPred, profile: list[Sample]) -> None:
    late = [s._replace(latency_s=s.latency_s * 1.25) for s in profile[:1]]
    error = held_out_error(predictor, late)
    assert set(error) == {"prefill"}
    assert error["prefill"]["mape_pct"] == pytest.approx(20)
    assert error["prefill"]["mae_ms"] == pytest.approx(0.2e3 * late[0].latency_s)


def test_the_same_seed_gives_the_same_predictor(profile: list[Sample]) -> None:
    two_clocks = [s for s in profile if s.clock_mhz != 1200]
    noisy = disturbed(two_clocks, copies=1, noise=0.02, outliers=0.05)
    first, again, other = (fit_ecopred(noisy, seed=seed) for seed in (3, 3, 4))
    assert coefficients(first) == coefficients(again)
    assert first.about == again.about
    assert other.about != first.about


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 2**32 + 3])
def test_any_seed_rejects_outliers(profile: list[Sample], seed: int) -> None:
    predictor = fit_ecopred(disturbed(profile, copies=4, noise=0, outliers=0.05), seed=seed)
    assert held_out_error(predictor, profile)["prefill"]["mape_pct"] < 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_the_fewest_rows_allowed_suffice_with_any_seed(profile: list[Sample], seed: int) -> None:
    fit_ecopred(smallest(profile), seed=seed)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_too_few_rows_are_refused_by_clock(profile: list[Sample], phase: str) -> None:
    rows = smallest(profile)
    rows.remove(next(s for s in rows if s.phase == phase and s.clock_mhz == 1410))
    with pytest.raises(UserError, match=rf"^profile: found \d rows for {phase} at 1410 MHz.*allowed: at least \d"):
        fit_ecopred(rows)


def smallest(profile: list[Sample]) -> list[Sample]:
    """Two clocks, three prefill rows and four decode rows each."""
    return [
        s
        for clock in (1005, 1410)
        for phase, count in (("prefill", 3), ("decode", 4))
        for s in [s for s in profile if (s.phase, s.clock_mhz) == (phase, clock) and s.batch_size in (4, 8)][:count]
    ]


@pytest.mark.parametrize(
    "keep",
    [
        lambda s: False,
        lambda s: s.clock_mhz == 1005,
        lambda s: s.phase == "prefill",
        lambda s: s.phase == "decode",
        lambda s: s.phase == "prefill" or s.clock_mhz != 1410,
    ],
)
def test_too_few_clocks_are_refused(profile: list[Sample], keep: Callable[[Sample], bool]) -> None:
    with pytest.raises(
        UserError, match=r"^profile: found clocks .*allowed: the same two or more clocks in both phases"
    ):
        fit_ecopred([s for s in profile if keep(s)])


def by_nnls(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Intercept and slopes by a library: the intercept is the difference of two numbers that are not negative."""
    ones = np.ones((len(target), 1))
    up, down, *slopes = nnls(np.hstack((ones, -ones, features)), target)[0]
    return np.array([up - down, *slopes])


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 2), st.integers(2, 12), st.sampled_from([0, 1, 6]))
def test_the_closed_form_is_non_negative_least_squares(seed: int, slopes: int, rows: int, levels: int) -> None:
    draw = np.random.default_rng(seed)
    features = draw.integers(1, levels + 1, (rows, slopes)) / levels if levels else draw.uniform(0, 1, (rows, slopes))
    target = features @ draw.uniform(-1, 1, slopes) + draw.normal(0, draw.choice([1e-3, 1]), rows)
    found, library = _least_squares(features, target), by_nnls(features, target)
    assert (found[1:] >= 0).all()
    off, least = (np.square(target - each[0] - features @ each[1:]).sum() for each in (found, library))
    assert off == pytest.approx(least, rel=1e-7, abs=1e-12)
    many = _least_squares(np.stack([features] * 3), np.stack([target, 2 * target, -target]))
    assert many[0] == pytest.approx(found) and many[1] == pytest.approx(2 * found, abs=1e-12)


@pytest.mark.parametrize(("ransac", "slopes"), [(PREFILL, 1), (DECODE, 2)])
@pytest.mark.parametrize("seed", range(4))
def test_the_consensus_is_the_largest_of_all_samples(ransac: Ransac, slopes: int, seed: int) -> None:
    """One sample after another, by the library: the published procedure, its trials not cut short."""
    draw = np.random.default_rng(seed)
    features = draw.uniform(100, 20_000, (12, slopes))
    latency_s = 5e-3 + features @ np.full(slopes, 2e-6) + draw.normal(0, 1e-3, 12)
    latency_s[:4] += draw.uniform(0.02, 0.2, 4)
    ms = 1e3 * latency_s
    bound = np.median(np.abs(ms - np.median(ms)))
    best: tuple[int, float] = (0, -math.inf)
    for some in map(list, combinations(range(12), slopes + 1)):
        intercept, *slope = by_nnls(features[some] / 20_000, ms[some])
        off = np.abs(ms - intercept - features / 20_000 @ slope)
        within = (off**2 if ransac.squared else off) <= bound
        r2 = 1 - np.square(off[within]).sum() / ms[within].var() / within.sum() if within.sum() > 1 else -math.inf
        if (within.sum(), r2) > best:
            best, consensus = (within.sum(), r2), within
    expected = by_nnls(features[consensus] / 20_000, ms[consensus]) / [1e3, *[2e7] * slopes]
    assert robust_fit(features, latency_s, ransac, 0) == pytest.approx(tuple(expected), rel=1e-6, abs=1e-12)


def test_the_trials_are_all_samples_or_as_many_as_published() -> None:
    assert (PREFILL.trials, PREFILL.squared, DECODE.trials, DECODE.squared) == (100_000, False, 10_000, True)
    assert len(_trials(24, 3, 10_000, 0)) == math.comb(24, 3)
    drawn = _trials(50, 3, 10_000, 0)
    assert drawn.shape == (10_000, 3)
    assert all(len(set(sample)) == 3 for sample in drawn.tolist())
    counts = np.bincount(drawn.ravel(), minlength=50)
    assert len(counts) == 50 and ((counts - 600) ** 2 / 600).sum() < 85.4  # chi-square, 49 degrees, p = 0.001
    assert (drawn != _trials(50, 3, 10_000, 1)).any()
