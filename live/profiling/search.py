"""Which cell comes next, as time goes by."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from voltana.live.profiling.cells import Cell, Group, Point, misfit


class Finished(Protocol):
    """A cell that was measured at a clock."""

    @property
    def cell(self) -> Cell:
        """The load that was asked for."""
        ...

    @property
    def point(self) -> Point:
        """The load that there was, and its latency."""
        ...

    @property
    def clock_mhz(self) -> int:
        """At which clock."""
        ...

    @property
    def spent_s(self) -> float:
        """Time it took to measure."""
        ...


class Search:
    """Chooses the next cell: first every group's own, then of the group that EcoPred's form fits worst.

    A group is finished once begun, as EcoPred needs four cells in a bin or none: the time may run over by one group.
    The first group of each phase is measured even if there is no time at all, or the table would be of no use.

    Args:
        groups: the candidates.
        finished: what was measured before.
        budget_s: time for all cells.
        clocks_mhz: a cell is done when it was measured at all of these; empty: when it was measured.
        good_misfit: no further cells once every group fits so well (see `voltana.live.profiling.cells.misfit`).
    """

    def __init__(
        self,
        groups: Sequence[Group],
        finished: Sequence[Finished],
        budget_s: float,
        clocks_mhz: Sequence[int] = (),
        good_misfit: float = 0.0,
    ) -> None:
        self._groups = groups
        self._least = [next((g for g in groups if g.phase == phase), None) for phase in ("prefill", "decode")]
        self._budget_s = budget_s
        self._clocks_mhz = frozenset(clocks_mhz)
        self._good_misfit = good_misfit
        self._points: dict[Cell, dict[int, Point]] = {}
        self._skipped: set[Cell] = set()
        self.spent_s = 0.0
        for measured in finished:
            self.add(measured)

    def add(self, measured: Finished) -> None:
        """Take a finished cell into account."""
        self._points.setdefault(measured.cell, {})[measured.clock_mhz] = measured.point
        self.spent_s += measured.spent_s

    def skip(self, cell: Cell) -> None:
        """Never offer this cell again."""
        self._skipped.add(cell)

    def next_cell(self) -> Cell | None:
        """The cell to measure next; None when time or candidates are used up, or all fits well."""
        for group in self._groups:
            done = self._done(group)
            in_time = self.spent_s < self._budget_s or group in self._least
            if len(done) < group.wanted and (done or in_time):
                cell = group.next_cell([*done, *self._skipped])
                if cell is not None:
                    return cell
        if self.spent_s >= self._budget_s:
            return None
        open_groups = [group for group in self._groups if group.next_cell([*self._done(group), *self._skipped])]
        worst = max(open_groups, key=self.misfit, default=None)
        if worst is None or self.misfit(worst) <= self._good_misfit:
            return None
        return worst.next_cell([*self._done(worst), *self._skipped])

    def misfit(self, group: Group) -> float:
        """The misfit of a group, at the clock where it is worst."""
        done = [self._points[cell] for cell in self._done(group)]
        clocks = {clock for points in done for clock in points}
        return max((misfit([points[clock] for points in done if clock in points]) for clock in clocks), default=1.0)

    def missing_clocks(self, cell: Cell) -> list[int]:
        """Clocks at which a cell is still to be measured, ascending."""
        return sorted(self._clocks_mhz - set(self._points.get(cell, {})))

    def _done(self, group: Group) -> list[Cell]:
        return [cell for cell in group.cells if cell in self._points and not self.missing_clocks(cell)]
