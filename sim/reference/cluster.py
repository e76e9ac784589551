"""The simulated cluster: the life of a request from arrival to last token.

This is the reference engine: plain per-iteration semantics on SimPy, no shortcuts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from functools import partial

import simpy

from voltana.dispatch import Dispatcher, Standing, standing_of
from voltana.record import InstanceRow
from voltana.sim.reference.actuator import Actuator
from voltana.sim.reference.decode import DecodeInstance
from voltana.sim.reference.instance import Instance
from voltana.sim.reference.prefill import PrefillInstance
from voltana.sim.reference.transfer import Links
from voltana.sim.serving.flow import RequestFlow, closing_if_interrupted
from voltana.sim.serving.job import Job, instance_name
from voltana.sim.serving.limits import Setting
from voltana.sim.serving.meter import Meter
from voltana.sim.serving.recorder import Recorder
from voltana.sim.serving.sensor import PowerSensors
from voltana.sim.serving.spec import ClusterSpec, Drift, bind_truth
from voltana.state import FrequencyController, Phase
from voltana.traces import Request


class Cluster(RequestFlow):
    """A run of the reference engine.

    Args:
        requests: in order of arrival.
        recorder: takes the ends of requests.
        write_row: takes the rows of the instances.
        progress: called with the time of each arrival.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        requests: Iterable[Request],
        recorder: Recorder,
        write_row: Callable[[InstanceRow], None],
        progress: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._env = simpy.Environment()
        self._spec = spec
        self._requests = requests
        self._recorder = recorder
        self._progress = progress
        self._done = self._env.event()
        self._all_arrived = False
        self._hosts: dict[int, simpy.Resource] = {}
        self._front_end = simpy.Resource(self._env)
        self._links = Links(self._env, spec.link)
        names = [instance_name("prefill", i) for i in range(len(spec.prefill_controllers))]
        names += [instance_name("decode", i) for i in range(len(spec.decode_controllers))]
        self._sensors = PowerSensors(spec.sensor, names, spec.seed)
        self._prefill = [
            PrefillInstance(
                *self._shared(i, "prefill", controller, write_row),
                limits=spec.prefill_limits,
                finished=self._prefilled,
            )
            for i, controller in enumerate(spec.prefill_controllers)
        ]
        self._decode = [
            DecodeInstance(
                *self._shared(i, "decode", controller, write_row),
                limits=spec.decode_limits,
                token_gap=recorder.token_gap,
                finished=self._end,
                failed=self._fail,
            )
            for i, controller in enumerate(spec.decode_controllers)
        ]
        for controller, instance in zip(spec.controllers, self.instances, strict=True):
            bind_truth(controller, instance)
        self._to_prefill = Dispatcher(spec.prefill_router, [_standing_of(i) for i in self._prefill])
        self._to_decode = Dispatcher(spec.decode_router, [_standing_of(i) for i in self._decode])

    @property
    def instances(self) -> list[Instance]:
        """All instances, prefill first."""
        return [*self._prefill, *self._decode]

    @property
    def now_s(self) -> float:
        """Simulated time."""
        return float(self._env.now)

    def run(self) -> None:
        """Run until the last request has ended. If interrupted, the instances are still metered up to then."""
        self._env.process(self._source())
        with closing_if_interrupted(self._stop, self._interrupt):
            self._env.run(until=self._done)

    def _interrupt(self) -> None:
        """Raise KeyboardInterrupt as the next event; for a signal handler, which may come in the middle of anything."""

        def raise_it(_: simpy.Event) -> None:
            raise KeyboardInterrupt

        next_s = self._env.peek()
        if next_s < math.inf:
            event = self._env.event()
            event.callbacks.append(raise_it)
            self._env.schedule(event, simpy.events.URGENT, next_s - self._env.now)

    def _stop(self) -> None:
        for instance in self.instances:
            instance.stop()
            instance.meter.totals.clock_changes = instance.actuator.changes

    def _shared(
        self, index: int, phase: Phase, controller: FrequencyController, write_row: Callable[[InstanceRow], None]
    ) -> tuple[object, ...]:
        """The arguments both kinds of instance take."""
        first_gpu = index if phase == "prefill" else index + len(self._spec.prefill_controllers)
        host = first_gpu * self._spec.plant.model.tp // self._spec.gpus_per_host
        return (
            self._env,
            self._spec.plant,
            Meter(instance_name(phase, index), phase, write_row),
            controller,
            partial(self._drive, host),
            self._spec.noise(instance_name(phase, index)),
            self._sensors,
            first_gpu,
        )

    def _drive(self, host: int, apply: Callable[[Setting], None]) -> Actuator:
        if host not in self._hosts:
            self._hosts[host] = simpy.Resource(self._env)
        return Actuator(self._env, self._hosts[host], self._spec.actuation, self._spec.plant.model.tp, apply)

    def _source(self) -> Generator[simpy.Event, object, None]:
        """Let the requests arrive at their times; the cluster starts with the first."""
        started = False
        for request in self._requests:
            if request.arrival_s > self._env.now:
                yield self._env.timeout(request.arrival_s - self._env.now)
            if not started:
                started = True
                self._begin()
            self._progress(request.arrival_s)
            self._arrive(Job(request))
        self._all_arrived = True
        self._finish_if_done()

    def _begin(self) -> None:
        for instance in self.instances:
            instance.start()
        if self._spec.senses_power:
            self._env.process(self._sense())
        if self._spec.drift is not None:
            self._env.process(self._drift(self._spec.drift))

    def _sense(self) -> Generator[simpy.Event, object, None]:
        """The power sensors publish, period after period."""
        sensor, began_s = self._spec.sensor, self._env.now
        while True:
            yield self._env.timeout(sensor.period_s - sensor.window_s)
            self._sensors.open_window([instance.energy_j for instance in self.instances])
            yield self._env.timeout(began_s + sensor.period_s - self._env.now)
            self._sensors.publish([instance.energy_j for instance in self.instances])
            began_s = self._env.now

    def _drift(self, drift: Drift) -> Generator[simpy.Event, object, None]:
        yield self._env.timeout(max(0.0, drift.at_s - self._env.now))
        for instance in self.instances:
            instance.become(drift.plant)

    def _queue_at_front_end(self, then: Callable[[], None]) -> None:
        self._env.process(self._serve(then))

    def _serve(self, then: Callable[[], None]) -> Generator[simpy.Event, object, None]:
        with self._front_end.request() as turn:
            yield turn
            yield self._env.timeout(self._next_leg_s())
        then()

    def _queue(self, job: Job, target: int) -> None:
        self._prefill[target].submit(job)

    def _hand_over(self, job: Job, source: int, target: int) -> None:
        self._env.process(self._transfer(job, source, target))

    def _transfer(self, job: Job, source: int, target: int) -> Generator[simpy.Event, object, None]:
        size = job.request.input_tokens * self._spec.plant.kv_bytes_per_token
        yield from self._links.send(source, target, size)
        self._decode[target].submit(job)

    def _finish_if_done(self) -> None:
        if self._all_arrived and not self._recorder.in_flight:
            self._done.succeed()


def _standing_of(instance: Instance) -> Callable[[], Standing]:
    return lambda: standing_of(instance.telemetry)
