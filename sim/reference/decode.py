"""A decode instance: continuous batching within its KV capacity.

Requests join in the order their KV arrived, while the batch has room and each running request keeps a reserve of KV
tokens to grow into. When the cache is full all the same, the request that joined last is retracted: it leaves the
batch with its KV moved to host memory and waits at the head of the queue (as SGLang's decode servers do).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from voltana.app.serving import DecodeLimits
from voltana.sim.plant import Step
from voltana.sim.reference.instance import Instance
from voltana.sim.serving.job import Job
from voltana.sim.serving.views import Views, answers
from voltana.state import LoadSnapshot, Phase


class DecodeInstance(Instance):
    """See the module; `token_gap` takes every gap between tokens, `finished` a job with its last token
    made, `failed` one that has outgrown the whole cache."""

    phase: Phase = "decode"

    def __init__(
        self,
        *shared: Any,
        limits: DecodeLimits,
        token_gap: Callable[[float], None],
        finished: Callable[[Job], None],
        failed: Callable[[Job], None],
    ) -> None:
        super().__init__(*shared)
        self._limits = limits
        self._failed = failed
        self._token_gap = token_gap
        self._finished = finished
        self._waiting: deque[Job] = deque()
        self._waiting_tokens = 0
        self._running: list[Job] = []
        self._kv_tokens = 0
        self.retractions = 0

    def submit(self, job: Job) -> None:
        """Take a request whose KV has arrived."""
        self._waiting.append(job)
        self._waiting_tokens += job.kv_tokens
        self.arrived_requests += 1
        self.arrived_tokens += job.request.input_tokens
        self.wake()

    def load(self) -> LoadSnapshot:
        """Telemetry of this instant."""
        return LoadSnapshot(
            time_s=self.env.now,
            clock_mhz=self.actuator.commanded.clock_mhz,
            batch_size=len(self._running),
            batch_tokens=self._kv_tokens,
            queued=len(self._waiting),
            queued_tokens=self._waiting_tokens,
            longest_wait_s=0.0,
            idle_s=self.idle_s,
            arrived_requests=self.arrived_requests,
            arrived_tokens=self.arrived_tokens,
            iterations=self.iterations,
            busy_s=self.busy_s,
        )

    def requests(self) -> tuple[Views, Views]:
        """As the base class says."""
        running, waiting = ([(job, 0) for job in jobs] for jobs in (self._running, self._waiting))
        return answers(running, self.env.now), answers(waiting, self.env.now)

    def form_batch(self) -> bool:
        """Retract while the next token would not fit, then admit while there is room."""
        retracted = False
        while not self._limits.grow(len(self._running), self._kv_tokens):
            retracted = self._retract()
        while not retracted and self._waiting and self._fits(self._waiting[0]):
            self._join(self._waiting.popleft())
        return bool(self._running)

    def _fits(self, job: Job) -> bool:
        return self._limits.admit(len(self._running) + 1, self._kv_tokens + job.kv_tokens)

    def _join(self, job: Job) -> None:
        self._waiting_tokens -= job.kv_tokens
        job.join(self.env.now)
        if job.finished:
            self._finished(job)
            return
        self._kv_tokens += job.kv_tokens
        self._running.append(job)

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

    def what_if(self, clock_mhz: int) -> Step:
        """Cost of an iteration at a clock."""
        return self.plant.decode(len(self._running), self._kv_tokens, clock_mhz, self.limit_w)

    def complete(self) -> None:
        """Every request of the batch has one more token; those with their last one leave."""
        now = self.env.now
        self._kv_tokens += len(self._running)
        self.meter.grow(len(self._running))
        for job in self._running:
            self._token_gap(job.next_token(now))
        leaving = [job for job in self._running if job.finished]
        if leaving:
            self._running = [job for job in self._running if not job.finished]
            self._kv_tokens -= sum(job.kv_tokens for job in leaving)
            for job in leaving:
                self._finished(job)
