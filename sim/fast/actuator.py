"""Clock commands in the event-skipping engine; the counterpart of `sim.actuator`."""

from __future__ import annotations

from collections.abc import Sequence

from sim.fast.events import Events, Turns
from sim.fast.instance import FastInstance
from sim.limits import Actuation, check_clock


class FastActuator:
    """Drives the clock of one instance: the newest command wins, calls on one host run one after another."""

    def __init__(
        self, events: Events, host: Turns, delays: Actuation, gpus: int, supported: Sequence[int], target: FastInstance
    ) -> None:
        self._events = events
        self._host = host
        self._block_s = delays.block_s * gpus
        self._settle_s = delays.settle_s
        self._supported = frozenset(supported)
        self._target = target
        self._driving = False
        self._driven_mhz: int | None = None
        self.changes = 0

    def command(self, clock_mhz: int) -> None:
        """Ask for a clock that is not the one commanded last."""
        check_clock(clock_mhz, self._supported)
        self._target.commanded_mhz = clock_mhz
        self.changes += 1
        if not self._driving:
            self._driving = True
            self._host.take(self._call)

    def _call(self) -> None:
        clock = self._target.commanded_mhz

        def returned() -> None:
            self._events.at(self._events.now + self._settle_s, lambda: self._target.set_clock(clock))
            self._driving = self._target.commanded_mhz != clock
            self._host.give_back()
            if self._driving:
                self._host.take(self._call)

        self._events.at(self._events.now + self._block_s, returned)
