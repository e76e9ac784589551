"""Progress of a profile: a line per cell, and on a terminal a bar of the time spent at this clock."""

from __future__ import annotations

from typing import Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from voltana.app.terminal import plain_console
from voltana.live.profiling.torch.measure import Measured
from voltana.live.profiling.torch.roofline import Rates


class Show:
    """Tells the person at the terminal what was measured.

    Args:
        budget_s: time for one clock.
    """

    def __init__(self, budget_s: float) -> None:
        self._console = plain_console(soft_wrap=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._budget_s = budget_s
        self._task = self._bar.add_task("setting up", total=budget_s)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def line(self, text: str) -> None:
        """Print a line."""
        self._console.print(text)

    def clock(self, clock_mhz: int, locked: bool, rates: Rates) -> None:
        """A clock begins."""
        self._bar.reset(self._task, description=f"{clock_mhz} MHz", total=self._budget_s)
        how = "set" if locked else "in force"
        memory, arithmetic = rates.bytes_per_s / 1e9, rates.flop_per_s / 1e12
        self.line(f"{clock_mhz} MHz ({how}): memory {memory:.1f} GB/s, GEMM {arithmetic:.2f} TFLOP/s")

    def progress(self, spent_s: float) -> None:
        """So much of the time is spent."""
        self._bar.update(self._task, completed=min(spent_s, self._budget_s))

    def cell(self, measured: Measured, spent_s: float) -> None:
        """A cell is done."""
        self.progress(spent_s)
        self.line(describe(measured))


def describe(measured: Measured) -> str:
    """One line: load, latency and its interval, power, floor and how far above it."""
    latency, energy = measured.latency_s, measured.energy_j
    power = "       -" if energy is None else f"{energy / latency:6.1f} W"
    times = latency / measured.floor_s if measured.floor_s else float("inf")
    verdict = "  FASTER THAN ITS FLOOR" if measured.too_fast else ""
    return (
        f"{measured.phase:7} {measured.batch_size:5} x {measured.length:<6} {latency * 1e3:10.3f} ms "
        f"+-{100 * measured.latency_interval:4.1f} %  {power}  floor {measured.floor_s * 1e3:10.3f} ms "
        f"({measured.floor_bound}), {times:.2f} x{verdict}"
    )
