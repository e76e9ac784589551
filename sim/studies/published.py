"""Simulate every published point and tell how far each is from it.

Run as ``python -m voltana.sim.studies.published DATA``. DATA is the folder that holds `paper/*.csv`, a panel each: a
model on a trace, two prefill and two decode instances of A100s, 120 s of arrivals, three policies. Exit status 1: a
target is missed. The deviations and what stands behind them are in `docs/validation.md`.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from voltana.app.progress import Progress
from voltana.errors import UserError
from voltana.record import RunRecord
from voltana.sim.run.worker import run_job

if TYPE_CHECKING:
    import pandas as pd

CURVES = Path("paper")
MODELS = {"Llama-3.1-8B": "llama31_8b", "Ministral-3B": "ministral_3b", "Qwen3-32B": "qwen3_32b"}
TRACES = {"ShareGPT": "sharegpt", "LMSYS": "lmsys"}
SETTING = ("duration_s=120", "engine=fast")
SERIES = {
    "sglang_f1410": ("policy=static_max",),
    "sglang_f1005": ("policy=static_1005",),
    "voltanallm": (
        "policy=voltana",
        "router@policy.decode_router=tile_aware",
        "policy.prefill_controller.max_tokens_per_s=11250",
        "policy.prefill_controller.rate_window_s=3",
    ),
}
"""What stands for a series. Router and threshold are those of the release's demo (docs/validation.md)."""
BASELINE, ADAPTIVE = "sglang_f1410", "voltanallm"
NUMBERS = ("rps", "ttft_attainment_pct", "itl_attainment_pct", "energy_kJ")
PROCESSES = 2
RECORDS = Path("outputs", "published")

MOST_TTFT_POINTS = 6.0
MOST_ITL_POINTS = 5.0
MOST_ENERGY_PCT = 3.0
MOST_ENERGY_PCT_ANYWHERE = 9.0
MOST_RATIO_POINTS = 2.5
APART_POINTS = 5.0
"""Published ITL attainments nearer than this are not in an order: each is read off a figure, of one run."""


class Cell(NamedTuple):
    """What was run: names as in conf/, a series of `SERIES`, requests per second."""

    model: str
    trace: str
    series: str
    rps: float

    @property
    def name(self) -> str:
        """The cell in words, also a file name."""
        return f"{self.model}_{self.trace}_{self.series}_{self.rps:g}"


class Point(NamedTuple):
    """What a policy attains at a request rate, in % of requests and in kJ."""

    cell: Cell
    ttft_pct: float
    """Requests that meet the TTFT objective."""
    itl_pct: float
    energy_kj: float
    """From the first to the last busy moment of each instance, as the release counts it."""


class Comparison(NamedTuple):
    """A published point and the simulation of it."""

    published: Point
    simulated: Point

    @property
    def ttft_points(self) -> float:
        """Simulated minus published attainment of TTFT, percentage points."""
        return self.simulated.ttft_pct - self.published.ttft_pct

    @property
    def itl_points(self) -> float:
        """Simulated minus published attainment of ITL, percentage points."""
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


def read_panels(data: Path) -> list[Point]:
    """All published points in a data folder.

    Raises:
        UserError: there are none, or names the file, line and column, what was found and what is allowed.
    """
    files = sorted((data / CURVES).glob("*.csv"))
    if not files:
        raise UserError(f"{data / CURVES}: found no *.csv; allowed: published curves")
    points = [point for file in files for point in read_points(file)]
    if twice := len(points) - len({point.cell for point in points}):
        raise UserError(f"{data / CURVES}: found {twice} points twice; allowed: each series and rps of a panel once")
    return points


def read_points(path: Path) -> list[Point]:
    """The points of a file.

    Raises:
        UserError: names the file, line and column, what was found and what is allowed.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not a CSV file"
        raise UserError(f"{path}: {reason}; allowed: a published curve") from error
    if not rows:
        raise UserError(f"{path}: found no rows; allowed: a published curve")
    return [_point(f"{path}:{line}", row) for line, row in enumerate(rows, start=2)]


def _point(where: str, row: Mapping[str, str | None]) -> Point:
    for column in ("model", "dataset", "series", *NUMBERS):
        if row.get(column) is None:
            raise UserError(f"{where}: {column}: missing")
    known: dict[str, Mapping[str, object]] = {"model": MODELS, "dataset": TRACES, "series": SERIES}
    for column, names in known.items():
        if row[column] not in names:
            raise UserError(f"{where}: {column}: found {row[column]!r}, allowed: {', '.join(names)}")
    rps, ttft, itl, energy = (_number(f"{where}: {column}", str(row[column])) for column in NUMBERS)
    if not rps or not energy or max(ttft, itl) > 100:
        raise UserError(f"{where}: found rps {rps:g}, {ttft:g} %, {itl:g} %, {energy:g} kJ; allowed: > 0, up to 100 %")
    model, trace = MODELS[str(row["model"])], TRACES[str(row["dataset"])]
    return Point(Cell(model, trace, str(row["series"]), rps), ttft, itl, energy)


def _number(where: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise UserError(f"{where}: found {text!r}, allowed: a number from 0")
    return value


# The simulation of them


def configuration(cell: Cell, seed: int | None = None) -> dict[str, Any]:
    """The configuration of a cell, as `voltana-sim` composes it; the seed is its default unless given."""
    from voltana.sim.run.compose import compose_sim

    chosen = [f"model={cell.model}", f"trace={cell.trace}", *SERIES[cell.series], f"rps={cell.rps:g}"]
    return compose_sim(*SETTING, *chosen, *([] if seed is None else [f"seed={seed}"]))


def busy_energy_j(rows: pd.DataFrame, end_s: float) -> float:
    """Energy from the first to the last busy moment of each instance.

    Args:
        rows: of `instances.parquet`.
        end_s: when the run ended.
    """
    joules = 0.0
    for _, mine in rows.groupby("instance", observed=True):
        busy = (mine.batch_size > 0).to_numpy().nonzero()[0]
        if len(busy):
            seconds = [*mine.time_s.iloc[1:], end_s] - mine.time_s
            joules += float((mine.power_w * seconds).iloc[busy[0] : busy[-1] + 1].sum())
    return joules


def simulate_point(cell: Cell, folder: Path, seed: int | None = None) -> Point:
    """Simulate a cell, or take its record if it is in the folder, where it goes."""
    summary, _ = run_job(configuration(cell, seed), folder)
    energy_j = busy_energy_j(RunRecord(folder).instances(), summary["end_s"])
    return Point(cell, 100 * summary["ttft_attainment"], 100 * summary["itl_attainment"], energy_j / 1e3)


def compare(
    points: Sequence[Point], folder: Path, seed: int | None = None, done: Callable[[str], None] = lambda _: None
) -> list[Comparison]:
    """Simulate the points, side by side.

    Args:
        folder: where their run records go, a folder each; those that are there already are not simulated again.
        seed: of the runs; their default unless given.
        done: called with the name of each point when it is simulated.
    """
    found: dict[Cell, Comparison] = {}
    with ProcessPoolExecutor(min(PROCESSES, len(points)), get_context("spawn")) as pool:
        folders = [folder / (p.cell.name if seed is None else f"{p.cell.name}_seed{seed}") for p in points]
        futures = {
            pool.submit(simulate_point, point.cell, own, seed): point
            for point, own in zip(points, folders, strict=True)
        }
        try:
            for future in as_completed(futures):
                point = futures[future]
                found[point.cell] = Comparison(point, future.result())
                done(point.cell.name)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [found[point.cell] for point in points]


# Output


def verdicts(comparisons: Sequence[Comparison]) -> list[Verdict]:
    """The deviations over all points against their targets."""

    def mean(deviations: Iterable[float]) -> float:
        sizes = [abs(deviation) for deviation in deviations]
        return sum(sizes) / len(sizes) if sizes else 0.0

    worst = max(comparisons, key=lambda c: abs(c.energy_pct))
    wrong, ordered = itl_order(comparisons)
    return [
        Verdict("TTFT attainment, mean", mean(c.ttft_points for c in comparisons), MOST_TTFT_POINTS, "points"),
        Verdict("ITL attainment, mean", mean(c.itl_points for c in comparisons), MOST_ITL_POINTS, "points"),
        Verdict("energy, mean", mean(c.energy_pct for c in comparisons), MOST_ENERGY_PCT, "%"),
        Verdict(f"energy, worst ({worst.published.cell.name})", abs(worst.energy_pct), MOST_ENERGY_PCT_ANYWHERE, "%"),
        Verdict("energy over static_max's, mean", mean(ratio_points(comparisons)), MOST_RATIO_POINTS, "points"),
        Verdict(f"ITL of voltana and static_max in the wrong order, of {ordered}", wrong, 0, "rates"),
    ]


def ratio_points(comparisons: Sequence[Comparison]) -> list[float]:
    """Energy over that of the highest clock at the same rate: simulated less published, percentage points."""
    highest = {c.published.cell._replace(series=""): c for c in comparisons if c.published.cell.series == BASELINE}
    found = []
    for c in comparisons:
        base = highest.get(c.published.cell._replace(series=""))
        if base is not None and base is not c:
            ours, theirs = (
                getattr(c, side).energy_kj / getattr(base, side).energy_kj for side in ("simulated", "published")
            )
            found.append(100 * (ours - theirs))
    return found


def itl_order(comparisons: Sequence[Comparison]) -> tuple[int, int]:
    """At how many rates the two policies are in the wrong order, and how many published pairs have one."""
    cells = {c.published.cell: c for c in comparisons}
    wrong = ordered = 0
    for cell, c in cells.items():
        base = cells.get(cell._replace(series=BASELINE))
        if cell.series == ADAPTIVE and base is not None:
            ours, theirs = (
                getattr(c, side).itl_pct - getattr(base, side).itl_pct for side in ("simulated", "published")
            )
            ordered += abs(theirs) >= APART_POINTS
            wrong += abs(theirs) >= APART_POINTS and ours * theirs <= 0
    return wrong, ordered


def panel_table(comparisons: Sequence[Comparison]) -> str:
    """Mean deviations by panel as a Markdown table."""
    text = [
        "| panel | TTFT, points | ITL, points | energy | worst energy | energy ratio, points |",
        "|---|" + "---:|" * 5,
    ]
    for panel in dict.fromkeys(c.published.cell[:2] for c in comparisons):
        found = [v.found for v in verdicts([c for c in comparisons if c.published.cell[:2] == panel])]
        text.append("| {}, {} | {:.1f} | {:.1f} | {:.1f} % | {:.1f} % | {:.1f} |".format(*panel, *found[:5]))
    return "\n".join(text)


def table(comparisons: Sequence[Comparison]) -> str:
    """Every point, simulated / published, as a Markdown table."""
    text = ["| model | series | requests/s | TTFT met, % | | ITL met, % | | energy, kJ | |", "|---|---|" + "---:|" * 7]
    for c in comparisons:
        ours, theirs, cell = c.simulated, c.published, c.published.cell
        cells = [
            cell.model if cell.trace == "sharegpt" else f"{cell.model}, {cell.trace}",
            cell.series,
            f"{cell.rps:g}",
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare; exit status 0 when every target is met, 1 when one is missed, 2 on bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m voltana.sim.studies.published", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("data", type=Path, help=f"folder with {CURVES}/*.csv")
    parser.add_argument(
        "--records", type=Path, metavar="DIR", default=RECORDS, help=f"where the run records go ({RECORDS})"
    )
    parser.add_argument("--seed", type=int, help="of all runs, instead of the default")
    options = parser.parse_args(arguments)
    try:
        points = read_panels(options.data)
        with Progress("points", len(points)) as progress:
            comparisons = compare(points, options.records, options.seed, progress.step)
    except UserError as problem:
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    found = verdicts(comparisons)
    print(table(comparisons), panel_table(comparisons), verdict_table(found), sep="\n\n")
    print(f"\nrecords are in {options.records}; started again, it takes those that are there")
    return 0 if all(verdict.met for verdict in found) else 1


if __name__ == "__main__":
    sys.exit(main())
