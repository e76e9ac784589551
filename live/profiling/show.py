"""Progress of a profile: lines, and on a terminal a bar of the time spent."""

from __future__ import annotations

from typing import Self

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from voltana.app.terminal import plain_console


class Show:
    """Tells the person at the terminal what was measured.

    Args:
        budget_s: time in all, or for each part.
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

    def begin(self, what: str) -> None:
        """A part with the whole time to itself begins."""
        self._bar.reset(self._task, description=what, total=self._budget_s)

    def progress(self, spent_s: float) -> None:
        """So much of the time is spent."""
        self._bar.update(self._task, completed=min(spent_s, self._budget_s))
