"""Commands on their way to a GPU.

A command is one driver call per GPU of the TP group, two where clock and power cap both change. A call blocks, calls
on one host run one after another, and the setting is in force only some time after the call returned (about 3 ms and
up to 20 ms on real GPUs). The newest command wins:
while a call is under way later ones wait, and only the last of those is executed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import simpy

from voltana.app.serving import Actuation
from voltana.sim.serving.limits import Setting
from voltana.state import Decision


class Actuator:
    """Drives the GPUs of one instance.

    Args:
        host: the driver of the host, one call at a time.
        gpus: of the instance.
        apply: called when a setting comes into force.
    """

    def __init__(
        self,
        env: simpy.Environment,
        host: simpy.Resource,
        delays: Actuation,
        gpus: int,
        apply: Callable[[Setting], None],
    ) -> None:
        self._env = env
        self._host = host
        self._delays = delays
        self._gpus = gpus
        self._apply = apply
        self._driving = False
        self._driven = self.commanded = Setting(0)
        self.changes = 0

    def start_at(self, decision: Decision) -> None:
        """Set the GPUs before the run, at no cost."""
        self.commanded = self._driven = Setting.of(decision)
        self._apply(self.commanded)

    def command(self, decision: Decision) -> None:
        """Ask for a setting; nothing happens if it is the one commanded last."""
        if self._take(decision) and not self._driving:
            self._driving = True
            self._env.process(self._drive())

    def act_at_once(self, decision: Decision) -> None:
        """The same without any delay, for a controller that acts so."""
        if self._take(decision):
            self._driven = self.commanded
            self._apply(self.commanded)

    def _take(self, decision: Decision) -> bool:
        """Take a command; whether it changes anything."""
        asked = Setting.of(decision)
        self.changes += asked.clock_mhz != self.commanded.clock_mhz
        changed = asked != self.commanded
        self.commanded = asked
        return changed

    def _drive(self) -> Generator[simpy.Event]:
        while self._driven != self.commanded:
            with self._host.request() as turn:
                yield turn
                setting = self.commanded
                yield self._env.timeout(self._delays.call_s(self._gpus, setting.calls_from(self._driven)))
            self._driven = setting
            self._env.process(self._settle(setting))
        self._driving = False

    def _settle(self, setting: Setting) -> Generator[simpy.Event]:
        yield self._env.timeout(self._delays.settle_s)
        self._apply(setting)
