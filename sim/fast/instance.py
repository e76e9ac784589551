"""What both kinds of instance share in this engine; the counterpart of `voltana.sim.reference.instance`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from voltana.dispatch import Standing
from voltana.sim.fast.events import Event, Events
from voltana.sim.plant import Plant, Step
from voltana.sim.serving.job import Job
from voltana.sim.serving.limits import Setting
from voltana.sim.serving.meter import Meter
from voltana.sim.serving.sensor import PowerSensors
from voltana.sim.serving.views import View
from voltana.state import Decision, FrequencyController, LoadSnapshot, Phase, RequestView


class Made(NamedTuple):
    """What an instance is made of, whichever its phase."""

    events: Events
    plant: Plant
    meter: Meter
    controller: FrequencyController
    noise: Callable[[], float] | None


class FastInstance(ABC):
    """One model instance.

    Whoever builds the instance sets `start_at` and `command`, which pass decisions to its actuator; `sensors`, if
    its controller reads power, and `index`, its place among them; and `publishes`, if a router reads its standing.
    """

    phase: Phase
    start_at: Callable[[Decision], Setting]
    command: Callable[[Decision], None]
    sensors: PowerSensors
    index: int
    publishes = True
    ended: Callable[[], None] | None = None

    def __init__(self, of: Made) -> None:
        self.events = of.events
        self.plant = of.plant
        self.meter = of.meter
        self.clock_mhz = 0
        self.limit_w: float | None = None
        self.commanded = Setting(0)
        self.arrived_requests = 0
        self.arrived_tokens = 0
        self._decide = of.controller.decide
        self._asks = getattr(of.controller, "reads_load", True)
        self._view = View(of.controller)
        self._decision: Decision
        self._told: Standing
        self._iterations = 0
        self._busy_s = 0.0
        self._noise = of.noise
        self._stretch = 1.0
        self._rest_w: float | None = None
        self._idle = False
        self._idle_since_s = 0.0
        self._asked_idle_s = math.inf
        self._waking = False
        self._metered_s = 0.0
        self._end: Event | None = None
        self._idle_question: Event | None = None

    @abstractmethod
    def load(self, idle_s: float = 0.0) -> LoadSnapshot:
        """Telemetry at a boundary between iterations, or `idle_s` after the last iteration."""

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Take a request; decode: whose KV has arrived."""

    @abstractmethod
    def standing(self) -> Standing:
        """What routers were told at the last boundary before this instant."""

    @abstractmethod
    def what_if(self, clock_mhz: int) -> Step:
        """The iteration about to run, at a clock."""

    @abstractmethod
    def requests(self) -> tuple[tuple[RequestView, ...], tuple[RequestView, ...]]:
        """The requests of the batch and those behind it, one by one."""

    @property
    @abstractmethod
    def energy_j(self) -> float:
        """Energy used up to this instant."""

    @abstractmethod
    def _queued(self) -> int:
        """Requests waiting."""

    @abstractmethod
    def _form_batch(self) -> bool:
        """Form the next batch; False if there is nothing to run."""

    @abstractmethod
    def _start_work(self, decision: Decision) -> None:
        """Run the batch from this instant on."""

    @abstractmethod
    def _work_ends(self) -> None:
        """What was started is done."""

    @abstractmethod
    def _meter_work(self) -> None:
        """Meter the unfinished work up to this instant and stop it there."""

    @abstractmethod
    def _resume_work(self) -> None:
        """Go on with unfinished work at the clock now in force."""

    def start(self) -> None:
        """Begin at the clock the controller wants before any load."""
        self._decision = self._decide(self.load(math.inf))
        self.put_in_force(self.start_at(self._decision))
        self._publish()
        self._metered_s = self.events.now
        self._idle = True
        self._enter_idle()

    def stop(self) -> None:
        """Meter the time up to now and end the open row."""
        if self._idle:
            self._meter_idle()
        else:
            self._meter_work()
        self.meter.flush(self.events.now)

    def apply(self, setting: Setting) -> None:
        """A setting comes into force."""
        self._change(lambda: self.put_in_force(setting))

    def become(self, plant: Plant) -> None:
        """The GPUs turn into others, in the middle of what they do."""

        def replace() -> None:
            self.plant = plant

        self._change(replace)

    def rest_at(self, power_w: float | None) -> None:
        """Draw so much without a batch from now on; None: what an idle GPU does."""

        def rest() -> None:
            self.meter.flush(self.events.now)
            self._rest_w = power_w

        self._change(rest)

    def _change(self, change: Callable[[], None]) -> None:
        """Let something change what work costs from now on."""
        if self._idle:
            self._meter_idle()
            change()
            self._enter_idle()
        else:
            self._meter_work()
            change()
            self._resume_work()

    def put_in_force(self, setting: Setting) -> None:
        """The same where nothing is under way."""
        self.clock_mhz = setting.clock_mhz
        self.limit_w = setting.limit_w(self.plant.model.tp)

    def _publish(self) -> None:
        """Tell routers how the instance stands."""
        if self.publishes:
            self._told = self._stand()

    @abstractmethod
    def _stand(self) -> Standing:
        """How the instance stands at this boundary."""

    def _wake(self) -> None:
        """Work came to an idle instance; it starts when everything else of this instant has happened."""
        if not self._waking:
            self._waking = True
            self.events.soon(self._woken)

    def _woken(self) -> None:
        self._waking = False
        self._idle = False
        if self._idle_question is not None:
            self.events.cancel(self._idle_question)
            self._idle_question = None
        self._meter_idle()
        self._go_on()

    def _boundary(self) -> None:
        """An iteration has ended."""
        self._idle_since_s, self._asked_idle_s = self.events.now, 0.0
        self._go_on()

    def _go_on(self) -> None:
        """Start the next iteration, or idle."""
        if self._form_batch():
            if self.publishes:
                self._told = self._stand()
            if self._asks:
                self._ask(self.load())
            if self._noise is not None:
                self._stretch = self._noise()
            self._start_work(self._decision)
            return
        self._publish()
        self._idle = True
        self._question_idleness()
        self._enter_idle()

    def _ask(self, load: LoadSnapshot) -> None:
        if self._view.wanted:
            load = self._view.complete(load, self)
        self._decision = decision = self._decide(load)
        if (decision.clock_mhz, decision.power_cap_w) != self.commanded:
            self.command(decision)

    def _question_idleness(self) -> None:
        """Plan the question that the controller wished for, once idle for longer than when last asked."""
        wished = self._decision.ask_when_idle_s
        if wished is not None and wished > self._asked_idle_s:
            self._idle_question = self.events.at(self._idle_since_s + wished, self._ask_idle)

    def _ask_idle(self) -> None:
        assert self._decision.ask_when_idle_s is not None
        self._asked_idle_s = self._decision.ask_when_idle_s
        self._meter_idle()
        self._publish()
        self._ask(self.load(self.events.now - self._idle_since_s))
        self._enter_idle()
        self._question_idleness()

    def _enter_idle(self) -> None:
        self.meter.enter(self.events.now, self.clock_mhz, 0, 0, self._queued())

    def _meter_idle(self) -> None:
        now = self.events.now
        self.meter.add(self._idle_j())
        self._metered_s = now

    def _idle_j(self) -> float:
        """Energy since the meter was last up to date, while idle."""
        idle_w = self.plant.idle_power_w(self.clock_mhz) if self._rest_w is None else self._rest_w
        return idle_w * (self.events.now - self._metered_s)

    def _end_at(self, time_s: float) -> None:
        """The work now going on ends at this time, not at any given before."""
        if self._end is not None:
            self.events.cancel(self._end)
        self._end = self.events.at(time_s, self._work_ends)
