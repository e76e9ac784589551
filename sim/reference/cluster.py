"""The simulated cluster: the life of a request from arrival to last token.

This is the reference engine: plain per-iteration semantics on SimPy, no shortcuts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from functools import partial

import simpy

from voltana.sim.reference.actuator import Actuator
from voltana.sim.reference.instance import InstanceProcess
from voltana.sim.reference.transfer import Links
from voltana.sim.serving.decode import DecodeInstance
from voltana.sim.serving.flow import RequestFlow, closing_if_interrupted
from voltana.sim.serving.instance import Instance
from voltana.sim.serving.job import Job
from voltana.sim.serving.limits import Setting
from voltana.sim.serving.meter import Meter
from voltana.sim.serving.prefill import PrefillInstance
from voltana.sim.serving.spec import bind_truth
from voltana.state import FrequencyController


class Cluster(RequestFlow[InstanceProcess]):
    """A run of the reference engine."""

    def _prepare(self) -> None:
        self._env = simpy.Environment()
        self._done = self._env.event()
        self._all_arrived = False
        self._hosts: dict[int, simpy.Resource] = {}
        self._front_end = simpy.Resource(self._env)
        self._links = Links(self._env, self._spec.link.streams)

    def _instance(self, index: int, meter: Meter, controller: FrequencyController) -> InstanceProcess:
        spec = self._spec
        plant = spec.plant(index)
        instance: Instance
        if meter.totals.phase == "prefill":
            instance = PrefillInstance(plant, meter, spec.prefill_limits, self._prefilled)
        else:
            instance = DecodeInstance(
                plant,
                meter,
                spec.decode_limits,
                token=self._recorder.token,
                finished=self._end,
                failed=self._fail,
            )
        bind_truth(controller, instance)
        drive, noise = partial(self._drive, spec.hosts[index], plant.model.tp), spec.noise(meter.name)
        return InstanceProcess(self._env, instance, controller, drive, noise, self._sensors, index)

    def _drive(self, host: int, gpus: int, apply: Callable[[Setting], None]) -> Actuator:
        if host not in self._hosts:
            self._hosts[host] = simpy.Resource(self._env)
        return Actuator(self._env, self._hosts[host], self._spec.actuation, gpus, apply)

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
        for process in self._instances:
            process.stop()

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
        for process in self._instances:
            process.start()
        if self._spec.senses_power:
            self._env.process(self._sense())
        self._plan_drift()
        self._plan_placement()

    def _sense(self) -> Generator[simpy.Event, object, None]:
        """The power sensors publish, period after period."""
        sensor, began_s = self._spec.sensor, self._env.now
        while True:
            yield self._env.timeout(sensor.period_s - sensor.seen_s)
            self._sensors.open_window(self._energies())
            yield self._env.timeout(began_s + sensor.period_s - self._env.now)
            self._sensors.publish(self._energies())
            began_s = self._env.now

    def _at(self, time_s: float, then: Callable[[], None]) -> None:
        self._env.process(self._wait(time_s - self._env.now, then))

    def _wait(self, seconds: float, then: Callable[[], None]) -> Generator[simpy.Event, object, None]:
        yield self._env.timeout(max(0.0, seconds))
        then()

    def _queue_at_front_end(self, then: Callable[[], None]) -> None:
        self._env.process(self._serve(then))

    def _serve(self, then: Callable[[], None]) -> Generator[simpy.Event, object, None]:
        with self._front_end.request() as turn:
            yield turn
            yield self._env.timeout(self._next_leg_s())
        then()

    def _hand_over(self, job: Job, source: int, target: int) -> None:
        self._env.process(self._transfer(job, source, target))

    def _transfer(self, job: Job, source: int, target: int) -> Generator[simpy.Event, object, None]:
        yield from self._links.send(source, target, self._spec.transfer_s(job))
        self._decode[target].submit(job)

    def _finish_if_done(self) -> None:
        if self._all_arrived and not self._recorder.in_flight:
            self._done.succeed()
