"""A decode instance: continuous batching within its KV capacity.

Requests join in the order their KV arrived, while the batch has room and each running request keeps a reserve of KV
tokens to grow into. When the cache is full all the same, the request that joined last is retracted: it leaves the
batch with its KV moved to host memory and waits at the head of the queue (as SGLang's decode servers do).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from voltana.app.serving import DecodeLimits
from voltana.sim.plant import Plant, Step
from voltana.sim.serving.instance import Instance, Occupancy
from voltana.sim.serving.job import Job
from voltana.sim.serving.meter import Meter
from voltana.sim.serving.views import Views, answers


class DecodeInstance(Instance):
    """See the module.

    Args:
        token: takes a job with a token for its client and the gap since the one before, None for the first.
        finished: takes a job whose last token is made.
        failed: takes a job that has outgrown the whole cache.
    """

    phase = "decode"

    def __init__(
        self,
        plant: Plant,
        meter: Meter,
        limits: DecodeLimits,
        *,
        token: Callable[[Job, float | None], None],
        finished: Callable[[Job], None],
        failed: Callable[[Job], None],
    ) -> None:
        super().__init__(plant, meter)
        self._limits = limits
        self._token = token
        self._finished = finished
        self._failed = failed
        self._waiting: deque[Job] = deque()
        self._waiting_tokens = 0
        self._running: list[Job] = []
        self._kv_tokens = 0
        self.retractions = 0

    def _add(self, job: Job) -> None:
        """Take a request whose KV has arrived."""
        self._waiting.append(job)
        self._waiting_tokens += job.kv_tokens

    def _remove_waiting(self, job: Job) -> None:
        if job in self._waiting:
            self._waiting.remove(job)
            self._waiting_tokens -= job.kv_tokens

    def occupancy(self) -> Occupancy:
        """As the base class says."""
        return Occupancy(len(self._running), self._kv_tokens, len(self._waiting), self._waiting_tokens)

    def requests(self, now_s: float) -> tuple[Views, Views]:
        """As the base class says."""
        running, waiting = ([(job, 0) for job in jobs] for jobs in (self._running, self._waiting))
        return answers(running, now_s), answers(waiting, now_s)

    def _form_batch(self, now_s: float) -> bool:
        """Retract while the next token would not fit, then admit while there is room."""
        retracted = False
        while not self._limits.grow(len(self._running), self._kv_tokens):
            retracted = self._retract()
        while not retracted and self._waiting and self._fits(self._waiting[0]):
            self._join(self._waiting.popleft(), now_s)
        return bool(self._running)

    def _fits(self, job: Job) -> bool:
        return self._limits.admit(len(self._running) + 1, self._kv_tokens + job.kv_tokens)

    def _join(self, job: Job, now_s: float) -> None:
        self._waiting_tokens -= job.kv_tokens
        if job.join(now_s):
            self._token(job, None)
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
        """As the base class says."""
        return self.plant.decode(len(self._running), self._kv_tokens, clock_mhz, self.limit_w)

    def _complete(self, now_s: float) -> None:
        """Every request of the batch has one more token; those with their last one, or without a client, leave."""
        running, leaving, token = self._running, [], self._token
        self._kv_tokens += len(running)
        self.meter.grow(len(running))
        for job in running:
            gap_s = job.next_token(now_s)
            if not job.gone:
                token(job, gap_s)
            if job.finished or job.gone:
                leaving.append(job)
        if leaving:
            left = set(leaving)
            self._running = [job for job in running if job not in left]
            self._kv_tokens -= sum(job.kv_tokens for job in leaving)
            for job in leaving:
                if not job.gone:
                    self._finished(job)
