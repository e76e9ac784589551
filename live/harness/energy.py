"""Energy over time, and rows of `instances.parquet` from what is heard of an instance."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from voltana.record import InstanceRow


class EnergyCurve:
    """What a meter counted, at the times it was read; in between, power is taken as constant."""

    def __init__(self) -> None:
        self._times_s: list[float] = []
        self._energies_j: list[float] = []

    def add(self, time_s: float, energy_j: float) -> None:
        """A reading; one that is not later than the last is left out."""
        if not self._times_s or time_s > self._times_s[-1]:
            self._times_s.append(time_s)
            self._energies_j.append(energy_j)

    def __len__(self) -> int:
        return len(self._times_s)

    def at(self, time_s: float) -> float:
        """The counter at a time, J; beyond the readings as between the two nearest.

        Raises:
            ValueError: there are fewer than two readings.
        """
        if len(self._times_s) < 2:
            raise ValueError("an energy curve needs two readings")
        right = min(max(bisect_right(self._times_s, time_s), 1), len(self._times_s) - 1)
        (t0, t1), (e0, e1) = (values[right - 1 : right + 1] for values in (self._times_s, self._energies_j))
        return e0 + (e1 - e0) * (time_s - t0) / (t1 - t0)

    def between(self, from_s: float, to_s: float) -> float:
        """Energy used from one time to another, J."""
        return self.at(to_s) - self.at(from_s)


class State(NamedTuple):
    """What an instance does from a time on."""

    time_s: float
    clock_mhz: int
    batch_size: int
    kv_tokens: int
    queued: int


class History:
    """The states of an instance, one wherever clock, batch or queue change."""

    def __init__(self) -> None:
        self._states: list[State] = []

    def add(self, state: State) -> None:
        """From now on it is in this state; times do not go back."""
        states = self._states
        if states and state.time_s <= states[-1].time_s:
            state = state._replace(time_s=states.pop().time_s)
        if states and _kind(states[-1]) == _kind(state):
            return
        self._states.append(state)

    def rows(self, name: str, phase: str, from_s: float, to_s: float, energy: EnergyCurve) -> list[InstanceRow]:
        """Rows for a stretch of time, each with its mean power: 0 where the meter told nothing."""
        states = [*self._states, State(to_s, 0, 0, 0, 0)]
        metered = len(energy) > 1
        rows = []
        for state, following in pairwise(states):
            begin_s, end_s = max(state.time_s, from_s), min(following.time_s, to_s)
            if end_s > begin_s:
                power_w = energy.between(begin_s, end_s) / (end_s - begin_s) if metered else 0.0
                rows.append(InstanceRow(begin_s, name, phase, *state[1:], power_w))
        return rows


def _kind(state: State) -> tuple[int, int, int]:
    return state.clock_mhz, state.batch_size, state.queued


def clipped(rows: Iterable[InstanceRow], ends_s: Sequence[float], from_s: float, to_s: float) -> list[InstanceRow]:
    """The parts of rows, which end at the times given, that lie within a stretch of time.

    An instance that ended before does nothing from then on.
    """
    kept: list[InstanceRow] = []
    for row, end_s in zip(rows, ends_s, strict=True):
        begin_s = max(row.time_s, from_s)
        if min(end_s, to_s) > begin_s:
            kept.append(row._replace(time_s=begin_s))
    if kept and ends_s[-1] < to_s:
        kept.append(InstanceRow(ends_s[-1], kept[-1].instance, kept[-1].phase, 0, 0, 0, 0, 0.0))
    return kept


def energy_of(rows: Sequence[InstanceRow], to_s: float) -> float:
    """Power times duration, summed over rows that follow each other up to a time."""
    ends_s = [*(row.time_s for row in rows[1:]), to_s]
    return sum(row.power_w * (end_s - row.time_s) for row, end_s in zip(rows, ends_s, strict=True))
