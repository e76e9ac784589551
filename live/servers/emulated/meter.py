"""Energy of an emulated GPU group, exactly, and the rows of `instances.parquet`."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import NamedTuple

MAX_ROWS = 500_000
"""Rows kept; the oldest go first."""


class Row(NamedTuple):
    """The state of an instance from `time_s` (monotonic clock) on; see `voltana.record.InstanceRow`."""

    time_s: float
    clock_mhz: int
    batch_size: int
    kv_tokens: int
    queued: int
    power_w: float


class Meter:
    """Integrates power over time. Between two calls of `enter` the power is constant, so nothing is approximated.

    A row stays open while clock, batch size and queue stay the same and the KV tokens are where the batch's own growth
    has taken them, as in the simulator; its power is its mean.
    """

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._power_w = 0.0
        self._energy_j = 0.0
        self._state: tuple[int, int, int] | None = None
        self._row_since_s = now_s
        self._row_start_j = 0.0
        self._row_kv = 0
        self._kv_now = 0
        self._rows: deque[Row] = deque(maxlen=MAX_ROWS)
        self._closed_rows = 0

    @property
    def power_w(self) -> float:
        """Draw of this moment, all GPUs of the group."""
        return self._power_w

    @property
    def clock_mhz(self) -> int | None:
        """The clock in force; None before the first state."""
        return None if self._state is None else self._state[0]

    def energy_j(self, now_s: float) -> float:
        """Energy since the start."""
        return self._energy_j + self._power_w * (now_s - self._since_s)

    def enter(self, at_s: float, clock_mhz: int, batch_size: int, kv_tokens: int, queued: int, power_w: float) -> None:
        """The group draws this power, in this state, from `at_s` on."""
        self._energy_j = self.energy_j(at_s)
        self._since_s = at_s
        self._power_w = power_w
        state = (clock_mhz, batch_size, queued)
        if state != self._state or kv_tokens != self._kv_now:
            self.close_row(at_s)
            self._state = state
            self._row_kv = self._kv_now = kv_tokens

    def grow(self, kv_tokens: int) -> None:
        """The batch made this many KV tokens."""
        self._kv_now += kv_tokens

    def close_row(self, at_s: float) -> None:
        """End the open row; one of no duration is dropped."""
        duration_s = at_s - self._row_since_s
        energy_j = self.energy_j(at_s)
        if self._state is not None and duration_s > 0:
            clock_mhz, batch_size, queued = self._state
            power_w = (energy_j - self._row_start_j) / duration_s
            self._rows.append(Row(self._row_since_s, clock_mhz, batch_size, self._row_kv, queued, power_w))
            self._closed_rows += 1
        self._row_since_s, self._row_start_j, self._row_kv = at_s, energy_j, self._kv_now

    def rows(self, first: int) -> tuple[int, list[Row]]:
        """Closed rows from number `first` on, as far as they are kept, and the number of the first of them."""
        dropped = self._closed_rows - len(self._rows)
        first = max(first, dropped)
        return first, list(islice(self._rows, first - dropped, None))
