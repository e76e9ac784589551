"""What prefill and decode instances share: GPUs that work at a clock, a controller that is asked, telemetry.

An instance is one SimPy process. Its life, in `Instance.run`: form a batch, ask the controller, run the iteration,
hand on what is done; idle when there is nothing to run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator

import simpy

from sim.actuator import Actuator
from sim.meter import Meter
from sim.plant import Plant, Step
from voltana.state import FrequencyController, LoadSnapshot, Phase

Process = Generator[simpy.Event, object, None]

TIME_RESOLUTION_S = 1e-9
"""Two times closer than this are the same."""


class Instance(ABC):
    """One model instance on the GPUs of its TP group.

    Args:
        drive: makes the actuator, given what to call when a clock comes into force.
        noise: draws the factor on the latency of an iteration; None: no noise.
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
        drive: Callable[[Callable[[int], None]], Actuator],
        noise: Callable[[], float] | None,
    ) -> None:
        self.env = env
        self.plant = plant
        self.meter = meter
        self.clock_mhz = 0
        self.arrived_requests = 0
        self.arrived_tokens = 0
        self._controller = controller
        self._clock_changed = env.event()
        self._wake = env.event()
        self._noise = noise
        self.actuator = drive(self._set_clock)
        self._ask_when_idle_s: float | None = None
        self._last_end_s: float | None = -math.inf
        self._power_w = 0.0
        self._metered_s = 0.0

    @abstractmethod
    def load(self) -> LoadSnapshot:
        """Telemetry of this instant."""

    @abstractmethod
    def form_batch(self) -> bool:
        """Form the next batch; False if there is nothing to run."""

    @abstractmethod
    def step(self) -> Step:
        """What an iteration of the batch costs at the present clock."""

    @abstractmethod
    def complete(self) -> None:
        """The iteration is over."""

    def start(self) -> None:
        """Begin at the clock the controller wants before any load."""
        self.actuator.start_at(self._controller.decide(self.load()).clock_mhz)
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
            yield from self._iterate()
            self._last_end_s = self.env.now
            self.complete()

    def _iterate(self) -> Process:
        """Run the batch once; a clock that changes on the way changes the speed of what is left."""
        left = 1.0
        stretch = 1.0 if self._noise is None else self._noise()
        while left > 0:
            step = self.step()
            duration = step.duration_s * stretch
            self._enter(step.power_w)
            started = self.env.now
            end = self.env.timeout(left * duration)
            yield end | self._clock_changed
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
        asked_s = 0.0
        while not self._wake.triggered:
            self._enter(self.plant.idle_power_w(self.clock_mhz))
            awaited = self._wake | self._clock_changed
            ask_s = self._ask_when_idle_s
            if ask_s is not None and ask_s > asked_s:
                awaited |= self.env.timeout(max(0.0, ask_s - self.idle_s))
            yield awaited
            self._meter_up()
            if self._wake.triggered or ask_s is None or ask_s <= asked_s:
                continue
            if self.idle_s >= ask_s - TIME_RESOLUTION_S:
                asked_s = ask_s
                self._ask()

    def _ask(self) -> None:
        self.telemetry = self.load()
        decision = self._controller.decide(self.telemetry)
        self._ask_when_idle_s = decision.ask_when_idle_s
        self.actuator.command(decision.clock_mhz)

    def _set_clock(self, clock_mhz: int) -> None:
        self.clock_mhz = clock_mhz
        self._clock_changed.succeed()
        self._clock_changed = self.env.event()

    def _enter(self, power_w: float) -> None:
        """Draw this power from now on."""
        load = self.load()
        self.meter.enter(self.env.now, self.clock_mhz, load.batch_size, load.batch_tokens, load.queued)
        self._power_w = power_w

    def _meter_up(self) -> None:
        self.meter.spend(self._power_w, self.env.now - self._metered_s)
        self._metered_s = self.env.now
