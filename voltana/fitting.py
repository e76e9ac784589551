"""Learning EcoPred from a profile: RANSAC over non-negative least squares, per clock and batch bin.

The estimator is the published one (VoltanaLLM, arXiv 2509.04827). A bin that was not profiled borrows the plane of
the nearest profiled bin of the same clock.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.linear_model import LinearRegression, RANSACRegressor

from voltana.ecopred import BIN_ENDS, EcoPred, Line, Plane, decode_bin
from voltana.errors import UserError
from voltana.profile import Sample
from voltana.state import Phase

Array = NDArray[np.float64]

HELD_OUT_SHARE = 0.2


def fit_ecopred(samples: Sequence[Sample], about: Mapping[str, Any] | None = None, seed: int = 0) -> EcoPred:
    """Fit a predictor and state its error.

    The error is measured on a random fifth of the samples of every clock and batch bin, predicted by a fit to the rest;
    the predictor returned is then fitted to all.

    Args:
        samples: at least two clocks, each with prefill and decode rows.
        about: kept in the predictor beside the error.
        seed: of the hold-out split and of RANSAC.

    Raises:
        UserError: too few clocks or rows.
    """
    _check(samples)
    held = _hold_out(samples, seed)
    trial = _fit([s for i, s in enumerate(samples) if i not in held], seed, {})
    error = held_out_error(trial, [samples[i] for i in sorted(held)])
    return _fit(samples, seed, {**(about or {}), "samples": len(samples), "held_out_error": error})


def held_out_error(predictor: EcoPred, samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Mean absolute error (ms) and mean absolute percentage error of each phase."""
    report: dict[str, dict[str, float]] = {}
    for phase in ("prefill", "decode"):
        rows = [s for s in samples if s.phase == phase]
        if not rows:
            continue
        true = np.array([s.latency_s for s in rows])
        off = np.abs(np.array([predict(predictor, s) for s in rows]) - true)
        report[phase] = {
            "samples": len(rows),
            "mae_ms": float(off.mean() * 1e3),
            "mape_pct": float((off / true).mean() * 100),
        }
    return report


def predict(predictor: EcoPred, sample: Sample) -> float:
    """Predicted latency (s) of a profiled iteration."""
    if sample.phase == "prefill":
        return predictor.prefill_s(sample.tokens, sample.clock_mhz)
    return predictor.decode_s(sample.batch_size, sample.tokens, sample.clock_mhz)


def _check(samples: Sequence[Sample]) -> None:
    clocks = {phase: {s.clock_mhz for s in samples if s.phase == phase} for phase in ("prefill", "decode")}
    if len(clocks["prefill"]) < 2 or clocks["prefill"] != clocks["decode"]:
        found = {phase: sorted(values) for phase, values in clocks.items()}
        raise UserError(f"profile: found clocks {found}, allowed: the same two or more clocks in both phases")


def _hold_out(samples: Sequence[Sample], seed: int) -> set[int]:
    """Indices of the rows held out: the same share of what every line and plane is fitted to."""
    groups: dict[tuple[Phase, int, int], list[int]] = {}
    for index, s in enumerate(samples):
        part = decode_bin(s.batch_size) if s.phase == "decode" else 0
        groups.setdefault((s.phase, s.clock_mhz, part), []).append(index)
    draw = np.random.default_rng(seed)
    return {
        int(index) for rows in groups.values() for index in draw.permutation(rows)[: int(HELD_OUT_SHARE * len(rows))]
    }


def _fit(samples: Sequence[Sample], seed: int, about: Mapping[str, Any]) -> EcoPred:
    clocks = sorted({s.clock_mhz for s in samples})
    lines = [_fit_prefill(_rows(samples, "prefill", clock), seed) for clock in clocks]
    planes = [_fit_decode(_rows(samples, "decode", clock), seed) for clock in clocks]
    return EcoPred(clocks, lines, planes, about)


def _rows(samples: Sequence[Sample], phase: Phase, clock_mhz: int) -> list[Sample]:
    return [s for s in samples if s.phase == phase and s.clock_mhz == clock_mhz]


def _fit_prefill(rows: Sequence[Sample], seed: int) -> Line:
    _check_enough(rows, 3)
    features = np.array([[s.tokens] for s in rows], dtype=float)
    intercept, coefficients = _ransac(features, _latency(rows), seed)
    return Line(intercept, coefficients[0])


def _fit_decode(rows: Sequence[Sample], seed: int) -> list[Plane]:
    bins: dict[int, list[Sample]] = {}
    for row in rows:
        bins.setdefault(decode_bin(row.batch_size), []).append(row)
    planes: dict[int, Plane] = {}
    for index, members in bins.items():
        _check_enough(members, 4)
        features = np.array([[s.batch_size, s.tokens] for s in members], dtype=float)
        intercept, coefficients = _ransac(features, _latency(members), seed)
        planes[index] = Plane(intercept, *coefficients)
    return [planes[min(planes, key=lambda known: abs(known - index))] for index in range(len(BIN_ENDS))]


def _check_enough(rows: Sequence[Sample], needed: int) -> None:
    if len(rows) < needed:
        first = rows[0]
        where = f"{first.phase} at {first.clock_mhz} MHz"
        if first.phase == "decode":
            where += f" around batch size {first.batch_size}"
        raise UserError(f"profile: found {len(rows)} rows for {where}, allowed: at least {needed} per clock and bin")


def _latency(rows: Sequence[Sample]) -> Array:
    return np.array([s.latency_s for s in rows])


def _ransac(features: Array, target: Array, seed: int) -> tuple[float, list[float]]:
    scale = features.max(axis=0)
    estimator = RANSACRegressor(LinearRegression(positive=True), random_state=seed % 2**32)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)  # of a consensus of one row, soon replaced
            fitted = estimator.fit(features / scale, target).estimator_
    except ValueError:
        fitted = LinearRegression(positive=True).fit(features / scale, target)
    return float(fitted.intercept_), [float(c) for c in fitted.coef_ / scale]
