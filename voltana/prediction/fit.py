"""Learning EcoPred from a profile: RANSAC over non-negative least squares, per clock and batch bin.

The estimator is the published one (VoltanaLLM, arXiv 2509.04827, and the notebooks of its release): a line through
every pair of prefill rows and a plane through every three decode rows of a bin is tried, up to 100,000 and 10,000 of
them. The rows that lie within the median absolute deviation of all latencies (ms) of a trial are its consensus; in
decode it is the squared error (ms^2) that must be within that number. The largest consensus (of equals, the one best
explained) is then fitted by least squares. The release's library ends its trials early, once a better consensus has
become unlikely; here each is tried, all at once in arrays, and where there are no more than so many samples no
chance is left in it. A bin that was not profiled borrows the plane of the nearest profiled bin of the same clock.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voltana.errors import UserError
from voltana.prediction.ecopred import BIN_ENDS, EcoPred, Line, Plane, decode_bin
from voltana.prediction.profile import Sample
from voltana.state import Phase

Array = NDArray[np.float64]

HELD_OUT_SHARE = 0.2
RESOLUTION = 1e-12
"""Features whose (co)variance is less than this share of their size do not tell a slope."""
AT_ONCE = 3_000_000
"""Numbers in an array of trials and rows that are looked at together."""


class Ransac(NamedTuple):
    """Settings of the search for a consensus."""

    trials: int
    """At most."""
    squared: bool
    """Whether the squared error counts."""


PREFILL, DECODE = Ransac(100_000, squared=False), Ransac(10_000, squared=True)


def fit_ecopred(samples: Sequence[Sample], about: Mapping[str, Any] | None = None, seed: int = 0) -> EcoPred:
    """Fit a predictor and state its error.

    The error is measured on a random fifth of the samples of every clock and batch bin, predicted by a fit to the rest;
    the predictor returned is then fitted to all.

    Args:
        samples: at least two clocks, each with prefill and decode rows.
        about: kept in the predictor beside the error.
        seed: of the hold-out split, and of RANSAC where its trials are drawn.

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
    return Line(*robust_fit(np.array([[s.tokens] for s in rows], dtype=float), _latency(rows), PREFILL, seed))


def _fit_decode(rows: Sequence[Sample], seed: int) -> list[Plane]:
    bins: dict[int, list[Sample]] = {}
    for row in rows:
        bins.setdefault(decode_bin(row.batch_size), []).append(row)
    planes: dict[int, Plane] = {}
    for index, members in bins.items():
        _check_enough(members, 4)
        features = np.array([[s.batch_size, s.tokens] for s in members], dtype=float)
        planes[index] = Plane(*robust_fit(features, _latency(members), DECODE, seed))
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


def robust_fit(features: Array, latency_s: Array, ransac: Ransac, seed: int) -> tuple[float, ...]:
    """The intercept (s) and slopes (s per unit) of the module's estimator.

    Args:
        features: a row per sample, of one or two columns.
        latency_s: of each row.
        ransac: how many samples are tried and which loss counts.
        seed: of the trials, where they are drawn.
    """
    scale = features.max(axis=0)
    scaled, target_ms = features / scale, latency_s * 1e3
    bound = float(np.median(np.abs(target_ms - np.median(target_ms))))
    best, consensus = (0, -math.inf), np.ones(len(target_ms), dtype=bool)
    trials = _trials(len(target_ms), features.shape[1] + 1, ransac.trials, seed)
    for some in np.array_split(trials, math.ceil(len(trials) * len(target_ms) / AT_ONCE)):
        models = _least_squares(scaled[some], target_ms[some])
        off = np.abs(target_ms - models[:, :1] - models[:, 1:] @ scaled.T)
        within = (off**2 if ransac.squared else off) <= bound
        counts = within.sum(axis=1)
        most = np.flatnonzero(counts == counts.max())
        scores = _explained(target_ms, off[most], within[most])
        score = int(counts.max()), float(scores.max())
        if score > best and score[0] > 0:
            best, consensus = score, within[most[scores.argmax()]]
    intercept, *slopes = _least_squares(scaled[consensus], target_ms[consensus]) / 1e3
    return float(intercept), *(float(slope) for slope in slopes / scale)


@lru_cache
def _trials(rows: int, size: int, most: int, seed: int) -> NDArray[np.int64]:
    """The samples of `size` rows to try: all there are or, where those are more than `most`, so many drawn ones."""
    if math.comb(rows, size) <= most:
        return np.array(list(combinations(range(rows), size)))
    drawn = np.random.default_rng(seed).integers(0, rows - np.arange(size), (most, size))
    for place in range(1, size):
        for earlier in np.sort(drawn[:, :place], axis=1).T:
            drawn[:, place] += drawn[:, place] >= earlier
    return drawn


def _least_squares(features: Array, target: Array) -> Array:
    """Least squares with slopes >= 0 in closed form, for one set of rows or many at once.

    With two slopes: the free solution if it is feasible, else the better of the two with one slope, which is where
    the solution of a convex problem must then lie.

    Args:
        features: (..., rows, 1 or 2).
        target: (..., rows).

    Returns:
        The intercept and the slopes, (..., 1 + slopes).
    """
    centre, mean = features.mean(axis=-2), target.mean(axis=-1)
    x, y = features - centre[..., None, :], target - mean[..., None]
    xx, xy = np.einsum("...ri,...rj->...ij", x, x), np.einsum("...ri,...r->...i", x, y)
    variance = np.diagonal(xx, axis1=-2, axis2=-1)
    known = variance > RESOLUTION * (features**2).sum(axis=-2)
    alone = np.where(known & (xy > 0), xy, 0) / np.where(known, variance, 1)
    slopes = alone
    if features.shape[-1] == 2:
        slopes = np.where(np.argmax(alone * xy, axis=-1)[..., None] == np.arange(2), alone, 0)
        both = variance[..., 0] * variance[..., 1]
        determinant = both - xx[..., 0, 1] ** 2
        independent = determinant > RESOLUTION * both
        cross = xy * variance[..., ::-1] - xy[..., ::-1] * xx[..., 0, 1, None]
        free = cross / np.where(independent, determinant, 1)[..., None]
        feasible = independent & known.all(axis=-1) & (free >= 0).all(axis=-1)
        slopes = np.where(feasible[..., None], free, slopes)
    return np.concatenate(((mean - (slopes * centre).sum(axis=-1))[..., None], slopes), axis=-1)


def _explained(target: Array, off: Array, within: NDArray[np.bool_]) -> Array:
    """Share of the variance within each consensus that its trial explains, by which ties are broken."""
    members = within.sum(axis=1)
    centred = np.where(within, target - (within @ target / np.maximum(members, 1))[:, None], 0)
    spread = (centred**2).sum(axis=1)
    explained: Array = 1 - np.where(within, off**2, 0).sum(axis=1) / np.where(spread > 0, spread, 1)
    return explained
