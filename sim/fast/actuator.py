"""Commands to GPUs in the event-skipping engine; the counterpart of `voltana.sim.reference.actuator`."""

from __future__ import annotations

from voltana.app.serving import Actuation
from voltana.sim.fast.events import Events, Turns
from voltana.sim.fast.instance import FastInstance
from voltana.sim.serving.limits import Setting
from voltana.state import Decision


class FastActuator:
    """Drives the GPUs of one instance: the newest command wins, calls on one host run one after another."""

    def __init__(self, events: Events, host: Turns, delays: Actuation, gpus: int, target: FastInstance) -> None:
        self._events = events
        self._host = host
        self._delays = delays
        self._gpus = gpus
        self._target = target
        self._driving = False
        self._driven = Setting(0)
        self.changes = 0

    def start_at(self, decision: Decision) -> Setting:
        """Set the GPUs before the run, at no cost."""
        self._driven = self._target.commanded = Setting.of(decision)
        return self._driven

    def command(self, decision: Decision) -> None:
        """Ask for a setting that is not the one commanded last."""
        asked = Setting.of(decision)
        self.changes += asked.clock_mhz != self._target.commanded.clock_mhz
        self._target.commanded = asked
        if not self._driving:
            self._driving = True
            self._host.take(self._call)

    def act_at_once(self, decision: Decision) -> None:
        """The same without any delay, for a controller that acts so."""
        asked = Setting.of(decision)
        self.changes += asked.clock_mhz != self._target.commanded.clock_mhz
        self._target.commanded = self._driven = asked
        self._target.put_in_force(asked)

    def _call(self) -> None:
        setting = self._target.commanded

        def returned() -> None:
            self._driven = setting
            self._events.at(self._events.now + self._delays.settle_s, lambda: self._target.apply(setting))
            self._driving = self._target.commanded != setting
            self._host.give_back()
            if self._driving:
                self._host.take(self._call)

        call_s = self._delays.call_s(self._gpus, setting.calls_from(self._driven))
        self._events.at(self._events.now + call_s, returned)
