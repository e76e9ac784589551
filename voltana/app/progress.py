"""How far long work is: a bar with the time left on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from voltana.app.terminal import plain_console

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

QUIET_S = 30.0
"""Where nobody watches a bar, work whose steps have no names tells how far it is so often; shorter work never does."""


class Progress:
    """A context manager around long work; standard error shows how far it is.

    On a terminal that is a bar, how many are done, the time spent and the time left, and it goes away at the end.
    Elsewhere it is a line for each step that has a name, and for the others one every `QUIET_S`.

    Args:
        what: is done, in a word or two: `runs`, `simulating`.
        total: how many steps, or seconds, there are; None: not known.
        console: where to; None: standard error.
        unit: of the total, where it is no number of things.
    """

    def __init__(self, what: str, total: float | None, console: Console | None = None, unit: str = "") -> None:
        self._what, self._total, self._unit = what, total, unit
        self._console = console
        self._bar: RichProgress | None = None
        if sys.stderr.isatty() if console is None else console.is_terminal:
            self._bar, self._task = self._new_bar()
        self._done = 0.0
        self._begun_s = self._told_s = time.monotonic()

    def _new_bar(self) -> tuple[RichProgress, TaskID]:
        """The bar of a terminal; elsewhere rich need not even be imported."""
        from rich import progress

        unit = self._unit and f" {self._unit}"
        count = "{task.completed:.0f}" + ("" if self._total is None else " of {task.total:.0f}") + unit
        bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn(count),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            console=self._console or plain_console(stderr=True, soft_wrap=True),
            transient=True,
        )
        return bar, bar.add_task(self._what, total=self._total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        self._begun_s = self._told_s = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str) -> None:
        """Other work of the same size begins."""
        self._what, self._done = what, 0.0
        self._begun_s = self._told_s = time.monotonic()
        if self._bar is not None:
            self._bar.reset(self._task, description=what, total=self._total)

    def step(self, name: str = "") -> None:
        """One more is done, which may have a name."""
        self._advance(self._done + 1, name)

    def reach(self, done: float) -> None:
        """So many are done."""
        self._advance(done if self._total is None else min(done, self._total), "")

    def line(self, text: str) -> None:
        """Print a line beside the bar."""
        if self._bar is not None:
            self._bar.console.print(text)
        elif self._console is not None:
            self._console.print(text)
        else:
            print(text, file=sys.stderr, flush=True)

    def _advance(self, done: float, name: str) -> None:
        self._done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done)
            return
        now_s = time.monotonic()
        if name:
            self.line(f"[{done:.0f}{'' if self._total is None else f'/{self._total:.0f}'}] {name}{self._left()}")
        elif now_s - self._told_s >= QUIET_S:
            of = "" if self._total is None else f" of {self._total:.0f}"
            self.line(f"{self._what}: {done:.0f}{of}{self._unit and f' {self._unit}'}{self._left()}")
        else:
            return
        self._told_s = now_s

    def _left(self) -> str:
        """How long it will still take at the pace so far; nothing before that can be told, or at the end."""
        spent_s = time.monotonic() - self._begun_s
        if self._total is None or self._done <= 0 or self._done >= self._total or spent_s < QUIET_S:
            return ""
        return f", {in_words(spent_s * (self._total - self._done) / self._done)} left"


def in_words(seconds: float) -> str:
    """A time to come, no finer than it can be foreseen."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    return f"about {round(seconds / 60)} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
