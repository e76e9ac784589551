"""Find how many requests per second a policy on a cluster can take: ``voltana-capacity [key=value ...]``.

    voltana-capacity policy=static_max,voltana                        the highest rates that keep 90 and 99 % in time
    voltana-capacity policy=voltana cluster=1p1d,2p2d,3p3d rate=60    the smallest cluster that does so at 60 a second

Keys of its own; all others are overrides of voltana-sim, and may be swept; `--config-dir DIR` has policies of your own:

    attainment=[90,99]   per cent of requests that must meet both objectives
    seeds=5              runs with the seeds 1 to 5: the interval is Student's t over the rate found with each
    lowest=1             requests per second that are not gone below,
    highest=1000         nor above
    precision=0.01       neighbouring rates that are tried lie this far apart, relatively
    rate=60              try the clusters at this rate instead
    out=outputs/capacity where the runs and capacity.csv go; started again, it takes the runs that are there

For each seed the rate is bisected on a fixed grid. Attainment falls with the rate, but not strictly: rates 5 % above
and below the one found are tried too, and where one above keeps the attainment, or one below does not, a note says so.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from voltana.app.progress import Progress
from voltana.app.terminal import plain_console
from voltana.errors import UserError
from voltana.files import write_whole
from voltana.intervals import half_width
from voltana.record import RunRecord
from voltana.sim.run.pool import interrupts_blocked, worker_pool
from voltana.sim.run.worker import work
from voltana.sim.studies.asked import (
    combinations,
    composed,
    folder_of,
    number,
    own_and_overrides,
    path,
    study_command,
    whole,
)
from voltana.state import PHASES

if TYPE_CHECKING:
    from rich.table import Table

OWN = ("attainment", "seeds", "lowest", "highest", "precision", "rate", "out")
START_RPS = 50.0
"""Where a bisection begins."""
PROBE = 0.05
"""So far from a rate that was found others are tried, to see whether it divides those that keep it from the rest."""
CSV = "capacity.csv"
RUNS = "runs"


class Tried(NamedTuple):
    """What a run came to."""

    rps: float
    attainment: float
    """Share of requests that meet both objectives, 0 to 1."""
    j_per_request: float
    gpus: int


class Capacity(NamedTuple):
    """The highest rate of a seed that keeps an attainment."""

    tried: Tried | None
    """The run at it; None: there is none within the bounds."""
    beyond: bool
    """Whether the attainment is kept even at the highest rate."""
    steady: bool
    """Whether every rate tried below keeps the attainment and none above does."""


@dataclass(frozen=True)
class Grid:
    """The rates that may be tried: from the lowest up, each `1 + precision` times the one before."""

    lowest: float
    highest: float
    precision: float

    @property
    def top(self) -> int:
        """Number of the highest; that of the lowest is 0."""
        return math.floor(math.log(self.highest / self.lowest) / math.log1p(self.precision) + 1e-9)

    def rps(self, step: int) -> float:
        """The rate of a number, to four digits."""
        return float(f"{self.lowest * (1 + self.precision) ** step:.4g}")

    def nearest(self, rps: float) -> int:
        """The number of the rate next to this."""
        step = round(math.log(max(rps, self.lowest) / self.lowest) / math.log1p(self.precision))
        return min(step, self.top)


def bisect(measure: Callable[[int], float], target: float, start: int, top: int) -> int | None:
    """The highest number from 0 to `top` whose measure is at least `target`, if it never rises; None: there is none.

    Args:
        measure: of a number.
        target: what must be reached.
        start: where it probably lies.
        top: the highest number.
    """
    kept, lost, step = -1, top + 1, 4
    at = start
    while lost - kept > 1:
        if measure(at) >= target:
            kept = at
        else:
            lost = at
        if kept >= 0 and lost <= top:
            at = (kept + lost) // 2
        else:
            at = min(top, kept + step) if kept >= 0 else max(0, lost - step)
            step *= 2
    return kept if kept >= 0 else None


def capacities(measure: Callable[[float], Tried], grid: Grid, targets: Sequence[float]) -> list[Capacity]:
    """The capacity for each of the attainments, with as few measurements as bisection needs.

    Args:
        measure: a run at a rate.
        grid: the rates.
        targets: attainments, 0 to 1.
    """
    known: dict[int, Tried] = {}

    def attainment(step: int) -> float:
        if step not in known:
            known[step] = measure(grid.rps(step))
        return known[step].attainment

    steps, start = [], grid.nearest(START_RPS)
    for target in targets:
        step = bisect(attainment, target, start, grid.top)
        steps.append(step)
        if step is not None:
            start = step
            for probe in (1 - PROBE, 1 + PROBE):
                attainment(grid.nearest(probe * grid.rps(step)))

    def steady(target: float, step: int | None) -> bool:
        return all((tried.attainment >= target) == (step is not None and at <= step) for at, tried in known.items())

    return [
        Capacity(None if step is None else known[step], step == grid.top, steady(target, step))
        for target, step in zip(targets, steps, strict=True)
    ]


# Runs


def run_at(overrides: Sequence[str], seed: int, folder: Path, rps: float) -> Tried:
    """Simulate a rate, or take its record if it is there."""
    values = composed([*overrides, f"rps={rps}", f"seed={seed}"])
    place = folder / f"rps={rps:g}"
    failure = work(values, place, False, None)
    if failure is not None:
        raise UserError(failure.reason)
    summary = RunRecord(place).summary
    cluster, tp = values["cluster"], values["model"]["tp"]
    gpus = sum(cluster[f"{phase}_instances"] * (cluster[phase]["tp"] or tp) for phase in PHASES)
    done = summary["requests"]["completed"]
    energy_j = summary["energy_j"]["total"]
    return Tried(rps, summary["joint_attainment"] or 0.0, energy_j / done if done else math.nan, gpus)


def of_seed(
    overrides: Sequence[str], folder: Path, grid: Grid, targets: Sequence[float], rate: float | None, seed: int
) -> list[Capacity]:
    """All that is asked of one seed of a combination; at a fixed rate, one entry."""
    measure = partial(run_at, overrides, seed, folder / f"seed={seed}")
    if rate is not None:
        return [Capacity(measure(rate), False, True)]
    return capacities(measure, grid, targets)


@dataclass(frozen=True)
class Asked:
    """A command line."""

    combinations: Mapping[str, Sequence[str]]
    targets: tuple[float, ...]
    seeds: int
    grid: Grid
    rate: float | None
    out: Path

    @classmethod
    def read(cls, words: Sequence[str]) -> Asked:
        """Read and check it.

        Raises:
            UserError: something in it is wrong.
        """
        own, overrides = own_and_overrides(words, OWN)
        for override in overrides:
            if override.lstrip("+").startswith(("rps=", "seed=")):
                raise UserError(f"{override}: the rate is what is searched, and seeds=5 has the seeds 1 to 5")
        lowest = number(own, "lowest", 1.0)
        grid = Grid(lowest, number(own, "highest", 1000.0, above=lowest), number(own, "precision", 0.01))
        rate = None if own.get("rate") is None else number(own, "rate", 0.0)
        asked = own.get("attainment", [90, 99])
        targets = asked if isinstance(asked, list) else [asked]
        if not targets or not all(isinstance(each, int | float) and 0 < each <= 100 for each in targets):
            raise UserError(f"attainment: found {asked!r}, allowed: per cents above 0 to 100, such as [90,99]")
        found = combinations(overrides)
        for each in found.values():
            arrival = composed([*each, f"rps={rate or lowest}"])["arrival"]
            if arrival.get("rate") != (rate or lowest):
                raise UserError(f"arrival: found {arrival['name']}, allowed: arrivals at a rate, such as poisson")
        targets = sorted({float(each) for each in targets})
        return cls(found, tuple(targets), whole(own, "seeds", 5), grid, rate, path(own, "out", "outputs/capacity"))

    def run(self, pool: Executor, progress: Progress) -> dict[str, list[list[Capacity]]]:
        """The capacities of every combination: by seed, by attainment."""
        targets = [each / 100 for each in self.targets]
        with interrupts_blocked():
            futures = {
                (label, seed): pool.submit(
                    of_seed, list(overrides), self.out / RUNS / folder_of(label), self.grid, targets, self.rate, seed
                )
                for label, overrides in self.combinations.items()
                for seed in range(1, self.seeds + 1)
            }
        found: dict[str, list[list[Capacity]]] = {label: [] for label in self.combinations}
        for (label, seed), future in futures.items():
            found[label].append(future.result())
            progress.step(f"{label} seed={seed}".strip())
        return found


# Telling


def mean_and_half(numbers: Sequence[float], digits: int = 1) -> str:
    """A mean with its interval, the latter of three numbers and more."""
    mean = f"{math.fsum(numbers) / len(numbers):.{digits}f}"
    return mean if len(numbers) < 3 else f"{mean} ±{half_width(numbers):.{digits}f}"


def rate_cell(seeds: Sequence[Capacity], grid: Grid) -> tuple[str, str]:
    """The rate and the energy per request at it, over the seeds; instead of a number, why there is none."""
    if any(each.tried is None for each in seeds):
        return f"below {grid.rps(0):g}", "-"
    if any(each.beyond for each in seeds):
        return f"above {grid.rps(grid.top):g}", "-"
    runs = [each.tried for each in seeds if each.tried is not None]
    return mean_and_half([run.rps for run in runs]), mean_and_half([run.j_per_request for run in runs])


def rate_table(asked: Asked, found: Mapping[str, Sequence[Sequence[Capacity]]]) -> Table:
    """A row per combination: the highest rate for each attainment, and what a request takes there."""
    from rich.table import Table
    from rich.text import Text

    heads = [head for target in asked.targets for head in (f"{target:g} %: requests/s", "J/request")]
    table = Table("", *heads, box=None)
    for label, seeds in found.items():
        cells = [cell for i in range(len(asked.targets)) for cell in rate_cell([each[i] for each in seeds], asked.grid)]
        table.add_row(Text(label), *cells)
    return table


def fixed_table(asked: Asked, found: Mapping[str, Sequence[Sequence[Capacity]]]) -> tuple[Table, list[str]]:
    """A row per combination at the given rate, and for each attainment the fewest GPUs that keep it."""
    from rich.table import Table
    from rich.text import Text

    table = Table("", "GPUs", "both met %", "J/request", *(f"keeps {target:g} %" for target in asked.targets), box=None)
    smallest: dict[float, tuple[int, float, str]] = {}
    for label, seeds in found.items():
        runs = [each[0].tried for each in seeds if each[0].tried is not None]
        met = [100 * run.attainment for run in runs]
        mean, energy = math.fsum(met) / len(met), math.fsum(run.j_per_request for run in runs)
        keeps = []
        for target in asked.targets:
            kept = mean >= target
            doubtful = len(met) > 2 and abs(mean - target) <= half_width(met)
            keeps.append(("yes" if kept else "no") + (", within the interval" if doubtful else ""))
            if kept:
                smallest[target] = min(smallest.get(target, (10**9, 0.0, "")), (runs[0].gpus, energy, label))
        joules = mean_and_half([run.j_per_request for run in runs])
        table.add_row(Text(label), f"{runs[0].gpus}", mean_and_half(met), joules, *keeps)
    notes = []
    for target in asked.targets:
        if target in smallest:
            gpus, _, label = smallest[target]
            notes.append(f"The fewest GPUs that keep {target:g} % at {asked.rate:g} requests/s: {gpus}, {label}")
        else:
            notes.append(f"None keeps {target:g} % at {asked.rate:g} requests/s.")
    return table, notes


def notes_of(asked: Asked, found: Mapping[str, Sequence[Sequence[Capacity]]]) -> list[str]:
    """What a reader must know of the rates."""
    notes = []
    if asked.seeds > 2:
        notes.append(f"Mean ± 95 % confidence interval over {asked.seeds} seeds.")
    for label, seeds in found.items():
        for i, target in enumerate(asked.targets):
            unsteady = [number for number, each in enumerate(seeds, 1) if not each[i].steady]
            if unsteady:
                which = ", ".join(map(str, unsteady))
                notes.append(f"{label}: {target:g} %: attainment is not monotone there with the seeds {which}.")
    return notes


def csv_text(asked: Asked, found: Mapping[str, Sequence[Sequence[Capacity]]]) -> str:
    """A row per combination, attainment and seed; an empty rate is below the lowest."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    heads = ("combination", "gpus", "attainment_pct", "seed", "rps", "beyond", "joint_attainment_pct", "j_per_request")
    writer.writerow(heads)
    for label, seeds in found.items():
        for seed, each in enumerate(seeds, 1):
            for target, (tried, beyond, _) in zip(asked.targets if asked.rate is None else ("",), each, strict=True):
                share = None if tried is None else 100 * tried.attainment
                run = (None, None, None) if tried is None else (tried.gpus, tried.rps, tried.j_per_request)
                writer.writerow((label, run[0], target, seed, run[1], beyond, share, run[2]))
    return text.getvalue()


def run(words: Sequence[str]) -> None:
    """Search, print, write.

    Raises:
        UserError: something that was asked for is wrong, or a file cannot be written.
    """
    asked = Asked.read(words)
    width = max(2, len(os.sched_getaffinity(0)))
    with Progress("searches", len(asked.combinations) * asked.seeds) as progress, worker_pool(width) as pool:
        found = asked.run(pool, progress)
    write_whole(asked.out / CSV, csv_text(asked, found))
    if asked.rate is None:
        table, notes = rate_table(asked, found), notes_of(asked, found)
    else:
        table, notes = fixed_table(asked, found)
    console = plain_console()
    console.print(table)
    for note in [*notes, f"wrote {asked.out / CSV}; the runs are in {asked.out / RUNS}"]:
        console.print(note, soft_wrap=True, markup=False)


def main() -> None:
    """voltana-capacity."""
    study_command("voltana-capacity", __doc__, run, "started again, it takes the runs that are there")


if __name__ == "__main__":
    main()
