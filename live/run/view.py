"""What a person sees while a live run goes on: a table that is redrawn on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from voltana.state import LoadSnapshot

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

LINE_EVERY_S = 10.0

Meters = tuple[int | None, float | None]
"""Clock in force, MHz, and power, W, of an instance; None: not told."""


class Progress(Protocol):
    """How far the requests of a run are."""

    completed: int
    ttft_met: int
    itl_met: int
    failures: Counter[str]
    met: Counter[str]
    served: Counter[str]

    @property
    def open(self) -> int:
        """Sent or about to be, not ended."""
        ...

    @property
    def ended(self) -> int:
        """Ended, however."""
        ...


class View:
    """Shows a run.

    Args:
        console: where.
        title: what runs.
        duration_s: time in which requests arrive, if it is known.
    """

    def __init__(self, console: Console, title: str, duration_s: float | None) -> None:
        self._console = console
        self._title = title
        self._duration_s = duration_s
        self._live: Live | None = None
        self._next_line_s = 0.0

    def say(self, message: str) -> None:
        """One line."""
        self._console.print(message, soft_wrap=True)

    def show(
        self, now_s: float, progress: Progress, loads: Mapping[str, LoadSnapshot], meters: Mapping[str, Meters]
    ) -> None:
        """The present state."""
        if self._console.is_terminal:
            if self._live is None:
                from rich.live import Live

                self._live = Live(console=self._console, auto_refresh=False, transient=True)
                self._live.start()
            self._live.update(self.table(now_s, progress, loads, meters), refresh=True)
        elif now_s >= self._next_line_s:
            self._next_line_s = now_s + LINE_EVERY_S
            self.say(self._line(now_s, progress))

    def end(self) -> None:
        """No more of it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self, now_s: float, progress: Progress) -> str:
        of = "" if self._duration_s is None else f" of {self._duration_s:g}"
        failed = f", {sum(progress.failures.values())} failed" if progress.failures else ""
        met = f"TTFT {_share(progress.ttft_met, progress.ended)}, ITL {_share(progress.itl_met, progress.ended)} met"
        return f"{now_s:5.0f}{of} s: {progress.completed} completed{failed}; {met}"

    def table(
        self, now_s: float, progress: Progress, loads: Mapping[str, LoadSnapshot], meters: Mapping[str, Meters]
    ) -> RenderableType:
        """A row per instance, with the share of its requests in time (TTFT or ITL), and all together."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self._title, title_justify="left", box=None, pad_edge=False)
        table.add_column("instance")
        for name in ("clock MHz", "batch", "tokens", "queue", "power W", "TTFT or ITL met"):
            table.add_column(name, justify="right")
        for name, (clock_mhz, power_w) in meters.items():
            load = loads.get(name)
            if load is None:
                table.add_row(name, *["-"] * 6)
                continue
            clock, power = ("-" if value is None else f"{value:.0f}" for value in (clock_mhz, power_w))
            state = (str(load.batch_size), str(load.batch_tokens), str(load.queued))
            table.add_row(name, clock, *state, power, _share(progress.met[name], progress.served[name]))
        return Group(table, Text(self._line(now_s, progress)))


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
