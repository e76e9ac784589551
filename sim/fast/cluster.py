"""A run of the event-skipping engine; the counterpart of `voltana.sim.reference.cluster`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial

from voltana.dispatch import Dispatcher
from voltana.record import InstanceRow
from voltana.sim.fast.actuator import FastActuator
from voltana.sim.fast.decode import FastDecode
from voltana.sim.fast.events import Events, Turns
from voltana.sim.fast.instance import FastInstance
from voltana.sim.fast.prefill import FastPrefill
from voltana.sim.plant import Plant
from voltana.sim.serving.flow import RequestFlow, closing_if_interrupted
from voltana.sim.serving.job import Job, instance_name
from voltana.sim.serving.meter import Meter
from voltana.sim.serving.recorder import Recorder
from voltana.sim.serving.sensor import PowerSensors
from voltana.sim.serving.spec import ClusterSpec, bind_truth
from voltana.state import FrequencyController, Phase, Router
from voltana.traces import Request


class FastCluster(RequestFlow):
    """As `voltana.sim.reference.cluster.Cluster`, which says what the arguments are."""

    def __init__(
        self,
        spec: ClusterSpec,
        requests: Iterable[Request],
        recorder: Recorder,
        write_row: Callable[[InstanceRow], None],
        progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._events = Events()
        self._spec = spec
        self._requests = iter(requests)
        self._next: Request | None = None
        self._recorder = recorder
        self._write_row = write_row
        self._progress = progress
        self._started = False
        self._hosts: dict[int, Turns] = {}
        self._links: dict[tuple[int, int], Turns] = {}
        self._front_end = Turns(1)
        self._actuators: list[FastActuator] = []
        self._prefill = [
            FastPrefill(*self._shared(i, "prefill", controller), limits=spec.prefill_limits, finished=self._prefilled)
            for i, controller in enumerate(spec.prefill_controllers)
        ]
        self._decode = [
            FastDecode(
                *self._shared(i, "decode", controller),
                limits=spec.decode_limits,
                itl_slo_s=recorder.itl_slo_s,
                gaps=recorder.token_gaps,
                finished=self._end,
                failed=self._fail,
            )
            for i, controller in enumerate(spec.decode_controllers)
        ]
        self._sensors = PowerSensors(spec.sensor, [i.meter.name for i in self.instances], spec.seed)
        for index, (instance, controller) in enumerate(zip(self.instances, spec.controllers, strict=True)):
            self._connect(index, instance, controller)
        self._to_prefill = self._dispatcher(spec.prefill_router, self._prefill)
        self._to_decode = self._dispatcher(spec.decode_router, self._decode)

    @property
    def instances(self) -> list[FastInstance]:
        """All instances, prefill first."""
        return [*self._prefill, *self._decode]

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
        started = self.instances if self._started else []
        for instance, actuator in zip(started, self._actuators, strict=False):
            instance.stop()
            instance.meter.totals.clock_changes = actuator.changes

    def _shared(self, index: int, phase: Phase, controller: FrequencyController) -> tuple[object, ...]:
        """The arguments both kinds of instance take."""
        name, spec = instance_name(phase, index), self._spec
        return self._events, spec.plant, Meter(name, phase, self._write_row), controller, spec.noise(name)

    def _dispatcher(self, router: Router, instances: Sequence[FastInstance]) -> Dispatcher:
        dispatcher = Dispatcher(router, [i.standing for i in instances])
        for instance in instances:
            instance.publishes = dispatcher.reads_load
        return dispatcher

    def _connect(self, index: int, instance: FastInstance, controller: FrequencyController) -> None:
        """Give an instance its actuator, on the host of its GPUs, and its sensor."""
        tp = self._spec.plant.model.tp
        host = self._hosts.setdefault(index * tp // self._spec.gpus_per_host, Turns(1))
        actuator = FastActuator(self._events, host, self._spec.actuation, tp, instance)
        instance.start_at = actuator.start_at
        instance.command = actuator.act_at_once if getattr(controller, "acts_at_once", False) else actuator.command
        instance.sensors, instance.index = self._sensors, index
        bind_truth(controller, instance)
        self._actuators.append(actuator)

    def _begin(self) -> None:
        """The cluster starts with the first request."""
        self._started = True
        for instance in self.instances:
            instance.start()
        if self._spec.senses_power:
            self._sense()
        drift = self._spec.drift
        if drift is not None:
            self._events.at(max(drift.at_s, self._events.now), partial(self._drift, drift.plant))

    def _sense(self) -> None:
        """A period of the power sensors begins."""
        sensor, now = self._spec.sensor, self._events.now

        def publish() -> None:
            self._sensors.publish(self._energies())
            self._sense()

        self._events.at(now + sensor.period_s - sensor.window_s, lambda: self._sensors.open_window(self._energies()))
        self._events.at(now + sensor.period_s, publish)

    def _energies(self) -> list[float]:
        return [instance.energy_j for instance in self.instances]

    def _drift(self, plant: Plant) -> None:
        for instance in self.instances:
            instance.become(plant)

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

    def _queue_at_front_end(self, then: Callable[[], None]) -> None:
        self._front_end.take(partial(self._serve, then))

    def _serve(self, then: Callable[[], None]) -> None:
        def served() -> None:
            self._front_end.give_back()
            then()

        self._events.at(self._events.now + self._next_leg_s(), served)

    def _queue(self, job: Job, target: int) -> None:
        self._prefill[target].submit(job)

    def _hand_over(self, job: Job, source: int, target: int) -> None:
        if (source, target) not in self._links:
            self._links[source, target] = Turns(self._spec.link.streams)
        link = self._links[source, target]
        link.take(partial(self._send, job, link, target))

    def _send(self, job: Job, link: Turns, target: int) -> None:
        """Move the KV cache of a job over its link."""
        size = job.request.input_tokens * self._spec.plant.kv_bytes_per_token
        arrives_s = self._events.now + self._spec.link.duration_s(size)
        self._events.at(arrives_s, partial(self._handed_over, job, link, target))

    def _handed_over(self, job: Job, link: Turns, target: int) -> None:
        link.give_back()
        self._decode[target].submit(job)

    def _finish_if_done(self) -> None:
        if self._next is None and not self._recorder.in_flight:
            self._events.stop()
