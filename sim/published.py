"""Simulate every point of the published curve and tell how far each is from it.

Run as ``python -m sim.published DATA``. DATA is the folder that holds `paper/llama31_8b_sharegpt.csv`: Llama-3.1-8B on
ShareGPT, two prefill and two decode A100s, 120 s, three policies at eleven request rates. Exit status 1: a target is
missed. The deviations and what stands behind them are in `docs/validation.md`.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from sim.run import simulate
from voltana.errors import UserError
from voltana.terminal import plain_console

CURVE = Path("paper") / "llama31_8b_sharegpt.csv"
WORKLOAD = {"model": "Llama-3.1-8B", "dataset": "ShareGPT"}
"""What every row of the curve must be about: the points are simulated with `SETTING`."""
SETTING = ("model=llama31_8b", "trace=sharegpt", "duration_s=120", "engine=fast")
POLICIES = {"sglang_f1410": "static_max", "sglang_f1005": "static_1005", "voltanallm": "voltana"}
NUMBERS = ("rps", "ttft_attainment_pct", "itl_attainment_pct", "energy_kJ")
PROCESSES = 2

MOST_TTFT_POINTS = 6.0
MOST_ITL_POINTS = 5.0
MOST_ENERGY_PCT = 3.0
MOST_ENERGY_PCT_ANYWHERE = 7.0


class Point(NamedTuple):
    """What a policy attains at a request rate."""

    policy: str
    rps: float
    ttft_pct: float
    """Requests that meet the TTFT objective."""
    itl_pct: float
    energy_kj: float


class Comparison(NamedTuple):
    """A published point and the simulation of it."""

    published: Point
    simulated: Point

    @property
    def ttft_points(self) -> float:
        """Simulated minus published attainment, percentage points."""
        return self.simulated.ttft_pct - self.published.ttft_pct

    @property
    def itl_points(self) -> float:
        """The same for ITL."""
        return self.simulated.itl_pct - self.published.itl_pct

    @property
    def energy_pct(self) -> float:
        """Simulated energy against published, per cent."""
        return 100 * (self.simulated.energy_kj / self.published.energy_kj - 1)


class Verdict(NamedTuple):
    """A deviation over all points and the most it may be."""

    what: str
    found: float
    most: float
    unit: str

    @property
    def met(self) -> bool:
        """Whether the target is met."""
        return self.found <= self.most


# The published points


def read_points(path: Path) -> list[Point]:
    """The published curve.

    Raises:
        UserError: names the file, line and column, what was found and what is allowed.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not a CSV file"
        raise UserError(f"{path}: {reason}; allowed: the published curve") from error
    if not rows:
        raise UserError(f"{path}: found no rows; allowed: the published curve")
    points = [_point(f"{path}:{line}", row) for line, row in enumerate(rows, start=2)]
    seen = {(point.policy, point.rps) for point in points}
    if len(seen) < len(points):
        raise UserError(f"{path}: found {len(points) - len(seen)} points twice; allowed: each series and rps once")
    return points


def _point(where: str, row: Mapping[str, str | None]) -> Point:
    for column in (*WORKLOAD, "series", *NUMBERS):
        if row.get(column) is None:
            raise UserError(f"{where}: {column}: missing")
    for column, allowed in WORKLOAD.items():
        if row[column] != allowed:
            raise UserError(f"{where}: {column}: found {row[column]!r}, allowed: {allowed}")
    series = str(row["series"])
    if series not in POLICIES:
        raise UserError(f"{where}: series: found {series!r}, allowed: {', '.join(POLICIES)}")
    rps, ttft, itl, energy = (_number(f"{where}: {column}", str(row[column])) for column in NUMBERS)
    if not rps or not energy or max(ttft, itl) > 100:
        raise UserError(f"{where}: found rps {rps:g}, {ttft:g} %, {itl:g} %, {energy:g} kJ; allowed: > 0, up to 100 %")
    return Point(POLICIES[series], rps, ttft, itl, energy)


def _number(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"{where}: found {text!r}, allowed: a number from 0")
    return value


# The simulation of them


def configuration(policy: str, rps: float, seed: int | None = None) -> dict[str, Any]:
    """The configuration of a point, as `voltana-sim` composes it; the seed is its default unless given."""
    import hydra_plugins.voltana  # noqa: F401  (conf/sim.yaml names its launcher)
    from hydra import compose, initialize_config_module

    from voltana.resolve import resolve

    overrides = [*SETTING, f"policy={policy}", f"rps={rps:g}", *([] if seed is None else [f"seed={seed}"])]
    with initialize_config_module("conf", version_base="1.3"):
        return resolve(compose("sim", overrides=overrides))


def point_of(policy: str, rps: float, summary: Mapping[str, Any]) -> Point:
    """The point that a run attains."""
    ttft, itl = 100 * summary["ttft_attainment"], 100 * summary["itl_attainment"]
    return Point(policy, rps, ttft, itl, summary["energy_j"]["total"] / 1e3)


def compare(
    points: Sequence[Point], folder: Path, seed: int | None = None, done: Callable[[str], None] = lambda _: None
) -> list[Comparison]:
    """Simulate the points, side by side.

    Args:
        folder: where their run records go, a folder each.
        seed: of the runs; their default unless given.
        done: called with the name of each point when it is simulated.
    """
    found: dict[Point, Comparison] = {}
    with ProcessPoolExecutor(min(PROCESSES, len(points)), get_context("spawn")) as pool:
        futures = {}
        for point in points:
            policy, rps = point.policy, point.rps
            record = folder / f"{policy}_{rps:g}"
            futures[pool.submit(simulate, configuration(policy, rps, seed), record)] = point
        try:
            for future in as_completed(futures):
                point = futures[future]
                found[point] = Comparison(point, point_of(point.policy, point.rps, future.result()))
                done(f"{point.policy} {point.rps:g}/s")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [found[point] for point in points]


# Output


def verdicts(comparisons: Sequence[Comparison]) -> list[Verdict]:
    """The deviations over all points against their targets."""

    def mean(deviations: Iterator[float]) -> float:
        return sum(map(abs, deviations)) / len(comparisons)

    worst = max(comparisons, key=lambda c: abs(c.energy_pct))
    where = f"{worst.published.policy} at {worst.published.rps:g}/s"
    return [
        Verdict("TTFT attainment, mean", mean(c.ttft_points for c in comparisons), MOST_TTFT_POINTS, "points"),
        Verdict("ITL attainment, mean", mean(c.itl_points for c in comparisons), MOST_ITL_POINTS, "points"),
        Verdict("energy, mean", mean(c.energy_pct for c in comparisons), MOST_ENERGY_PCT, "%"),
        Verdict(f"energy, worst ({where})", abs(worst.energy_pct), MOST_ENERGY_PCT_ANYWHERE, "%"),
    ]


def table(comparisons: Sequence[Comparison]) -> str:
    """Every point, simulated / published, as a Markdown table."""
    text = ["| policy | requests/s | TTFT met, % | | ITL met, % | | energy, kJ | |", "|---|" + "---:|" * 7]
    for c in comparisons:
        ours, theirs = c.simulated, c.published
        cells = [
            ours.policy,
            f"{ours.rps:g}",
            f"{ours.ttft_pct:.1f} / {theirs.ttft_pct:.1f}",
            f"{c.ttft_points:+.1f}",
            f"{ours.itl_pct:.1f} / {theirs.itl_pct:.1f}",
            f"{c.itl_points:+.1f}",
            f"{ours.energy_kj:.1f} / {theirs.energy_kj:.1f}",
            f"{c.energy_pct:+.1f} %",
        ]
        text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text)


def verdict_table(found: Sequence[Verdict]) -> str:
    """The deviations against their targets as a Markdown table."""
    text = ["| absolute deviation | found | target | |", "|---|---:|---:|---|"]
    text += [
        f"| {v.what} | {v.found:.1f} {v.unit} | {v.most:g} {v.unit} | {'met' if v.met else 'missed'} |" for v in found
    ]
    return "\n".join(text)


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """Shows points as they end: a bar on a terminal, a line each elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = plain_console(stderr=True)
    columns = (TextColumn("points"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("points", total=total)
        ended = 0

        def done(name: str) -> None:
            nonlocal ended
            ended += 1
            bar.advance(task)
            if not console.is_terminal:
                console.print(f"[{ended}/{total}] {name}")

        yield done


@contextmanager
def _record_folder(asked: Path | None) -> Iterator[Path]:
    """The folder that was asked for, or one that is gone afterwards."""
    if asked is None:
        with TemporaryDirectory(prefix="voltana-published-") as name:
            yield Path(name)
        return
    try:
        asked.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--records: {asked}: {error.strerror}") from error
    yield asked


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; exit status 0 when every target is met, 1 when one is missed, 2 on bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(prog="python -m sim.published", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help=f"folder with {CURVE}")
    parser.add_argument("--records", type=Path, metavar="DIR", help="keep the run records here")
    parser.add_argument("--seed", type=int, help="of all runs, instead of the default")
    options = parser.parse_args(arguments)
    try:
        points = read_points(options.data / CURVE)
        with _record_folder(options.records) as folder, _progress(len(points)) as done:
            comparisons = compare(points, folder, options.seed, done)
    except UserError as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    found = verdicts(comparisons)
    print(table(comparisons), verdict_table(found), sep="\n\n")
    return 0 if all(verdict.met for verdict in found) else 1


if __name__ == "__main__":
    sys.exit(main())
