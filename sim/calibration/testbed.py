"""Fit the constants of the published testbed to its panels: ``python -m voltana.sim.calibration.testbed DATA``.

DATA is as for `voltana.sim.studies.published`. Eight constants are shared by all panels; each model has one objective,
TTFT being ten times ITL. Only the two series at fixed clocks are fitted: the third follows from its policy, which reads
telemetry. Printed are the constants, each with the interval that 95 % of bootstrapped fits stay in (the points of each
panel drawn anew, the fit linear around the best), and what a fit without a panel says of it, that panel's own objective
aside. It makes some hundred passes over 52 points, 12 s each on two free cores; with `--notes FILE` it can be stopped
and goes on where it was. See `docs/validation.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from voltana.errors import UserError
from voltana.files import read_json_object, write_whole
from voltana.record import COMPLETED, RunRecord
from voltana.sim.run.simulate import simulate
from voltana.sim.studies.published import ADAPTIVE, PROCESSES, Cell, Point, busy_energy_j, configuration, read_panels

Array = NDArray[np.float64]

STEPS = {
    "serving.engine.host_request_s": 0.0005,
    "serving.engine.host_decode_s": 0.0005,
    "serving.engine.prefill_slowdown": 0.04,
    "serving.engine.decode_slowdown": 0.04,
    "serving.engine.prefill_activity": 0.08,
    "serving.engine.decode_activity": 0.08,
    "trace.output_scale": 0.03,
    "front_end.leg_s": 0.0002,
}
"""The constants, and how far each is moved to see what it does."""
WEIGHTS = (1 / 6, 1 / 5, 1 / 2.5)
"""Of a point of TTFT attainment, a point of ITL attainment and a per cent of energy."""
TTFT_OVER_ITL = 10.0
OBJECTIVES_S = np.geomspace(0.004, 0.26, 340)
OBJECTIVE_STEP = 0.03
ROUNDS = 3
DAMPING = 0.03
DRAWS = 2000


class Outcome(NamedTuple):
    """What a run comes to, whatever the objectives."""

    point: Point
    """As published."""
    ttft_s: Array
    mean_itl_s: Array
    energy_kj: float

    def misses(self, itl_s: float) -> Array:
        """Simulated less published under an objective: points of TTFT and ITL attainment, per cent of energy."""
        ttft = 100 * float((self.ttft_s <= TTFT_OVER_ITL * itl_s).mean()) - self.point.ttft_pct
        itl = 100 * float((self.mean_itl_s <= itl_s).mean()) - self.point.itl_pct
        return np.array([ttft, itl, 100 * math.log(self.energy_kj / self.point.energy_kj)])


class Fit(NamedTuple):
    """The best constants and objectives found, with what they leave."""

    constants: dict[str, float]
    objectives_s: dict[str, float]
    outcomes: list[Outcome]


class Notes:
    """How far a fit has come: told on stderr and kept in a file, so that an interrupted one goes on where it stopped.

    Args:
        path: the file, of all fits; None: none is kept.
        name: of the fit.
    """

    def __init__(self, path: Path | None, name: str) -> None:
        self._path, self._name = path, name
        self._kept: dict[str, Any] = (
            read_json_object(path, "a file written by --notes") if path is not None and path.exists() else {}
        )
        mine = self._kept.get(name, {})
        self.constants: dict[str, float] | None = mine.get("constants")
        """The best so far; None: not begun."""
        self.rounds: int = mine.get("rounds", 0)
        """Rounds that need not be made again."""
        self._passes = 0

    def tell(self, loss: float) -> None:
        """A pass over the points came to this loss."""
        self._passes += 1
        print(
            f"{self._name}: pass {self._passes}, round {self.rounds + 1} of {ROUNDS}, loss {loss:.1f}", file=sys.stderr
        )

    def take_down(self, constants: Mapping[str, float]) -> None:
        """A round ended with these."""
        self.constants = {key: float(value) for key, value in constants.items()}
        self.rounds += 1
        self._keep()

    def done(self) -> None:
        """No further round is worth it."""
        self.rounds = ROUNDS
        self._keep()

    def _keep(self) -> None:
        if self._path is not None and self.constants is not None:
            self._kept[self._name] = {"constants": self.constants, "rounds": self.rounds}
            write_whole(self._path, json.dumps(self._kept, indent=1))


def run(point: Point, constants: Mapping[str, float]) -> Outcome:
    """Simulate a published point.

    Args:
        point: model, trace, policy and rate.
        constants: values to try, by dotted configuration key.
    """
    values: dict[str, Any] = configuration(point.cell)
    for key, value in constants.items():
        *path, last = key.split(".")
        part = values
        for name in path:
            part = part[name]
        part[last] = float(value)  # a fit's own are NumPy's, which YAML does not know
    with TemporaryDirectory(prefix="voltana-testbed-") as name:
        end_s = simulate(values, Path(name))["end_s"]
        record = RunRecord(Path(name))
        requests, energy_j = record.requests(), busy_energy_j(record.instances(), end_s)
    done = (requests.status == COMPLETED).to_numpy()
    ttft_s = np.where(done, requests.ttft_s, math.inf)
    itl_s = np.where(done, requests.mean_itl_s.fillna(0.0), math.inf)
    return Outcome(point, ttft_s, itl_s, energy_j / 1e3)


def outcomes(points: Sequence[Point], constants: Mapping[str, float], pool: Executor) -> list[Outcome]:
    """Simulate published points side by side, with the same constants as in `run`; in the order of the points."""
    return list(pool.map(run, points, [constants] * len(points)))


def residuals(found: Sequence[Outcome], objectives_s: Mapping[str, float]) -> Array:
    """Weighted deviations, those beyond one growing with their root: their squares add up like Huber's loss."""
    raw = np.concatenate([o.misses(objectives_s[o.point.cell.model]) * WEIGHTS for o in found])
    size = np.abs(raw)
    return np.asarray(np.sign(raw) * np.sqrt(np.where(size < 1, size**2, 2 * size - 1)))


def best_objectives(found: Sequence[Outcome]) -> dict[str, float]:
    """For each model the ITL objective that leaves the least."""
    best = {}
    for model in dict.fromkeys(o.point.cell.model for o in found):
        mine = [o for o in found if o.point.cell.model == model]
        losses = [sum(np.abs(o.misses(s) * WEIGHTS)[:2].sum() for o in mine) for s in OBJECTIVES_S]
        best[model] = float(OBJECTIVES_S[int(np.argmin(losses))])
    return best


def fit(points: Sequence[Point], start: Mapping[str, float], pool: Executor, notes: Notes) -> Fit:
    """Damped Gauss-Newton steps over the constants, the objectives being the best for each.

    Args:
        points: what was published.
        start: the constants to begin with, unless the notes know better.
        pool: runs the simulations.
        notes: take down the best constants after every round.
    """

    def at(constants: Mapping[str, float]) -> tuple[Fit, Array]:
        found = outcomes(points, constants, pool)
        objectives = best_objectives(found)
        rest = residuals(found, objectives)
        notes.tell(float(rest @ rest))
        return Fit(dict(constants), objectives, found), rest

    best, rest = at(notes.constants or start)
    for _ in range(notes.rounds, ROUNDS):
        slopes = np.array([at(_moved(best.constants, key))[1] - rest for key in STEPS]).T
        for damping in (DAMPING, 10 * DAMPING, 100 * DAMPING):
            change = _solve(slopes, rest, damping)
            trial, left = at(
                {key: max(0.0, best.constants[key] + c * STEPS[key]) for key, c in zip(STEPS, change, strict=True)}
            )
            if left @ left < rest @ rest:
                break
        else:
            break
        gain = 1 - (left @ left) / (rest @ rest)
        best, rest = trial, left
        notes.take_down(best.constants)
        if gain < 0.01:
            break
    notes.done()
    return best


def _moved(constants: Mapping[str, float], key: str, share: float = 1.0) -> dict[str, float]:
    return {**constants, key: constants[key] + share * STEPS[key]}


def _solve(slopes: Array, rest: Array, damping: float) -> Array:
    """The damped step, at most a few of the steps along each constant."""
    square = slopes.T @ slopes
    damped = square + damping * np.diag(np.diag(square) + 1e-2 * np.diag(square).max())
    return np.clip(np.linalg.solve(damped, -slopes.T @ rest), -6, 6)


def intervals(best: Fit, pool: Executor, seed: int = 1) -> dict[str, tuple[float, float]]:
    """For each constant and each model's objective, the span of 95 % of bootstrapped fits around the best."""
    points = [o.point for o in best.outcomes]
    rest = residuals(best.outcomes, best.objectives_s)
    slopes, scales = [], []
    for key, step in STEPS.items():
        moved = outcomes(points, _moved(best.constants, key, 0.5), pool)
        slopes.append((residuals(moved, best.objectives_s) - rest) / 0.5)
        scales.append((key, best.constants[key], step))
    for model, objective_s in best.objectives_s.items():
        moved_s = {**best.objectives_s, model: objective_s * (1 + OBJECTIVE_STEP)}
        slopes.append(residuals(best.outcomes, moved_s) - rest)
        scales.append((f"objective of {model}", objective_s, objective_s * OBJECTIVE_STEP))
    table, rng = np.array(slopes).T, np.random.default_rng(seed)
    panels = [[i for i, p in enumerate(points) if p.cell[:2] == panel] for panel in {p.cell[:2]: 0 for p in points}]
    changes = []
    for _ in range(DRAWS):
        drawn = np.concatenate([rng.choice(panel, len(panel)) for panel in panels])
        rows = (3 * drawn[:, None] + np.arange(3)).ravel()
        changes.append(_solve(table[rows], rest[rows], DAMPING))
    spans = np.percentile(changes - np.median(changes, axis=0), (2.5, 97.5), axis=0).T
    return {
        name: (value + low * step, value + high * step)
        for (name, value, step), (low, high) in zip(scales, spans, strict=True)
    }


# Output


def fit_table(best: Fit, spans: Mapping[str, tuple[float, float]]) -> str:
    """The constants and objectives as a Markdown table."""
    values = {**best.constants, **{f"objective of {model}": s for model, s in best.objectives_s.items()}}
    lines = [
        f"| {name} | {value:.4g} | {spans[name][0]:.4g} to {spans[name][1]:.4g} |" for name, value in values.items()
    ]
    return "\n".join(["| constant | value | 95 % of bootstrapped fits |", "|---|---:|---:|", *lines])


def left_out_row(model: str, found: Sequence[Outcome]) -> str:
    """Mean deviations of a panel that was not fitted, a row of a Markdown table."""
    objective_s = best_objectives(found)[model]
    ttft, itl, energy = np.abs([o.misses(objective_s) for o in found]).mean(0)
    return f"| {model} | {1e3 * objective_s:.3g} ms | {ttft:.1f} | {itl:.1f} | {energy:.1f} % |"


def shipped() -> dict[str, float]:
    """The constants as they stand in the configuration."""
    values = configuration(Cell("llama31_8b", "sharegpt", "sglang_f1410", 50.0))
    found = {}
    for key in STEPS:
        part: Any = values
        for name in key.split("."):
            part = part[name]
        found[key] = float(part)
    return found


@contextmanager
def _workers() -> Iterator[Executor]:
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        yield pool


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit and print; exit status 0, 2 on bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m voltana.sim.calibration.testbed", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("data", type=Path, help="folder with paper/*.csv")
    parser.add_argument(
        "--notes", type=Path, metavar="FILE", help="keeps how far the fits are; given again, they go on"
    )
    options = parser.parse_args(arguments)
    try:
        points = [point for point in read_panels(options.data) if point.cell.series != ADAPTIVE]
        _fit_and_print(points, options.notes)
    except UserError as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted" + (f"; {options.notes} goes on from here" if options.notes else ""), file=sys.stderr)
        return 130
    return 0


def _fit_and_print(points: Sequence[Point], notes: Path | None) -> None:
    with _workers() as pool:
        best = fit(points, shipped(), pool, Notes(notes, "all panels"))
        print(fit_table(best, intervals(best, pool)), end="\n\n", flush=True)
        print("| left out | its objective | TTFT, points | ITL, points | energy |", "|---|" + "---:|" * 4, sep="\n")
        for model in best.objectives_s:
            others = [point for point in points if point.cell.model != model]
            mine = [point for point in points if point.cell.model == model]
            without = fit(others, best.constants, pool, Notes(notes, f"without {model}"))
            print(left_out_row(model, outcomes(mine, without.constants, pool)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
