"""The frequency controllers of a live cluster: telemetry in, clock commands out.

One `FrequencyController` per instance, the same objects as in the simulator, made by `voltana.app.bundle`. It
is asked when it would be asked there: before every iteration, and after as much idle time as it wished. What clock an
instance is to have is kept by its GPUs (`voltana.live.gpus`), which bring it into force; a command is sent only when it
differs.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from voltana.errors import UserError
from voltana.live.gpus import Clocks
from voltana.live.latency import LatencyHistogram
from voltana.live.telemetry.message import IDLE, Telemetry
from voltana.live.telemetry.subscriber import Subscriber
from voltana.state import Decision, FrequencyController, LoadSnapshot

logger = logging.getLogger(__name__)

SILENT_S = 5.0
"""Without telemetry for so long an instance is driven blindly; servers publish every second even when idle."""


@dataclass
class _Instance:
    """What is remembered of an instance."""

    controller: FrequencyController
    load: LoadSnapshot = IDLE
    ask_when_idle_s: float | None = None
    asked_s: float = 0.0
    """Idle time for which the controller was asked last, since the last iteration."""
    heard_s: float = 0.0
    silent: bool = False
    timer: asyncio.TimerHandle | None = None
    changes: int = 0


class Controller:
    """Runs the controllers of a cluster in an event loop.

    Args:
        controllers: one for each instance.
        clocks: where commands go.
        subscriber: where telemetry comes from; it, or somebody between, calls `on_telemetry`.
        blind_mhz: clock of an instance that has been silent for `silent_s`; None: keep the last. The highest clock
            is the safe choice, since then nobody sees whether the objectives are met.
        silent_s: see there.
        power_w: last reading of an instance's power sensor, for controllers that ask for it (`reads_power`).
        on_error: is told of the first decision that failed.

    Raises:
        UserError: a controller asks for what is not measured in a live cluster.
    """

    def __init__(
        self,
        controllers: Mapping[str, FrequencyController],
        clocks: Clocks,
        subscriber: Subscriber,
        *,
        blind_mhz: int | None = None,
        silent_s: float = SILENT_S,
        power_w: Callable[[str], float | None] | None = None,
        on_error: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        for name, controller in controllers.items():
            check_needs(name, controller, power_w is not None)
        self._instances = {name: _Instance(controller) for name, controller in controllers.items()}
        self._clocks = clocks
        self._subscriber = subscriber
        self._blind_mhz = blind_mhz
        self._silent_s = silent_s
        self._power_w = power_w
        self._on_error = on_error
        self._watch: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.decision_latency = LatencyHistogram()
        """From a message's arrival in this process until its decision is made and commanded."""
        self.errors = 0
        """Decisions that failed; the clock then stays."""

    # Start and end

    def start(self) -> None:
        """Begin: every clock as its controller wants it before any load, then as telemetry comes."""
        self._loop = asyncio.get_running_loop()
        for name, instance in self._instances.items():
            instance.heard_s = time.monotonic()
            instance.asked_s = instance.load.idle_s  # longer than for ever it cannot idle: not before an iteration
            self._ask(name, instance)
        self._watch = self._loop.create_task(self._watch_silence())

    def stop(self) -> None:
        """Decide nothing any more; the clocks stay as they are."""
        self._loop = None
        if self._watch is not None:
            self._watch.cancel()
        for instance in self._instances.values():
            _cancel(instance)

    def clock_mhz(self, instance: str) -> int:
        """The clock commanded last; 0 before."""
        return self._clocks.setpoint(instance).clock_mhz

    def changes(self, instance: str) -> int:
        """Clocks commanded to an instance, the one at the start not counted."""
        return self._instances[instance].changes

    @property
    def clock_changes(self) -> int:
        """The same of all instances."""
        return sum(instance.changes for instance in self._instances.values())

    # Telemetry

    def on_telemetry(self, telemetry: Telemetry) -> None:
        """Take a message in; decide if an iteration is about to run. Not before `start`, nor after `stop`."""
        instance = self._instances.get(telemetry.instance)
        if instance is None or self._loop is None:
            return
        instance.load = telemetry.load
        instance.heard_s = telemetry.received_s
        instance.silent = False
        if telemetry.load.batch_size:
            _cancel(instance)
            instance.asked_s = 0.0
            self._ask(telemetry.instance, instance)
            self.decision_latency.add(time.monotonic() - telemetry.received_s)
        elif instance.timer is None:
            self._wait_idle(telemetry.instance, instance)

    def _wait_idle(self, name: str, instance: _Instance) -> None:
        """Ask when the instance has idled as long as its controller wished, unless it was asked for that."""
        _cancel(instance)
        ask_s = instance.ask_when_idle_s
        if ask_s is None or ask_s <= instance.asked_s or self._loop is None:
            return
        wait_s = max(0.0, ask_s - self._idle_s(instance))
        instance.timer = self._loop.call_later(wait_s, self._idled, name, instance, ask_s)

    def _idled(self, name: str, instance: _Instance, ask_s: float) -> None:
        instance.timer = None
        if instance.load.batch_size:
            return
        instance.asked_s = ask_s
        idle_s = max(ask_s, self._idle_s(instance))
        instance.load = instance.load._replace(time_s=self._time_s(), idle_s=idle_s)
        self._ask(name, instance)
        self._wait_idle(name, instance)

    def _idle_s(self, instance: _Instance) -> float:
        """Idle time by now."""
        return instance.load.idle_s + self._time_s() - instance.load.time_s

    def _time_s(self) -> float:
        return time.monotonic() - self._subscriber.start.monotonic_s

    # Decisions

    def _ask(self, name: str, instance: _Instance) -> None:
        power_w, cluster_power_w = self._power(name, instance.controller)
        load = instance.load._replace(clock_mhz=self.clock_mhz(name), power_w=power_w, cluster_power_w=cluster_power_w)
        try:
            decision = instance.controller.decide(load)
            self._command(name, instance, decision)
        except Exception as error:  # whoever called it must not lose its telemetry for that
            self.errors += 1
            if self.errors == 1:
                logger.warning("%s: the decision failed, its clock stays at %d MHz", name, self.clock_mhz(name))
                self._on_error(error)

    def _power(self, name: str, controller: FrequencyController) -> tuple[float | None, float | None]:
        if self._power_w is None or not getattr(controller, "reads_power", False):
            return None, None
        readings = {each: self._power_w(each) for each in self._instances}
        known = [reading for reading in readings.values() if reading is not None]
        return readings[name], sum(known) if len(known) == len(readings) else None

    def _command(self, name: str, instance: _Instance, decision: Decision) -> None:
        instance.ask_when_idle_s = decision.ask_when_idle_s
        if decision.power_cap_w != self._clocks.setpoint(name).power_cap_w:
            self._clocks.set_power_cap(name, decision.power_cap_w)
        self._drive(name, instance, decision.clock_mhz)

    def _drive(self, name: str, instance: _Instance, clock_mhz: int) -> None:
        before_mhz = self.clock_mhz(name)
        if clock_mhz != before_mhz:
            self._clocks.set_clock(name, clock_mhz)
            instance.changes += bool(before_mhz)

    # Silence

    async def _watch_silence(self) -> None:
        while True:
            await asyncio.sleep(self._silent_s / 4)
            now_s = time.monotonic()
            for name, instance in self._instances.items():
                if not instance.silent and now_s - instance.heard_s > self._silent_s:
                    self._fall_silent(name, instance)

    def _fall_silent(self, name: str, instance: _Instance) -> None:
        instance.silent = True
        _cancel(instance)
        logger.warning("%s: no telemetry for %g s, clock %s", name, self._silent_s, self._blind_mhz or "kept")
        if self._blind_mhz is not None:
            self._drive(name, instance, self._blind_mhz)


def _cancel(instance: _Instance) -> None:
    if instance.timer is not None:
        instance.timer.cancel()
        instance.timer = None


def check_needs(name: str, controller: FrequencyController, power: bool) -> None:
    """Refuse a controller that asks for what a live cluster does not measure.

    Args:
        name: for the message.
        controller: what it is.
        power: whether power sensors are read.

    Raises:
        UserError: it does.
    """
    kind = type(controller).__name__
    if getattr(controller, "reads_requests", False):
        raise UserError(
            f"{name}: {kind} looks at single requests, which telemetry does not carry; it runs simulated only"
        )
    if getattr(controller, "reads_power", False) and not power:
        raise UserError(
            f"{name}: {kind} reads the power sensor, and none is at hand; allowed: a controller that does not"
        )
