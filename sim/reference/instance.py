"""An instance as a SimPy process, with the controller that is asked and the actuator that carries out its answers.

Its life, in `InstanceProcess._run`: form a batch, ask the controller, run the iteration, hand on what is done; idle
when there is nothing to run. What that does to queue, batch and energy is `voltana.sim.serving.instance`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator

import simpy

from voltana.dispatch import Standing, standing_of
from voltana.sim.plant import Plant
from voltana.sim.reference.actuator import Actuator
from voltana.sim.serving.instance import Instance
from voltana.sim.serving.job import Job
from voltana.sim.serving.limits import Setting
from voltana.sim.serving.sensor import PowerSensors
from voltana.sim.serving.views import View, Views
from voltana.state import FrequencyController, LoadSnapshot

Process = Generator[simpy.Event, object, None]

TIME_RESOLUTION_S = 1e-9
"""Two times closer than this are the same."""


class InstanceProcess:
    """Drives one instance.

    Args:
        instance: what is driven.
        drive: makes the actuator, given what to call when a clock comes into force.
        noise: draws the factor on the latency of an iteration; None: no noise.
        sensors: of the cluster.
        index: the place of this instance among them.
    """

    telemetry: LoadSnapshot
    """Published last: at the start of every iteration, and when the instance goes idle."""

    def __init__(
        self,
        env: simpy.Environment,
        instance: Instance,
        controller: FrequencyController,
        drive: Callable[[Callable[[Setting], None]], Actuator],
        noise: Callable[[], float] | None,
        sensors: PowerSensors,
        index: int,
    ) -> None:
        self.env = env
        self.instance = instance
        self.sensors = sensors
        self.index = index
        self._controller = controller
        self._view = View(controller)
        self._costs_changed = env.event()
        self._wake = env.event()
        self._noise = noise
        self.actuator = drive(self._apply)
        at_once = getattr(controller, "acts_at_once", False)
        self._command = self.actuator.act_at_once if at_once else self.actuator.command
        self._ask_when_idle_s: float | None = None
        self._asked_idle_s = math.inf
        self.ended: Callable[[], None] | None = None

    def start(self) -> None:
        """Begin at the clock the controller wants before any load."""
        self.actuator.start_at(self._controller.decide(self.load()))
        self.telemetry = self.load()
        self.env.process(self._run())

    def stop(self) -> None:
        """Meter the time up to now and end the open row."""
        self.instance.flush(self.env.now)
        self.instance.meter.totals.clock_changes = self.actuator.changes

    def standing(self) -> Standing:
        """What routers were told last."""
        return standing_of(self.telemetry)

    def submit(self, job: Job) -> None:
        """Take a request."""
        self.instance.submit(job)
        if not self._wake.triggered:
            self._wake.succeed()

    def load(self) -> LoadSnapshot:
        """Telemetry of this instant."""
        return self.instance.load(self.env.now, self.actuator.commanded.clock_mhz)

    def requests(self) -> tuple[Views, Views]:
        """The requests of the batch and those behind it, one by one."""
        return self.instance.requests(self.env.now)

    @property
    def energy_j(self) -> float:
        """Energy used up to this instant."""
        return self.instance.energy_j(self.env.now)

    def _run(self) -> Process:
        """The life of the instance."""
        env, instance = self.env, self.instance
        while True:
            while not instance.form_batch(env.now):
                yield from self._idle()
            self._ask()
            left_s = instance.begin(env.now, 1.0 if self._noise is None else self._noise())
            while left_s > 0:
                end = env.timeout(left_s)
                yield end | self._costs_changed
                left_s = 0.0 if end.processed else instance.change(env.now)
            self._asked_idle_s = 0.0
            instance.end(env.now)
            if self.ended is not None:
                self.telemetry = self.load()
                self.ended()

    def _idle(self) -> Process:
        """Wait for work; ask the controller meanwhile if it wished so."""
        env, instance = self.env, self.instance
        self.telemetry = self.load()
        self._wake = env.event()
        while not self._wake.triggered:
            instance.rest(env.now)
            awaited = self._wake | self._costs_changed
            ask_s = self._ask_when_idle_s
            if ask_s is not None and ask_s > self._asked_idle_s:
                awaited |= env.timeout(max(0.0, ask_s - instance.idle_s(env.now)))
            yield awaited
            if self._wake.triggered or ask_s is None or ask_s <= self._asked_idle_s:
                continue
            if instance.idle_s(env.now) >= ask_s - TIME_RESOLUTION_S:
                self._asked_idle_s = ask_s
                self._ask()

    def _ask(self) -> None:
        self.telemetry = self.load()
        decision = self._controller.decide(self._view.complete(self.telemetry, self))
        self._ask_when_idle_s = decision.ask_when_idle_s
        self._command(decision)

    def _apply(self, setting: Setting) -> None:
        """A setting comes into force."""
        self.instance.apply(setting)
        self._reprice()

    def become(self, plant: Plant) -> None:
        """The GPUs turn into others, in the middle of what they do."""
        self.instance.plant = plant
        self._reprice()

    def rest_at(self, power_w: float | None) -> None:
        """Draw so much without a batch from now on; None: what an idle GPU does."""
        self.instance.flush(self.env.now)
        self.instance.rest_w = power_w
        self._reprice()

    def _reprice(self) -> None:
        self._costs_changed.succeed()
        self._costs_changed = self.env.event()
