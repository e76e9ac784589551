"""What drives an instance in real time.

A driver knows no wall clock either. Whoever has one says what time it is: `advance` brings the instance there, through
every iteration that ends on the way at the instant where it ends, and `next_s` tells when to call again. A late caller
therefore makes answers late, but no iteration longer and no energy wrong.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from itertools import count, islice

from voltana.live.latency import LatencyHistogram
from voltana.record import InstanceRow
from voltana.sim.serving.instance import Instance
from voltana.sim.serving.job import Job
from voltana.sim.serving.limits import Setting
from voltana.state import LoadSnapshot

MAX_ROWS = 500_000
"""Rows kept; the oldest go first."""


class RowHistory:
    """The rows that a meter wrote, numbered from 0."""

    def __init__(self) -> None:
        self._rows: deque[InstanceRow] = deque(maxlen=MAX_ROWS)
        self._written = 0

    def write(self, row: InstanceRow) -> None:
        """Keep a row."""
        self._rows.append(row)
        self._written += 1

    def since(self, first: int) -> tuple[int, list[InstanceRow]]:
        """Rows from number `first` on, as far as they are kept, and the number of the first of them."""
        dropped = self._written - len(self._rows)
        first = max(first, dropped)
        return first, list(islice(self._rows, first - dropped, None))


class Driver:
    """Drives one instance.

    Args:
        instance: what is driven.
        clock_mhz: at the start.
        now_s: the start.
        publish: takes a snapshot at the start of every iteration and when there is none to run.
    """

    def __init__(
        self, instance: Instance, clock_mhz: int, now_s: float, publish: Callable[[LoadSnapshot], None] = lambda _: None
    ) -> None:
        instance.shows_throttling = True
        instance.apply(Setting(clock_mhz))
        self.instance = instance
        self.now_s = now_s
        self.lag = LatencyHistogram()
        """How much later than its time each event was lived through: how far whoever drives this falls behind."""
        self._publish = publish
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._end_s = math.inf
        self._advancing = False

    @property
    def next_s(self) -> float:
        """When something will happen next by itself."""
        return min(self._end_s, self._events[0][0]) if self._events else self._end_s

    def advance(self, now_s: float) -> None:
        """Live through everything up to `now_s`; nothing happens if that is under way, and this called from it."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while (at_s := self.next_s) <= now_s:
                self.now_s = at_s
                self.lag.add(now_s - at_s)
                if self._events and self._events[0][0] == at_s:
                    heapq.heappop(self._events)[2]()
                else:
                    self.instance.end(at_s)
                    self._go_on()
        finally:
            self._advancing = False
        self.now_s = max(self.now_s, now_s)

    def at(self, at_s: float, action: Callable[[], None]) -> None:
        """Do something at an instant, or now if it has passed."""
        heapq.heappush(self._events, (max(at_s, self.now_s), next(self._order), action))

    @property
    def running(self) -> bool:
        """Whether an iteration is under way."""
        return self._end_s < math.inf

    def wake(self) -> None:
        """Work may have come."""
        if not self.running:
            self._go_on()

    def submit(self, job: Job) -> None:
        """Take a request."""
        self.instance.submit(job)
        self.wake()

    def set_clock(self, clock_mhz: int, power_cap_w: float | None = None) -> None:
        """A clock and a power limit per GPU come into force; what is left of an iteration goes on at the new speed."""
        setting = Setting(clock_mhz, power_cap_w)
        if setting != self.instance.setting:
            self.instance.apply(setting)
            self._end_s = self.now_s + self.instance.change(self.now_s)

    def load(self) -> LoadSnapshot:
        """Telemetry of this instant."""
        return self.instance.load(self.now_s, self.instance.setting.clock_mhz)

    def _go_on(self) -> None:
        """Start the next iteration, or rest."""
        instance, now_s = self.instance, self.now_s
        if instance.form_batch(now_s):
            self._end_s = now_s + instance.begin(now_s)
        else:
            self._end_s = math.inf
            instance.rest(now_s)
        self._publish(self.load())
