"""Energy over time, and rows of `instances.parquet` from what is heard of an instance."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from voltana.record import InstanceRow


class Stretch(NamedTuple):
    """A part of a time in which energy is known throughout, or not at all."""

    begin_s: float
    end_s: float
    energy_j: float | None


class EnergyCurve:
    """What the counters of an instance's GPUs told, at the times they were read; in between, power is constant.

    A counter that shows less than before has started again: what was used since the reading before it is not known.
    Nor is what was used before the first reading and after the last.
    """

    def __init__(self) -> None:
        self._times_s: list[float] = []
        self._energies_j: list[float] = []
        """Known energy up to each reading; the same over an interval that is not known."""
        self._last_j: tuple[float, ...] = ()
        self._known: list[tuple[float, float]] = []
        """Intervals in which energy is known, in order."""

    def add(self, time_s: float, *counters_j: float) -> None:
        """A reading of the counter of each GPU, J; one that is not later than the last is left out."""
        if not self._times_s:
            self._append(time_s, 0.0, counters_j)
        elif time_s > self._times_s[-1]:
            used_j = [now_j - last_j for now_j, last_j in zip(counters_j, self._last_j, strict=True)]
            if min(used_j) >= 0:
                self._extend(self._times_s[-1], time_s)
                self._append(time_s, self._energies_j[-1] + sum(used_j), counters_j)
            else:
                self._append(time_s, self._energies_j[-1], counters_j)

    def _append(self, time_s: float, energy_j: float, counters_j: tuple[float, ...]) -> None:
        self._times_s.append(time_s)
        self._energies_j.append(energy_j)
        self._last_j = counters_j

    def _extend(self, from_s: float, to_s: float) -> None:
        if self._known and self._known[-1][1] == from_s:
            from_s = self._known.pop()[0]
        self._known.append((from_s, to_s))

    def between(self, from_s: float, to_s: float) -> float:
        """Energy known to have been used from one time to another, J: never negative, never more than was counted."""
        return max(0.0, self._at(to_s) - self._at(from_s))

    def _at(self, time_s: float) -> float:
        if len(self._times_s) < 2:
            return 0.0
        right = min(max(bisect_right(self._times_s, time_s), 1), len(self._times_s) - 1)
        (t0, t1), (e0, e1) = (values[right - 1 : right + 1] for values in (self._times_s, self._energies_j))
        return min(max(e0 + (e1 - e0) * (time_s - t0) / (t1 - t0), e0), e1)

    def stretches(self, from_s: float, to_s: float) -> Iterator[Stretch]:
        """The parts of a time, in order, and the energy used in each where it is known."""
        now_s = from_s
        for begin_s, end_s in self._known:
            begin_s, end_s = max(begin_s, now_s), min(end_s, to_s)
            if begin_s < end_s:
                if now_s < begin_s:
                    yield Stretch(now_s, begin_s, None)
                yield Stretch(begin_s, end_s, self.between(begin_s, end_s))
                now_s = end_s
        if now_s < to_s:
            yield Stretch(now_s, to_s, None)

    def forget(self, before_s: float) -> None:
        """Nobody will ask for what was used before."""
        gone = max(0, bisect_right(self._times_s, before_s) - 1)
        del self._times_s[:gone], self._energies_j[:gone]
        self._known = [interval for interval in self._known if interval[1] > before_s]


class State(NamedTuple):
    """What an instance does from a time on; what is not known is None."""

    time_s: float
    clock_mhz: int | None
    batch_size: int | None
    kv_tokens: int | None
    queued: int | None

    @property
    def kind(self) -> tuple[int | None, int | None, int | None]:
        """Where this changes, a row begins."""
        return self.clock_mhz, self.batch_size, self.queued


class History:
    """The states of an instance: its load as telemetry tells it, its clock as its GPUs do."""

    def __init__(self) -> None:
        self._states: list[State] = []
        self._clock_mhz: int | None = None

    def load(self, time_s: float, batch_size: int, kv_tokens: int, queued: int) -> None:
        """From now on it runs this; times do not go back."""
        if self._states:
            time_s = max(time_s, self._states[-1].time_s)
        self._states.append(State(time_s, self._clock_mhz, batch_size, kv_tokens, queued))

    def clock(self, time_s: float, clock_mhz: int | None) -> None:
        """From now on it runs at this clock, None if nothing tells; later loads may have been heard already."""
        if clock_mhz == self._clock_mhz:
            return
        self._clock_mhz = clock_mhz
        place = bisect_right(self._states, time_s, key=lambda state: state.time_s)
        before = self._states[place - 1]._replace(time_s=time_s) if place else State(time_s, None, None, None, None)
        self._states[place:] = [state._replace(clock_mhz=clock_mhz) for state in (before, *self._states[place:])]

    def rows(self, name: str, phase: str, from_s: float, to_s: float, energy: EnergyCurve) -> list[InstanceRow]:
        """Rows for a stretch of time, each with its mean power where the meters told it.

        Stretches are asked for in order: what was before one is forgotten, here and in the curve.
        """
        rows = [
            InstanceRow(part.begin_s, name, phase, *state[1:], _power_w(part))
            for state, end_s in self._within(from_s, to_s)
            for part in energy.stretches(state.time_s, end_s)
        ]
        gone = max(0, bisect_right(self._states, to_s, key=lambda state: state.time_s) - 1)
        del self._states[:gone]
        energy.forget(to_s)
        return rows

    def _within(self, from_s: float, to_s: float) -> list[tuple[State, float]]:
        """States in a stretch of time and their ends; neighbours of one kind are one."""
        unknown = State(from_s, None, None, None, None)
        found: list[tuple[State, float]] = []
        for state, following in pairwise([unknown, *self._states, unknown._replace(time_s=to_s)]):
            begin_s, end_s = max(state.time_s, from_s), min(following.time_s, to_s)
            if begin_s >= end_s:
                continue
            if found and found[-1][0].kind == state.kind:
                found[-1] = found[-1][0], end_s
            else:
                found.append((state._replace(time_s=begin_s), end_s))
        return found


def _power_w(part: Stretch) -> float | None:
    return None if part.energy_j is None else part.energy_j / (part.end_s - part.begin_s)


def clipped(rows: Sequence[InstanceRow], ends_s: Sequence[float], from_s: float, to_s: float) -> list[InstanceRow]:
    """The parts of rows, in order and with the ends given, that lie within a stretch of time."""
    return [
        row._replace(time_s=max(row.time_s, from_s))
        for row, end_s in zip(rows, ends_s, strict=True)
        if max(row.time_s, from_s) < min(end_s, to_s)
    ]


class Metered(NamedTuple):
    """What is known of the energy used in some time."""

    energy_j: float = 0.0
    unknown_s: float = 0.0
    """Time of which nothing is known."""

    def plus(self, other: Metered) -> Metered:
        """Both together."""
        return Metered(self.energy_j + other.energy_j, self.unknown_s + other.unknown_s)


def metered(rows: Sequence[InstanceRow], from_s: float, to_s: float) -> Metered:
    """Power times duration, summed over rows that follow each other up to a time."""
    total = Metered(unknown_s=(rows[0].time_s if rows else to_s) - from_s)
    for row, end_s in zip(rows, [*(row.time_s for row in rows[1:]), to_s], strict=True):
        duration_s = end_s - row.time_s
        known = Metered(unknown_s=duration_s) if row.power_w is None else Metered(row.power_w * duration_s)
        total = total.plus(known)
    return total
