"""A run of the event-skipping engine; the counterpart of `voltana.sim.reference.cluster`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from voltana.sim.fast.actuator import FastActuator
from voltana.sim.fast.decode import FastDecode
from voltana.sim.fast.events import Events, Turns
from voltana.sim.fast.instance import FastInstance, Made
from voltana.sim.fast.prefill import FastPrefill
from voltana.sim.serving.flow import RequestFlow, closing_if_interrupted
from voltana.sim.serving.job import Job
from voltana.sim.serving.meter import Meter
from voltana.sim.serving.spec import bind_truth
from voltana.state import FrequencyController
from voltana.traces import Request


class FastCluster(RequestFlow[FastInstance]):
    """A run of this engine."""

    def _prepare(self) -> None:
        self._events = Events()
        self._next: Request | None = None
        self._started = False
        self._hosts: dict[int, Turns] = {}
        self._links: dict[tuple[int, int], Turns] = {}
        self._front_end = Turns(1)
        self._actuators: list[FastActuator] = []

    def _instance(self, index: int, meter: Meter, controller: FrequencyController) -> FastInstance:
        """The instance with its actuator, on the host of its GPUs, and its sensor."""
        spec = self._spec
        plant = spec.plant(index)
        of = Made(self._events, plant, meter, controller, spec.noise(meter.name))
        instance: FastInstance
        if meter.totals.phase == "prefill":
            instance = FastPrefill(of, limits=spec.prefill_limits, finished=self._prefilled)
        else:
            instance = FastDecode(
                of,
                limits=spec.decode_limits,
                itl_slo_s=self._recorder.itl_slo_s,
                gaps=self._recorder.token_gaps,
                finished=self._end,
                failed=self._fail,
            )
        host = self._hosts.setdefault(spec.hosts[index], Turns(1))
        actuator = FastActuator(self._events, host, spec.actuation, plant.model.tp, instance)
        instance.start_at = actuator.start_at
        instance.command = actuator.act_at_once if getattr(controller, "acts_at_once", False) else actuator.command
        instance.sensors, instance.index = self._sensors, index
        bind_truth(controller, instance)
        self._actuators.append(actuator)
        return instance

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return self._events.now

    def run(self) -> None:
        """Run until the last request has ended. If interrupted, the instances are still metered up to then."""
        self._schedule_arrival()
        with closing_if_interrupted(self._stop, self._events.interrupt):
            self._events.run()

    def _stop(self) -> None:
        started = self._instances if self._started else []
        for instance, actuator in zip(started, self._actuators, strict=False):
            instance.stop()
            instance.meter.totals.clock_changes = actuator.changes

    def _begin(self) -> None:
        """The cluster starts with the first request."""
        self._started = True
        for instances, dispatcher in ((self._prefill, self._to_prefill), (self._decode, self._to_decode)):
            for instance in instances:
                instance.publishes = dispatcher.reads_load or self._spec.planner is not None
                instance.start()
        if self._spec.senses_power:
            self._sense()
        self._plan_drift()
        self._plan_placement()

    def _sense(self) -> None:
        """A period of the power sensors begins."""
        sensor, now = self._spec.sensor, self._events.now

        def publish() -> None:
            self._sensors.publish(self._energies())
            self._sense()

        self._events.at(now + sensor.period_s - sensor.seen_s, lambda: self._sensors.open_window(self._energies()))
        self._events.at(now + sensor.period_s, publish)

    def _schedule_arrival(self) -> None:
        self._next = next(self._requests, None)
        if self._next is not None:
            self._events.at(self._next.arrival_s, self._arrivals)
        self._finish_if_done()

    def _arrivals(self) -> None:
        """All requests of this instant come in and go to prefill instances."""
        if not self._started:
            self._begin()
        request = self._next
        while request is not None and request.arrival_s <= self._events.now:
            self._progress(request.arrival_s)
            self._arrive(Job(request))
            request = next(self._requests, None)
        self._next = request
        if request is not None:
            self._events.at(request.arrival_s, self._arrivals)
        self._finish_if_done()

    def _at(self, time_s: float, then: Callable[[], None]) -> None:
        self._events.at(time_s, then)

    def _queue_at_front_end(self, then: Callable[[], None]) -> None:
        self._front_end.take(partial(self._serve, then))

    def _serve(self, then: Callable[[], None]) -> None:
        def served() -> None:
            self._front_end.give_back()
            then()

        self._events.at(self._events.now + self._next_leg_s(), served)

    def _hand_over(self, job: Job, source: int, target: int) -> None:
        if (source, target) not in self._links:
            self._links[source, target] = Turns(self._spec.link.streams)
        link = self._links[source, target]
        link.take(partial(self._send, job, link, target))

    def _send(self, job: Job, link: Turns, target: int) -> None:
        """Move the KV cache of a job over its link."""
        arrives_s = self._events.now + self._spec.transfer_s(job)
        self._events.at(arrives_s, partial(self._handed_over, job, link, target))

    def _handed_over(self, job: Job, link: Turns, target: int) -> None:
        link.give_back()
        self._decode[target].submit(job)

    def _finish_if_done(self) -> None:
        if self._next is None and not self._recorder.in_flight:
            self._events.stop()
