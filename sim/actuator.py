"""Clock commands on their way to a GPU.

A command is one driver call per GPU of the TP group. A call blocks, calls on one host run one after another, and the
clock is in force only some time after the call returned (PHYSICS: ~3 ms and up to ~20 ms). The newest command wins:
while a call is under way later ones wait, and only the last of those is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import simpy

from sim.limits import Actuation, check_clock


class Actuator:
    """Drives the clock of one instance.

    Args:
        host: the driver of the host, one call at a time.
        gpus: calls per command.
        supported_mhz: clocks the GPU has.
        apply: called when a clock comes into force.
    """

    def __init__(
        self,
        env: simpy.Environment,
        host: simpy.Resource,
        delays: Actuation,
        gpus: int,
        supported_mhz: Sequence[int],
        apply: Callable[[int], None],
    ) -> None:
        self._env = env
        self._host = host
        self._delays = delays
        self._gpus = gpus
        self._supported = frozenset(supported_mhz)
        self._apply = apply
        self._driving = False
        self._driven_mhz = 0
        self.commanded_mhz = 0
        self.changes = 0

    def start_at(self, clock_mhz: int) -> None:
        """Set the clock before the run, at no cost."""
        check_clock(clock_mhz, self._supported)
        self.commanded_mhz = self._driven_mhz = clock_mhz
        self._apply(clock_mhz)

    def command(self, clock_mhz: int) -> None:
        """Ask for a clock; nothing happens if it is the one commanded last."""
        if clock_mhz == self.commanded_mhz:
            return
        check_clock(clock_mhz, self._supported)
        self.commanded_mhz = clock_mhz
        self.changes += 1
        if not self._driving:
            self._driving = True
            self._env.process(self._drive())

    def _drive(self) -> Generator[simpy.Event]:
        while self._driven_mhz != self.commanded_mhz:
            with self._host.request() as turn:
                yield turn
                clock = self.commanded_mhz
                yield self._env.timeout(self._delays.block_s * self._gpus)
            self._driven_mhz = clock
            self._env.process(self._settle(clock))
        self._driving = False

    def _settle(self, clock_mhz: int) -> Generator[simpy.Event]:
        yield self._env.timeout(self._delays.settle_s)
        self._apply(clock_mhz)
