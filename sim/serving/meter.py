"""The meter of an instance: its energy, and the rows of `instances.parquet`."""

from __future__ import annotations

from collections.abc import Callable

from voltana.record import InstanceRow
from voltana.record.summary import InstanceTotals
from voltana.state import Phase


class Meter:
    """Follows the state of one instance.

    A row stays open while clock, batch size and queue stay the same and the KV tokens are where the batch's own
    growth has taken them; its power is its mean. Rows of no duration are not written.
    """

    def __init__(self, name: str, phase: Phase, write: Callable[[InstanceRow], None]) -> None:
        self.name = name
        self.totals = InstanceTotals(phase)
        self._write = write
        self._state: tuple[int, int, int] | None = None
        self._since_s = 0.0
        self._kv_start = 0
        self._kv_now = 0
        self._row_energy_j = 0.0

    def enter(self, now_s: float, clock_mhz: int, batch_size: int, kv_tokens: int, queued: int) -> None:
        """The instance is in this state from now on."""
        state = (clock_mhz, batch_size, queued)
        if state == self._state and kv_tokens == self._kv_now:
            return
        self.flush(now_s)
        self._state = state
        self._kv_start = self._kv_now = kv_tokens

    def grow(self, kv_tokens: int) -> None:
        """The batch made this many KV tokens, an iteration's worth."""
        self._kv_now += kv_tokens

    def spend(self, power_w: float, duration_s: float) -> None:
        """The instance drew this power for this long in its present state."""
        self.add(power_w * duration_s)

    def add(self, energy_j: float) -> None:
        """The instance used this much in its present state."""
        self.totals.energy_j += energy_j
        self._row_energy_j += energy_j

    def flush(self, now_s: float) -> None:
        """Write the row that is open, up to now; a state that lasted no time leaves none."""
        duration = now_s - self._since_s
        if self._state is not None and duration > 0:
            clock, batch, queued = self._state
            power = self._row_energy_j / duration
            phase = self.totals.phase
            self._write(InstanceRow(self._since_s, self.name, phase, clock, batch, self._kv_start, queued, power))
        self._since_s = now_s
        self._kv_start = self._kv_now
        self._row_energy_j = 0.0
