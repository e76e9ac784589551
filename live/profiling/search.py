"""Which cell of a clock comes next, as time goes by."""

from __future__ import annotations

from collections.abc import Sequence

from live.profiling.cells import Cell, Group, misfit
from live.profiling.measure import Measured


class Search:
    """Chooses the next cell of a clock: first every group's own, then the group that EcoPred's form fits worst.

    A group is finished once begun, as EcoPred needs four cells in a bin or none: the time may run over by one group.
    The first group of each phase is measured even if there is no time at all, or the table would be of no use.
    """

    def __init__(self, groups: Sequence[Group], finished: Sequence[Measured], budget_s: float) -> None:
        self._groups = groups
        self._least = [next((g for g in groups if g.phase == phase), None) for phase in ("prefill", "decode")]
        self._budget_s = budget_s
        self._latencies: dict[Cell, float] = {}
        self._skipped: set[Cell] = set()
        self.spent_s = 0.0
        for measured in finished:
            self.add(measured)

    def add(self, measured: Measured) -> None:
        """Take a finished cell into account."""
        self._latencies[measured.cell] = measured.latency_s
        self.spent_s += measured.spent_s

    def skip(self, cell: Cell) -> None:
        """Never offer this cell again."""
        self._skipped.add(cell)

    def next_cell(self) -> Cell | None:
        """The cell to measure next; None when time or candidates are used up."""
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
        worst = max(open_groups, key=lambda group: misfit(self._done(group)), default=None)
        return worst.next_cell([*self._done(worst), *self._skipped]) if worst else None

    def _done(self, group: Group) -> dict[Cell, float]:
        return {cell: self._latencies[cell] for cell in group.cells if cell in self._latencies}
