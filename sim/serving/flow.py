"""A cluster as both engines set it up, and the way of a request through it: arrival, first token, end."""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Generic, Protocol, TypeVar

from voltana.dispatch import Accounts, CentralQueue, Dispatcher, Standing
from voltana.record import InstanceRow
from voltana.sim.plant import Plant
from voltana.sim.serving.job import Job, instance_name
from voltana.sim.serving.meter import Meter
from voltana.sim.serving.recorder import Recorder
from voltana.sim.serving.sensor import PowerSensors
from voltana.sim.serving.service import Service
from voltana.sim.serving.spec import ClusterSpec, Planning, info
from voltana.state import ClusterLoad, FrequencyController, Phase, PhaseLoad, PrefillScheduler
from voltana.traces import Request


class Driven(Protocol):
    """An instance under an engine."""

    ended: Callable[[], None] | None
    """Of a prefill instance: called when an iteration has ended and been told, before the next batch is formed."""

    @property
    def energy_j(self) -> float:
        """Energy used up to this instant."""
        ...

    def start(self) -> None:
        """Begin at the clock the controller wants before any load."""
        ...

    def submit(self, job: Job) -> None:
        """Take a request; decode: whose KV has arrived."""
        ...

    def standing(self) -> Standing:
        """What routers were told last."""
        ...

    def become(self, plant: Plant) -> None:
        """The GPUs turn into others, in the middle of what they do."""
        ...

    def rest_at(self, power_w: float | None) -> None:
        """Draw so much without a batch from now on; None: what an idle GPU does."""
        ...


AnyDriven = TypeVar("AnyDriven", bound=Driven)


class RequestFlow(ABC, Generic[AnyDriven]):
    """A run of an engine: what it does with requests between its instances.

    Args:
        spec: all but the requests.
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
        self._spec = spec
        self._requests = iter(requests)
        self._recorder = recorder
        self._progress = progress
        self._legs = 0
        self._prepare()
        prefill, decode = len(spec.prefill_controllers), len(spec.decode_controllers)
        sides: tuple[tuple[Phase, int], ...] = (("prefill", prefill), ("decode", decode))
        self.meters = [
            Meter(instance_name(phase, number), phase, write_row) for phase, count in sides for number in range(count)
        ]
        """Of all instances, prefill first."""
        self._sensors = PowerSensors(spec.sensor, [meter.name for meter in self.meters], spec.seed)
        self._instances = [
            self._instance(index, meter, controller)
            for index, (meter, controller) in enumerate(zip(self.meters, spec.controllers, strict=True))
        ]
        self._prefill, self._decode = self._instances[:prefill], self._instances[prefill:]
        self._to_prefill = self._before_prefill()
        self._to_decode = Dispatcher(spec.decode_router, [instance.standing for instance in self._decode])
        self._arrived_tokens = self._arrived_requests = 0
        self._service = {
            "prefill": self._in_service(self._prefill, self._to_prefill),
            "decode": self._in_service(self._decode, self._to_decode),
        }

    def _before_prefill(self) -> Dispatcher | CentralQueue:
        """What asks prefill's router or, where the policy is a scheduler, its queue."""
        policy, telemetry = self._spec.prefill_router, [instance.standing for instance in self._prefill]
        if not isinstance(policy, PrefillScheduler):
            return Dispatcher(policy, telemetry)
        queue = CentralQueue(policy, telemetry, lambda time_s: self._at(time_s, partial(queue.due, time_s)))
        for instance in self._prefill:
            instance.ended = lambda: queue.ask(self.now_s)
        return queue

    def _in_service(self, instances: Sequence[AnyDriven], accounts: Accounts) -> Service | None:
        planner = self._spec.planner
        if planner is None:
            return None
        gpus = self._spec.plants.prefill.model.tp
        return Service(instances, accounts, planner.sleep, gpus, lambda s, then: self._at(self.now_s + s, then))

    @abstractmethod
    def _prepare(self) -> None:
        """Make what instances are built upon."""

    @abstractmethod
    def _instance(self, index: int, meter: Meter, controller: FrequencyController) -> AnyDriven:
        """Build an instance of the meter's phase, with its controller; `index` is its place among all."""

    @property
    @abstractmethod
    def now_s(self) -> float:
        """Simulated time."""

    def _energies(self) -> Sequence[float]:
        """What each instance has used so far."""
        return [instance.energy_j for instance in self._instances]

    def _plan_drift(self) -> None:
        """Have all GPUs turn into others at the time of the drift; one before the start is over when work begins."""
        drift = self._spec.drift
        if drift is None:
            return

        def become() -> None:
            for instance in self._prefill:
                instance.become(drift.plants.prefill)
            for instance in self._decode:
                instance.become(drift.plants.decode)

        if drift.at_s > self.now_s:
            self._at(drift.at_s, become)
        else:
            become()

    def _plan_placement(self) -> None:
        """Have the planner asked, period after period."""
        planner = self._spec.planner
        if planner is not None:
            self._at(self.now_s + planner.period_s, partial(self._place, planner))

    def _place(self, planner: Planning) -> None:
        loads = [self._phase_load(accounts) for accounts in (self._to_prefill, self._to_decode)]
        load = ClusterLoad(self.now_s, self._arrived_requests, self._arrived_tokens, *loads)
        placement = planner.policy.plan(load)
        for service, count in zip(self._service.values(), placement, strict=True):
            assert service is not None
            service.want(count)
        if isinstance(self._to_prefill, CentralQueue):
            self._to_prefill.ask(self.now_s)
        self._plan_placement()

    @staticmethod
    def _phase_load(accounts: Accounts) -> PhaseLoad:
        loads = accounts.loads()
        requests, tokens = sum(load.requests for load in loads), sum(load.tokens for load in loads)
        if isinstance(accounts, CentralQueue):
            requests, tokens = requests + len(accounts), tokens + accounts.tokens
        return PhaseLoad(len(loads), accounts.ready, requests, tokens)

    def _arrive(self, job: Job) -> None:
        """A request comes in; one that no cache could hold fails."""
        self._arrived_requests += 1
        self._arrived_tokens += job.request.input_tokens
        if self._spec.predicts_lengths:
            job.expected_tokens = self._spec.expected_tokens(job.request)
        self._recorder.arrived(job)
        if not self._spec.decode_limits.serve(job.request.input_tokens):
            self._fail(job)
            return
        self._when_served(partial(self._start, job))

    def _start(self, job: Job) -> None:
        """The front end sends a request to a prefill instance, or has it wait for one."""
        job.taken_s = self.now_s
        if self._to_decode.at_arrival:
            self._choose_decode(job)
        if isinstance(self._to_prefill, CentralQueue):
            self._to_prefill.put(info(job), partial(self._bind, job), self.now_s)
        else:
            self._bind(job, self._to_prefill.dispatch(info(job)))

    def _bind(self, job: Job, target: int) -> None:
        job.prefill = target
        if service := self._service["prefill"]:
            service.sent(target)
        self._prefill[target].submit(job)

    def _choose_decode(self, job: Job) -> None:
        job.decode = self._to_decode.dispatch(info(job))
        if service := self._service["decode"]:
            service.sent(job.decode)

    def _prefilled(self, job: Job) -> None:
        """The prompt of a request is computed."""
        service = self._service["prefill"]
        if service and job.prefill is not None:
            service.left(job.prefill)
        self._when_served(partial(self._go_on, job))

    def _go_on(self, job: Job) -> None:
        """The front end sends a request to a decode instance, whose tokens, the first one included, the client gets."""
        assert job.prefill is not None
        if job.decode is None:
            self._choose_decode(job)
        assert job.decode is not None
        self._hand_over(job, job.prefill, job.decode)

    def _when_served(self, then: Callable[[], None]) -> None:
        """Have something done when the front end has come to it."""
        if self._spec.front_end.leg_s:
            self._queue_at_front_end(then)
        else:
            then()

    def _next_leg_s(self) -> float:
        """What the leg that now begins takes."""
        self._legs += 1
        return self._spec.front_end.duration_s(self._legs)

    def _fail(self, job: Job) -> None:
        job.failed = True
        self._end(job)

    def _end(self, job: Job) -> None:
        service = self._service["decode"]
        if service and job.decode is not None:
            service.left(job.decode)
        self._recorder.ended(job)
        self._finish_if_done()

    @abstractmethod
    def _at(self, time_s: float, then: Callable[[], None]) -> None:
        """Have something done at a time."""

    @abstractmethod
    def _queue_at_front_end(self, then: Callable[[], None]) -> None:
        """Have something done after its turn at the front end, which takes `_next_leg_s`."""

    @abstractmethod
    def _hand_over(self, job: Job, source: int, target: int) -> None:
        """Move the KV cache of a job from its prefill to its decode instance."""

    @abstractmethod
    def _finish_if_done(self) -> None:
        """End the run when all requests have arrived and ended."""


@contextmanager
def closing_if_interrupted(close: Callable[[], None], interrupt: Callable[[], None]) -> Iterator[None]:
    """Close at the end and when interrupted, but not after an error: what is half done has nothing to close.

    Args:
        close: ends what is under way; the simulation stands between two events.
        interrupt: has KeyboardInterrupt raised between two events; called by a signal handler.
    """
    try:
        with _between_events(interrupt):
            yield
    except KeyboardInterrupt:
        close()
        raise
    close()


@contextmanager
def _between_events(interrupt: Callable[[], None]) -> Iterator[None]:
    """Put off the KeyboardInterrupt of a Ctrl-C, which could strike in the middle of any line; a second one is not."""
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    put_off = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal put_off
        try:
            before(number, frame)
        except KeyboardInterrupt:
            if put_off:
                raise
            put_off = True
            interrupt()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
