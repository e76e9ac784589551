"""One model instance, iteration by iteration: its queue, its batch, the setting of its GPUs, its energy.

An instance has no clock and waits for nothing: whoever drives it tells it the time. The reference engine does so as a
process in simulated time (`sim/reference/instance.py`), an emulated server by a timer in real time
(`live/servers/emulated/driver.py`). A driver's loop is: `form_batch`; where there is a batch, `begin`, and `end` when
the iteration is over; where there is none, `rest` until something is submitted. Whenever a setting came into force,
`change` tells what is left of the iteration.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from voltana.sim.plant import Plant, Step
from voltana.sim.serving.job import Job
from voltana.sim.serving.limits import Setting
from voltana.sim.serving.meter import Meter
from voltana.sim.serving.views import Views
from voltana.state import LoadSnapshot, Phase


class Occupancy(NamedTuple):
    """What an instance holds; the numbers are those of `LoadSnapshot`."""

    batch_size: int
    batch_tokens: int
    queued: int
    queued_tokens: int


class Instance(ABC):
    """One model instance on the GPUs of its TP group.

    Args:
        plant: the physics.
        meter: takes its states and its energy.
    """

    phase: ClassVar[Phase]

    def __init__(self, plant: Plant, meter: Meter) -> None:
        self.plant = plant
        self.meter = meter
        self.setting = Setting(0)
        """In force."""
        self.limit_w: float | None = None
        """Power limit of the TP group; None: the GPUs' own."""
        self.rest_w: float | None = None
        """Draw without a batch; None: that of an idle GPU. Of an instance out of service."""
        self.power_w = 0.0
        """Draw of this moment, all GPUs of the TP group."""
        self.shown_clock_mhz = 0
        """The clock in the open row of the meter."""
        self.shows_throttling = False
        """Whether that is the mean clock that a power limit leaves, as a GPU tells it, and not the one set."""
        self.running = False
        """Whether there is a batch."""
        self.iterations = 0
        self.busy_s = 0.0
        self.arrived_requests = 0
        self.arrived_tokens = 0
        self._metered_s = 0.0
        self._begun_s = 0.0
        self._ended_s = -math.inf
        self._stretch = 1.0
        self._left = 0.0
        """Share of the iteration that was left when its present speed set in."""
        self._speed_since_s = 0.0
        self._duration_s = 0.0
        """Of a whole iteration at the present speed."""

    # The driver's loop

    def submit(self, job: Job) -> None:
        """Take a request; the driver sees to it that a resting instance forms a batch."""
        self.arrived_requests += 1
        self.arrived_tokens += job.request.input_tokens
        self._add(job)

    def form_batch(self, now_s: float) -> bool:
        """Form the next batch; False if there is nothing to run."""
        self.running = self._form_batch(now_s)
        return self.running

    def begin(self, now_s: float, stretch: float = 1.0) -> float:
        """Start an iteration of the batch; return the seconds until it ends if nothing changes.

        Args:
            now_s: this instant.
            stretch: factor on the time that the plant gives.
        """
        self._begun_s = now_s
        self._stretch, self._left = stretch, 1.0
        return self._go_on(now_s)

    def rest(self, now_s: float) -> None:
        """There is nothing to run."""
        clock_mhz = self.setting.clock_mhz
        idle_w = self.plant.idle_power_w(clock_mhz) if self.rest_w is None else self.rest_w
        self._draw(now_s, idle_w, clock_mhz)

    def change(self, now_s: float) -> float:
        """What is under way goes on at the cost it now has; return the seconds until it ends, infinite at rest."""
        if not self.running:
            self.rest(now_s)
            return math.inf
        self._meter_up(now_s)
        self._left -= (now_s - self._speed_since_s) / self._duration_s
        return self._go_on(now_s) if self._left > 0 else 0.0

    def end(self, now_s: float) -> None:
        """The iteration is over."""
        self._meter_up(now_s)
        self.iterations += 1
        self.busy_s += now_s - self._begun_s
        self._ended_s = now_s
        self._complete(now_s)

    def _go_on(self, now_s: float) -> float:
        step = self.what_if(self.setting.clock_mhz)
        self._speed_since_s, self._duration_s = now_s, step.duration_s * self._stretch
        self._draw(now_s, step.power_w, step.clock_mhz)
        return self._left * self._duration_s

    # What is around it

    def drop(self, job: Job) -> None:
        """Forget a request whose client has left; the iteration under way is run to its end all the same."""
        job.gone = True
        self._remove_waiting(job)

    def apply(self, setting: Setting) -> None:
        """A setting comes into force; `change` has it take effect."""
        self.setting = setting
        self.limit_w = setting.limit_w(self.plant.model.tp)

    def idle_s(self, now_s: float) -> float:
        """Time since the last iteration ended, infinite before the first; 0 while there is a batch."""
        return 0.0 if self.running else now_s - self._ended_s

    def load(self, now_s: float, clock_mhz: int) -> LoadSnapshot:
        """Telemetry of this instant, with the clock last commanded."""
        return LoadSnapshot(
            now_s,
            clock_mhz,
            *self.occupancy(),
            self.longest_wait_s(now_s),
            self.idle_s(now_s),
            self.arrived_requests,
            self.arrived_tokens,
            self.iterations,
            self.busy_s,
        )

    def energy_j(self, now_s: float) -> float:
        """Energy used up to this instant."""
        return self.meter.totals.energy_j + self.power_w * (now_s - self._metered_s)

    def flush(self, now_s: float) -> None:
        """Meter the time up to now and end the open row."""
        self._meter_up(now_s)
        self.meter.flush(now_s)

    def _draw(self, now_s: float, power_w: float, clock_mhz: float) -> None:
        """Draw this power from now on, at this clock once throttled."""
        self._meter_up(now_s)
        batch_size, batch_tokens, queued, _ = self.occupancy()
        self.shown_clock_mhz = round(clock_mhz) if self.shows_throttling else self.setting.clock_mhz
        self.meter.enter(now_s, self.shown_clock_mhz, batch_size, batch_tokens, queued)
        self.power_w = power_w

    def _meter_up(self, now_s: float) -> None:
        self.meter.spend(self.power_w, now_s - self._metered_s)
        self._metered_s = now_s

    # What the two kinds do

    @abstractmethod
    def occupancy(self) -> Occupancy:
        """What is in the batch and behind it."""

    def longest_wait_s(self, now_s: float) -> float:
        """As in `LoadSnapshot`."""
        return 0.0

    @abstractmethod
    def requests(self, now_s: float) -> tuple[Views, Views]:
        """The requests of the batch and those behind it, one by one."""

    @abstractmethod
    def what_if(self, clock_mhz: int) -> Step:
        """What an iteration of the batch costs at a clock."""

    @abstractmethod
    def _add(self, job: Job) -> None:
        """Put a request into the queue."""

    @abstractmethod
    def _remove_waiting(self, job: Job) -> None:
        """Take a request out of the queue if it is there, and not in the batch."""

    @abstractmethod
    def _form_batch(self, now_s: float) -> bool:
        """Form the next batch; False if there is nothing to run."""

    @abstractmethod
    def _complete(self, now_s: float) -> None:
        """Hand on what the iteration has made."""
