"""What prefill and decode instances share: GPUs that work at a clock, a controller that is asked, telemetry.

An instance is one SimPy process. Its life, in `Instance.run`: form a batch, ask the controller, run the iteration,
hand on what is done; idle when there is nothing to run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator

import simpy

from voltana.sim.plant import Plant, Step
from voltana.sim.reference.actuator import Actuator
from voltana.sim.serving.limits import Setting
from voltana.sim.serving.meter import Meter
from voltana.sim.serving.sensor import PowerSensors
from voltana.sim.serving.views import View, Views
from voltana.state import FrequencyController, LoadSnapshot, Phase

Process = Generator[simpy.Event, object, None]

TIME_RESOLUTION_S = 1e-9
"""Two times closer than this are the same."""


class Instance(ABC):
    """One model instance on the GPUs of its TP group.

    Args:
        drive: makes the actuator, given what to call when a clock comes into force.
        noise: draws the factor on the latency of an iteration; None: no noise.
        sensors: of the cluster.
        index: the place of this instance among them.
    """

    phase: Phase
    telemetry: LoadSnapshot
    """Published last: at the start of every iteration, and when the instance goes idle."""

    def __init__(
        self,
        env: simpy.Environment,
        plant: Plant,
        meter: Meter,
        controller: FrequencyController,
        drive: Callable[[Callable[[Setting], None]], Actuator],
        noise: Callable[[], float] | None,
        sensors: PowerSensors,
        index: int,
    ) -> None:
        self.env = env
        self.plant = plant
        self.meter = meter
        self.sensors = sensors
        self.index = index
        self.clock_mhz = 0
        self.limit_w: float | None = None
        self.iterations = 0
        self.busy_s = 0.0
        self.arrived_requests = 0
        self.arrived_tokens = 0
        self._controller = controller
        self._view = View(controller)
        at_once = getattr(controller, "acts_at_once", False)
        self._costs_changed = env.event()
        self._wake = env.event()
        self._noise = noise
        self.actuator = drive(self._apply)
        self._command = self.actuator.act_at_once if at_once else self.actuator.command
        self._ask_when_idle_s: float | None = None
        self._last_end_s: float | None = -math.inf
        self._asked_idle_s = math.inf
        self._power_w = 0.0
        self._metered_s = 0.0

    @abstractmethod
    def load(self) -> LoadSnapshot:
        """Telemetry of this instant."""

    @abstractmethod
    def form_batch(self) -> bool:
        """Form the next batch; False if there is nothing to run."""

    @abstractmethod
    def what_if(self, clock_mhz: int) -> Step:
        """What an iteration of the batch costs at a clock."""

    @abstractmethod
    def requests(self) -> tuple[Views, Views]:
        """The requests of the batch and those behind it, one by one."""

    @abstractmethod
    def complete(self) -> None:
        """The iteration is over."""

    def start(self) -> None:
        """Begin at the clock the controller wants before any load."""
        self.actuator.start_at(self._controller.decide(self.load()))
        self.telemetry = self.load()
        self._metered_s = self.env.now
        self.env.process(self.run())

    def stop(self) -> None:
        """Meter the time up to now and end the open row."""
        self._meter_up()
        self.meter.flush(self.env.now)

    def wake(self) -> None:
        """Work has come."""
        if not self._wake.triggered:
            self._wake.succeed()

    def run(self) -> Process:
        """The life of the instance."""
        while True:
            while not self.form_batch():
                yield from self._idle()
            self._last_end_s = None
            self._ask()
            started_s = self.env.now
            yield from self._iterate()
            self._last_end_s, self._asked_idle_s = self.env.now, 0.0
            self.iterations += 1
            self.busy_s += self.env.now - started_s
            self.complete()

    def _iterate(self) -> Process:
        """Run the batch once; a clock that changes on the way changes the speed of what is left."""
        left = 1.0
        stretch = 1.0 if self._noise is None else self._noise()
        while left > 0:
            step = self.what_if(self.clock_mhz)
            duration = step.duration_s * stretch
            self._enter(step.power_w)
            started = self.env.now
            end = self.env.timeout(left * duration)
            yield end | self._costs_changed
            self._meter_up()
            left = 0.0 if end.processed else left - (self.env.now - started) / duration

    @property
    def idle_s(self) -> float:
        """Time since the last iteration ended, infinite before the first; 0 while one runs."""
        return 0.0 if self._last_end_s is None else self.env.now - self._last_end_s

    def _idle(self) -> Process:
        """Wait for work; ask the controller meanwhile if it wished so."""
        self.telemetry = self.load()
        self._wake = self.env.event()
        while not self._wake.triggered:
            self._enter(self.plant.idle_power_w(self.clock_mhz))
            awaited = self._wake | self._costs_changed
            ask_s = self._ask_when_idle_s
            if ask_s is not None and ask_s > self._asked_idle_s:
                awaited |= self.env.timeout(max(0.0, ask_s - self.idle_s))
            yield awaited
            self._meter_up()
            if self._wake.triggered or ask_s is None or ask_s <= self._asked_idle_s:
                continue
            if self.idle_s >= ask_s - TIME_RESOLUTION_S:
                self._asked_idle_s = ask_s
                self._ask()

    def _ask(self) -> None:
        self.telemetry = self.load()
        decision = self._controller.decide(self._view.complete(self.telemetry, self))
        self._ask_when_idle_s = decision.ask_when_idle_s
        self._command(decision)

    def _apply(self, setting: Setting) -> None:
        """A setting comes into force."""
        self.clock_mhz = setting.clock_mhz
        cap = setting.power_cap_w
        self.limit_w = None if cap is None else cap * self.plant.model.tp
        self._reprice()

    def become(self, plant: Plant) -> None:
        """The GPUs turn into others, in the middle of what they do."""
        self.plant = plant
        self._reprice()

    def _reprice(self) -> None:
        self._costs_changed.succeed()
        self._costs_changed = self.env.event()

    @property
    def energy_j(self) -> float:
        """Energy used up to this instant."""
        return self.meter.totals.energy_j + self._power_w * (self.env.now - self._metered_s)

    def _enter(self, power_w: float) -> None:
        """Draw this power from now on."""
        load = self.load()
        self.meter.enter(self.env.now, self.clock_mhz, load.batch_size, load.batch_tokens, load.queued)
        self._power_w = power_w

    def _meter_up(self) -> None:
        self.meter.spend(self._power_w, self.env.now - self._metered_s)
        self._metered_s = self.env.now
