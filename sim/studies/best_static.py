"""Find the best fixed clocks: the pair (prefill, decode) of least energy that keeps SLO attainment.

Run as ``python -m voltana.sim.studies.best_static [options] [overrides of voltana-sim]``. It prints a table and the
overrides that make `policy=best_static` use the clocks it found; `--out` also writes them as a file for `conf/policy/`.

Attainment is kept if the share of requests that meet both objectives is at most `--tolerance` percentage points below
that at the highest clocks; with `--target`, it is enough to reach that many per cent.

The phases hardly touch each other (decode waits for prefill, never the reverse), so a line of clocks per phase, the
other phase at its highest, tells nearly everything: the energies of a pair add, and so do its losses of attainment.

1. Each phase goes down from the highest clock in coarse steps until attainment is lost or energy rises again.
2. All clocks within a coarse step of the best are tried.
3. Pairs that should keep attainment by those numbers are simulated, least energy first, until no pair left can beat
   the best that really keeps it.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from voltana.app.progress import Progress
from voltana.app.terminal import plain_console
from voltana.errors import UserError
from voltana.files import write_whole
from voltana.sim.run.commands import one_thread_each
from voltana.state import PHASES, Phase

if TYPE_CHECKING:
    from rich.console import Console

COARSE_STEPS = 6
"""Clocks of the GPU in a coarse step: 90 MHz on A100."""

OPTIMISM = 0.005
"""A request can miss both objectives, so the loss of a pair may be this much less than the losses of its clocks."""

MAX_PAIRS = 60
"""Pairs that are simulated at most."""


class Pair(NamedTuple):
    """Clocks of the two phases, the same for all instances of each."""

    prefill_mhz: int
    decode_mhz: int


class Outcome(NamedTuple):
    """What a run at a pair of clocks came to: attainments from 0 to 1, energies in joules."""

    pair: Pair
    ttft_attainment: float
    itl_attainment: float
    joint_attainment: float
    prefill_j: float
    decode_j: float

    @property
    def energy_j(self) -> float:
        """Energy of the whole cluster, in joules."""
        return self.prefill_j + self.decode_j

    def phase_j(self, phase: Phase) -> float:
        """Energy of all instances of a phase, in joules."""
        return self.prefill_j if phase == "prefill" else self.decode_j


class Found(NamedTuple):
    """The result of a search."""

    best: Outcome
    reference: Outcome
    """At the highest clocks."""
    floor: float
    """Joint attainment that had to be kept."""
    tried: list[Outcome]
    """All runs."""


Measure = Callable[[Sequence[Pair]], list[Outcome]]
"""Runs pairs of clocks, side by side where it can."""


class Search:
    """The search of the module.

    Args:
        measure: runs pairs.
        clocks_mhz: clocks to choose from, ascending.
        tolerance: joint attainment that may be lost against the highest clocks, a fraction.
        target: joint attainment that is enough in any case, a fraction; None: no such.
        width: runs that `measure` does side by side.
        decode_mhz: clocks of decode, where its GPU has others.
    """

    def __init__(
        self,
        measure: Measure,
        clocks_mhz: Sequence[int],
        tolerance: float,
        target: float | None = None,
        width: int = 2,
        decode_mhz: Sequence[int] | None = None,
    ) -> None:
        self._run = measure
        self._clocks = (tuple(clocks_mhz), tuple(decode_mhz or clocks_mhz))
        self._top = Pair(*(clocks[-1] for clocks in self._clocks))
        self._tolerance = tolerance
        self._target = target
        self._width = width
        self._outcomes: dict[Pair, Outcome] = {}

    def find(self) -> Found:
        """Search; the least energy whose joint attainment keeps the floor."""
        reference = self._measure([self._top])[0]
        self._floor = reference.joint_attainment - self._tolerance
        if self._target is not None:
            self._floor = min(self._floor, self._target)
        self._go_down()
        self._refine()
        best = self._best_pair(reference)
        return Found(best, reference, self._floor, list(self._outcomes.values()))

    def _measure(self, pairs: Sequence[Pair]) -> list[Outcome]:
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._outcomes]
        self._outcomes |= zip(new, self._run(new) if new else [], strict=True)
        return [self._outcomes[pair] for pair in pairs]

    def _alone(self, phase: Phase, clock_mhz: int) -> Pair:
        """A clock for one phase, the other at the highest."""
        return self._top._replace(**{f"{phase}_mhz": clock_mhz})

    def _line(self, phase: Phase) -> dict[int, Outcome]:
        """Outcomes with the other phase at the highest clock, by the clock of this one."""
        other = 1 - PHASES.index(phase)
        return {pair[1 - other]: out for pair, out in self._outcomes.items() if pair[other] == self._top[other]}

    def _go_down(self) -> None:
        coarse = {phase: clocks[::-1][::COARSE_STEPS] for phase, clocks in zip(PHASES, self._clocks, strict=True)}
        going = list(PHASES)
        for step in range(1, max(map(len, coarse.values()))):
            going = [phase for phase in going if step < len(coarse[phase])]
            outcomes = self._measure([self._alone(phase, coarse[phase][step]) for phase in going])
            going = [phase for phase, out in zip(going, outcomes, strict=True) if self._worth_going_on(phase, out)]
            if not going:
                return

    def _worth_going_on(self, phase: Phase, out: Outcome) -> bool:
        least = min(other.phase_j(phase) for other in self._line(phase).values())
        return out.joint_attainment >= self._floor and out.phase_j(phase) <= least

    def _refine(self) -> None:
        near = []
        for phase, clocks in zip(PHASES, self._clocks, strict=True):
            kept = [(out.phase_j(phase), clock) for clock, out in self._line(phase).items() if self._keeps(out)]
            place = clocks.index(min(kept)[1])
            around = clocks[max(0, place - COARSE_STEPS + 1) : place + COARSE_STEPS]
            near += [self._alone(phase, clock) for clock in around]
        self._measure(near)

    def _keeps(self, out: Outcome) -> bool:
        return out.joint_attainment >= self._floor

    def _best_pair(self, reference: Outcome) -> Outcome:
        """Simulate promising pairs, least estimated energy first."""
        best = min((out for out in self._outcomes.values() if self._keeps(out)), key=lambda out: out.energy_j)
        promising = self._promising(reference)
        for start in range(0, min(len(promising), MAX_PAIRS), self._width):
            some = [pair for energy_j, pair in promising[start : start + self._width] if energy_j < best.energy_j]
            if not some:
                break
            best = min([best, *filter(self._keeps, self._measure(some))], key=lambda out: out.energy_j)
        return best

    def _promising(self, reference: Outcome) -> list[tuple[float, Pair]]:
        """Pairs that should keep attainment, with the energy they should take."""
        promising = []
        for (prefill, p), (decode, d) in product(self._line("prefill").items(), self._line("decode").items()):
            joint = p.joint_attainment + d.joint_attainment - reference.joint_attainment
            if joint + OPTIMISM >= self._floor:
                promising.append((p.prefill_j + d.decode_j, Pair(prefill, decode)))
        return sorted(promising)


# Running


def simulate_pair(values: Mapping[str, Any], pair: Pair) -> Outcome:
    """Simulate a configuration of `policy=best_static` at a pair of clocks."""
    from voltana.sim.run.simulate import simulate

    changed = copy.deepcopy(dict(values))
    changed["policy"]["prefill_controller"]["clock_mhz"] = pair.prefill_mhz
    changed["policy"]["decode_controller"]["clock_mhz"] = pair.decode_mhz
    with tempfile.TemporaryDirectory() as folder:
        summary = simulate(changed, Path(folder))
    shares = (summary[name] or 0.0 for name in ("ttft_attainment", "itl_attainment", "joint_attainment"))
    return Outcome(pair, *shares, *(summary["energy_j"][phase] for phase in PHASES))


class Runner:
    """Runs pairs on a pool of processes and says how far it is."""

    def __init__(self, values: Mapping[str, Any], pool: Executor, progress: Progress) -> None:
        self._values = values
        self._pool = pool
        self._progress = progress

    def __call__(self, pairs: Sequence[Pair]) -> list[Outcome]:
        """Run pairs; tell about each as it is done."""
        futures = [self._pool.submit(simulate_pair, self._values, pair) for pair in pairs]
        outcomes = []
        for future in futures:
            outcomes.append(future.result())
            self._progress.step(_in_words(outcomes[-1]))
        return outcomes


def _in_words(out: Outcome) -> str:
    clocks = f"prefill {out.pair.prefill_mhz}, decode {out.pair.decode_mhz} MHz"
    return f"{clocks}: {out.energy_j / 1e3:.1f} kJ, both objectives met by {100 * out.joint_attainment:.1f} %"


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration to search in.

    Raises:
        UserError: an override is wrong, or chooses a policy.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from voltana.app.cli import explain
    from voltana.sim.run.compose import compose_sim

    for override in overrides:
        if re.match(r"[+~]*policy=", override):
            raise UserError(f"{override}: found a policy, allowed: none, best_static is the one searched")
    try:
        return compose_sim("policy=best_static", *overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error


def find(values: Mapping[str, Any], tolerance: float, target: float | None, lowest_mhz: int, console: Console) -> Found:
    """Search with simulations, on all cores.

    Args:
        values: from `compose`.
        tolerance: see `Search`.
        target: see `Search`.
        lowest_mhz: clocks below are not tried.
        console: where progress goes.

    Raises:
        UserError: something in the configuration is wrong, or no clock is that high.
    """
    from voltana.section import parse
    from voltana.sim.plant.build import build_plants
    from voltana.sim.run.config import SimConfig

    supported = [plant.gpu.clocks() for plant in build_plants(parse(SimConfig, values))]
    clocks = [[clock for clock in each if clock >= lowest_mhz] for each in supported]
    if not all(clocks):
        raise UserError(f"--lowest: found {lowest_mhz}, allowed: up to {min(each[-1] for each in supported)} MHz")
    width = max(2, len(os.sched_getaffinity(0)))
    with Progress("runs", None, console) as progress, ProcessPoolExecutor(width, get_context("spawn")) as pool:
        try:
            return Search(Runner(values, pool, progress), clocks[0], tolerance, target, width, clocks[1]).find()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


# Telling


def policy_yaml(found: Found, command: str) -> str:
    """The policy file: as `conf/policy/best_static.yaml`, or for a folder given with `--config-dir`."""
    best, top = found.best, found.reference
    saving = 100 * (1 - best.energy_j / top.energy_j)
    lines = [
        "# The fixed pair of clocks with least energy that keeps attainment, found in advance with",
        f"#   {command}",
        f"# There it takes {saving:.1f} % less energy than the highest clocks; both objectives are met by",
        f"# {100 * best.joint_attainment:.1f} % of requests against {100 * top.joint_attainment:.1f} %."
        " Other settings have other best clocks.",
        "defaults:",
        "  - /policy/static_max@_here_",
        "  - _self_",
        "name: best_static",
    ]
    for phase, clock in zip(PHASES, best.pair, strict=True):
        lines += [f"{phase}_controller:", f"  clock_mhz: {clock}"]
    return "\n".join(lines) + "\n"


def without_out(words: Sequence[str]) -> list[str]:
    """A command line without the place it writes to, which says nothing about what was searched."""
    kept = list(words)
    while (place := next((i for i, word in enumerate(kept) if word.startswith("--o")), None)) is not None:
        del kept[place : place + (1 if "=" in kept[place] else 2)]
    return kept


def as_overrides(pair: Pair) -> str:
    """The words that make a command use a pair."""
    clocks = (f"policy.{phase}_controller.clock_mhz={clock}" for phase, clock in zip(PHASES, pair, strict=True))
    return " ".join(("policy=best_static", *clocks))


def show(found: Found, console: Console, rows: int = 12) -> None:
    """Print the highest clocks and the runs of least energy, best first."""
    from rich.table import Table

    table = Table("prefill MHz", "decode MHz", "energy kJ", "TTFT met %", "ITL met %", "both met %", "kept", box=None)
    cheapest = sorted(found.tried, key=lambda out: out.energy_j)
    shown = [found.reference, found.best, *(out for out in cheapest if out not in (found.reference, found.best))]
    for out in shown[:rows]:
        shares = (out.ttft_attainment, out.itl_attainment, out.joint_attainment)
        row = [*map(str, out.pair), f"{out.energy_j / 1e3:.1f}", *(f"{100 * share:.1f}" for share in shares)]
        table.add_row(*row, "yes" if out.joint_attainment >= found.floor else "no")
    console.print(table)
    console.print(f"{len(found.tried)} runs. Use it with:\n  {as_overrides(found.best.pair)}", soft_wrap=True)


def percent(text: str) -> float:
    """A number from 0 to 100 of the command line, as a fraction."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"found {text!r}, allowed: a number from 0 to 100")
    return value / 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Search, print, write."""

    words = sys.argv[1:] if arguments is None else list(arguments)
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        "python -m voltana.sim.studies.best_static",
        description=about,
        epilog=more,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--tolerance", type=percent, default=0.01, help="percentage points that may be lost (1)")
    parser.add_argument("--target", type=percent, help="per cent that are enough in any case")
    parser.add_argument("--lowest", type=int, default=510, help="clocks below are not tried, MHz (510)")
    parser.add_argument("--out", type=Path, help="policy file to write")
    parser.add_argument("overrides", nargs="*", help="as of voltana-sim, for instance rps=50 model=qwen3_32b")
    chosen = parser.parse_args(words)
    one_thread_each()
    try:
        values = compose(chosen.overrides)
        found = find(values, chosen.tolerance, chosen.target, chosen.lowest, plain_console(stderr=True))
        if chosen.out is not None:
            command = shlex.join(["python", "-m", "voltana.sim.studies.best_static", *without_out(words)])
            write_whole(chosen.out, policy_yaml(found, command))
    except (UserError, OSError) as error:
        print(f"best_static: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("best_static: interrupted", file=sys.stderr)
        return 130
    show(found, plain_console())
    if chosen.out is not None:
        print(f"wrote {chosen.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
