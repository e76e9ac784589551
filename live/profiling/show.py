"""Progress of a profile: lines, and how much of its time is spent."""

from __future__ import annotations

from typing import Self

from voltana.app.progress import Progress
from voltana.app.terminal import plain_console


class Show:
    """Tells the person at the terminal what was measured.

    Args:
        budget_s: time in all, or for each part.
    """

    def __init__(self, budget_s: float) -> None:
        self._progress = Progress("setting up", budget_s, plain_console(soft_wrap=True), unit="s")

    def __enter__(self) -> Self:
        self._progress.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.__exit__()

    def line(self, text: str) -> None:
        """Print a line."""
        self._progress.line(text)

    def begin(self, what: str) -> None:
        """A part with the whole time to itself begins."""
        self._progress.begin(what)

    def progress(self, spent_s: float) -> None:
        """So much of the time is spent."""
        self._progress.reach(spent_s)
