"""A prefill or decode instance in exact time: the queue, the batch, the iteration under way.

An instance knows no wall clock. Whoever drives it says what time it is: `advance` brings it there, through every
iteration that ends on the way at the instant where it ends, and `next_s` tells when to call again. A late caller
therefore makes answers late, but no iteration longer and no energy wrong.

Scheduling is the simulator's (`sim/serving/prefill_queue.py`, `sim/reference/decode.py`): prefill first come, first
served up to a token budget; decode continuous batching within the KV cache, the newest request put back when that is
full.
"""

from __future__ import annotations

import heapq
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from voltana.app.serving import DecodeLimits, PrefillLimits
from voltana.live.latency import LatencyHistogram
from voltana.live.servers.emulated.meter import Meter
from voltana.sim.plant import Plant, Step
from voltana.state import LoadSnapshot, Phase


class Job:
    """A request at an instance."""

    __slots__ = ("answer", "arrived_s", "gone", "max_tokens", "prefilled", "produced", "prompt_tokens")

    def __init__(self, prompt_tokens: int, max_tokens: int, arrived_s: float, answer: Any = None) -> None:
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        """Output tokens it ends with."""
        self.arrived_s = arrived_s
        self.answer = answer
        """Whatever the caller wants to find again."""
        self.prefilled = 0
        self.produced = 0
        self.gone = False
        """Its client has left."""

    @property
    def kv_tokens(self) -> int:
        """KV tokens it holds while it decodes."""
        return self.prompt_tokens + self.produced


class Instance(ABC):
    """What both kinds share.

    Args:
        plant: the physics.
        clock_mhz: at the start.
        now_s: the start.
        publish: takes a snapshot just before every iteration and when there is none to run.
    """

    phase: Phase

    def __init__(
        self, plant: Plant, clock_mhz: int, now_s: float, publish: Callable[[LoadSnapshot], None] = lambda _: None
    ) -> None:
        self.plant = plant
        self.clock_mhz = clock_mhz
        self.power_cap_w: float | None = None
        self.now_s = now_s
        self.meter = Meter(now_s)
        self.lag = LatencyHistogram()
        """How much later than its time each event was lived through: how far whoever drives this falls behind."""
        self.iterations = 0
        self.busy_s = 0.0
        self.arrived_requests = 0
        self.arrived_tokens = 0
        self._publish = publish
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._end_s = math.inf
        self._ended_s = -math.inf
        self._begun_s = 0.0
        self._left = 0.0
        """Share of the iteration that was left when its present speed set in."""
        self._speed_since_s = 0.0
        self._duration_s = 0.0
        """Of a whole iteration at the present speed."""

    # Time

    @property
    def next_s(self) -> float:
        """When something will happen next by itself."""
        return min(self._end_s, self._events[0][0]) if self._events else self._end_s

    def advance(self, now_s: float) -> None:
        """Live through everything up to `now_s`."""
        while (at_s := self.next_s) <= now_s:
            self.now_s = at_s
            self.lag.add(now_s - at_s)
            if self._events and self._events[0][0] == at_s:
                heapq.heappop(self._events)[2]()
            else:
                self._end()
        self.now_s = max(self.now_s, now_s)

    def at(self, at_s: float, action: Callable[[], None]) -> None:
        """Do something at an instant, or now if it has passed."""
        heapq.heappush(self._events, (max(at_s, self.now_s), next(self._order), action))

    @property
    def running(self) -> bool:
        """Whether an iteration is under way."""
        return self._end_s < math.inf

    # Iterations

    def wake(self) -> None:
        """Work may have come."""
        if not self.running:
            self._begin()

    def _begin(self) -> None:
        """Start the next iteration, or rest."""
        if not self._form_batch():
            self._end_s = math.inf
            self._draw(self.plant.idle_power_w(self.clock_mhz), self.clock_mhz)
            self._publish(self.load())
            return
        self._begun_s = self.now_s
        self._run(1.0)
        self._publish(self.load())

    def _run(self, left: float) -> None:
        """Go on with what is left of the iteration at the present clock."""
        step = self._step()
        self._left, self._speed_since_s, self._duration_s = left, self.now_s, step.duration_s
        self._end_s = self.now_s + left * step.duration_s
        self._draw(step.power_w, round(step.clock_mhz))

    def _end(self) -> None:
        self.iterations += 1
        self.busy_s += self.now_s - self._begun_s
        self._ended_s = self.now_s
        self._complete()
        self._begin()

    def set_clock(self, clock_mhz: int, power_cap_w: float | None = None) -> None:
        """A clock and a power limit per GPU come into force; what is left of an iteration goes on at the new speed."""
        if (clock_mhz, power_cap_w) == (self.clock_mhz, self.power_cap_w):
            return
        self.clock_mhz, self.power_cap_w = clock_mhz, power_cap_w
        if self.running:
            self._run(max(0.0, self._left - (self.now_s - self._speed_since_s) / self._duration_s))
        else:
            self._draw(self.plant.idle_power_w(clock_mhz), clock_mhz)

    def _draw(self, power_w: float, clock_mhz: int) -> None:
        """Draw this power at this clock, which under a power limit is lower than the one that was set."""
        load = self.load()
        self.meter.enter(self.now_s, clock_mhz, load.batch_size, load.batch_tokens, load.queued, power_w)

    @property
    def _limit_w(self) -> float | None:
        return None if self.power_cap_w is None else self.power_cap_w * self.plant.model.tp

    def _snapshot(
        self, batch_size: int, batch_tokens: int, queued: int, queued_tokens: int, longest_wait_s: float
    ) -> LoadSnapshot:
        return LoadSnapshot(
            self.now_s,
            self.clock_mhz,
            batch_size,
            batch_tokens,
            queued,
            queued_tokens,
            longest_wait_s,
            0.0 if self.running else self.now_s - self._ended_s,
            self.arrived_requests,
            self.arrived_tokens,
            self.iterations,
            self.busy_s,
        )

    @abstractmethod
    def submit(self, job: Job) -> None:
        """Take a request."""

    @abstractmethod
    def drop(self, job: Job) -> None:
        """Forget a request whose client has left; what is being computed is computed to the end."""

    @abstractmethod
    def load(self) -> LoadSnapshot:
        """Telemetry of this instant."""

    @abstractmethod
    def _form_batch(self) -> bool:
        """Form the next batch; False if there is nothing to run."""

    @abstractmethod
    def _step(self) -> Step:
        """What an iteration of the batch costs at the present clock."""

    @abstractmethod
    def _complete(self) -> None:
        """The iteration is over."""


class PrefillInstance(Instance):
    """First come, first served; `finished` takes a job whose prompt is computed."""

    phase: Phase = "prefill"

    def __init__(self, *shared: Any, limits: PrefillLimits, finished: Callable[[Job], None]) -> None:
        super().__init__(*shared)
        self._limits = limits
        self._finished = finished
        self._waiting: deque[Job] = deque()
        self._waiting_tokens = 0
        self._cut = False
        self._batch: list[tuple[Job, int]] = []
        self._tokens = 0
        self._pairs = 0.0

    def submit(self, job: Job) -> None:
        """Take a request."""
        self._waiting.append(job)
        self._waiting_tokens += job.prompt_tokens
        self.arrived_requests += 1
        self.arrived_tokens += job.prompt_tokens
        self.wake()

    def drop(self, job: Job) -> None:
        """Forget a request; one in the batch is computed to the end."""
        job.gone = True
        if job in self._waiting and not (self._cut and job is self._waiting[0]):
            self._remove(job)

    def _remove(self, job: Job) -> None:
        self._waiting.remove(job)
        self._waiting_tokens -= job.prompt_tokens - job.prefilled

    def load(self) -> LoadSnapshot:
        """Telemetry of this instant."""
        wait_s = self.now_s - self._batch[0][0].arrived_s if self._batch else 0.0
        queued = len(self._waiting) - self._cut
        return self._snapshot(len(self._batch), self._tokens, queued, self._waiting_tokens, wait_s)

    def _form_batch(self) -> bool:
        limits = self._limits
        room = limits.max_tokens if limits.chunk_tokens is None else min(limits.max_tokens, limits.chunk_tokens)
        while self._waiting and len(self._batch) < limits.max_requests:
            job = self._waiting[0]
            rest = job.prompt_tokens - job.prefilled
            tokens = rest if limits.chunk_tokens is None else min(rest, room)
            if tokens == 0 or (tokens > room and self._batch):
                break
            room -= tokens
            self._batch.append((job, tokens))
            self._waiting_tokens -= tokens
            self._tokens += tokens
            self._pairs += tokens * job.prefilled + tokens * (tokens + 1) / 2
            if tokens < rest:
                self._cut = True
                break
            self._waiting.popleft()
        return bool(self._batch)

    def _step(self) -> Step:
        return self.plant.prefill(len(self._batch), self._tokens, self._pairs, self.clock_mhz, self._limit_w)

    def _complete(self) -> None:
        batch, self._batch, self._cut = self._batch, [], False
        self._tokens, self._pairs = 0, 0.0
        for job, tokens in batch:
            job.prefilled += tokens
            whole = job.prefilled == job.prompt_tokens
            if job.gone and not whole:
                self._remove(job)
            elif whole and not job.gone:
                self._finished(job)


class DecodeInstance(Instance):
    """Continuous batching; `joined` takes a job when it enters the batch, `token` one with its next token made,
    `failed` one that has outgrown the whole cache."""

    phase: Phase = "decode"

    def __init__(
        self,
        *shared: Any,
        limits: DecodeLimits,
        joined: Callable[[Job], None],
        token: Callable[[Job], None],
        failed: Callable[[Job], None],
    ) -> None:
        super().__init__(*shared)
        self._limits = limits
        self.kv_capacity = limits.kv_tokens
        self._joined = joined
        self._token = token
        self._failed = failed
        self._waiting: deque[Job] = deque()
        self._waiting_tokens = 0
        self._running: list[Job] = []
        self._kv_tokens = 0
        self.retractions = 0

    def submit(self, job: Job) -> None:
        """Take a request whose KV and first token have come."""
        self._waiting.append(job)
        self._waiting_tokens += job.kv_tokens
        self.arrived_requests += 1
        self.arrived_tokens += job.prompt_tokens
        self.wake()

    def drop(self, job: Job) -> None:
        """Forget a request; one in the batch leaves at the end of the iteration."""
        job.gone = True
        if job in self._waiting:
            self._waiting.remove(job)
            self._waiting_tokens -= job.kv_tokens

    def load(self) -> LoadSnapshot:
        """Telemetry of this instant."""
        return self._snapshot(len(self._running), self._kv_tokens, len(self._waiting), self._waiting_tokens, 0.0)

    def _form_batch(self) -> bool:
        retracted = False
        while self._kv_tokens + len(self._running) > self.kv_capacity:
            retracted = self._retract()
        while not retracted and self._waiting and self._fits(self._waiting[0]):
            job = self._waiting.popleft()
            self._waiting_tokens -= job.kv_tokens
            self._joined(job)
            if job.produced < job.max_tokens:
                self._kv_tokens += job.kv_tokens
                self._running.append(job)
        return bool(self._running)

    def _fits(self, job: Job) -> bool:
        batch = len(self._running) + 1
        if batch > self._limits.max_requests:
            return False
        need = self._kv_tokens + job.kv_tokens + batch * max(1, self._limits.reserve_tokens)
        return batch == 1 or need <= self.kv_capacity

    def _retract(self) -> bool:
        """Put the request that joined last back into the queue; False if it was alone, and so has failed."""
        job = self._running.pop()
        self._kv_tokens -= job.kv_tokens
        if not self._running:
            self._failed(job)
            return False
        self._waiting_tokens += job.kv_tokens
        self._waiting.appendleft(job)
        self.retractions += 1
        return True

    def _step(self) -> Step:
        return self.plant.decode(len(self._running), self._kv_tokens, self.clock_mhz, self._limit_w)

    def _complete(self) -> None:
        made = len(self._running)
        self._kv_tokens += made
        self.meter.grow(made)
        leaving = False
        token = self._token
        for job in self._running:
            job.produced += 1
            if job.gone:
                leaving = True
            else:
                token(job)
                leaving = leaving or job.produced == job.max_tokens
        if leaving:
            stay = [job for job in self._running if not job.gone and job.produced < job.max_tokens]
            self._kv_tokens = sum(job.kv_tokens for job in stay)
            self._running = stay
