"""A prefill instance: a first-come-first-served queue, batches up to a token budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from sim.instance import Instance
from sim.job import Job
from sim.plant import Step
from voltana.state import LoadSnapshot, Phase


@dataclass(frozen=True, slots=True)
class PrefillLimits:
    """How a batch is formed."""

    max_tokens: int
    """Prompt tokens of a batch. A longer prompt runs alone, unless prompts are chunked."""
    max_requests: int
    chunk_tokens: int | None = None
    """With chunking, no batch exceeds this, and a prompt that does not fit is cut."""


class Slice(NamedTuple):
    """The part of a prompt that a batch computes."""

    job: Job
    tokens: int

    @property
    def pairs(self) -> float:
        """Causal attention pairs: every new token with all before it and itself."""
        return self.tokens * self.job.prefilled + self.tokens * (self.tokens + 1) / 2


class PrefillQueue:
    """The queue of an instance and the batch that is taken from its head."""

    def __init__(self, limits: PrefillLimits) -> None:
        self._limits = limits
        self._jobs: deque[Job] = deque()
        self._cut = False
        self.tokens = 0
        """Prompt tokens waiting, those of the batch not counted."""
        self.batch: list[Slice] = []
        self.batch_tokens = 0
        self.batch_pairs = 0.0

    def __len__(self) -> int:
        """Requests waiting; one that is cut, part of it in the batch, is not among them."""
        return len(self._jobs) - self._cut

    def add(self, job: Job) -> None:
        """Take a request."""
        self._jobs.append(job)
        self.tokens += job.request.input_tokens

    def longest_wait_s(self, now_s: float) -> float:
        """Longest time since arrival in the batch, which is that of its first; 0 without one."""
        return now_s - self.batch[0].job.request.arrival_s if self.batch else 0.0

    def form_batch(self, now_s: float) -> bool:
        """Take from the head of the queue what the limits allow; False if there is nothing."""
        limits = self._limits
        room = limits.max_tokens if limits.chunk_tokens is None else min(limits.max_tokens, limits.chunk_tokens)
        while self._jobs and len(self.batch) < limits.max_requests:
            job = self._jobs[0]
            rest = job.request.input_tokens - job.prefilled
            tokens = rest if limits.chunk_tokens is None else min(rest, room)
            if tokens == 0 or (tokens > room and self.batch):
                break
            room -= tokens
            self._take(Slice(job, tokens), now_s)
            if tokens < rest:
                self._cut = True
                break
            self._jobs.popleft()
        return bool(self.batch)

    def _take(self, part: Slice, now_s: float) -> None:
        self.batch.append(part)
        self.tokens -= part.tokens
        self.batch_tokens += part.tokens
        self.batch_pairs += part.pairs
        if part.job.prefill_start_s is None:
            part.job.prefill_start_s = now_s

    def complete_batch(self) -> list[Job]:
        """The batch is computed; return the requests whose prompts are complete with it."""
        done = []
        for job, tokens in self.batch:
            job.prefilled += tokens
            if job.prefilled == job.request.input_tokens:
                done.append(job)
        self.batch = []
        self.batch_tokens = 0
        self.batch_pairs = 0.0
        self._cut = False
        return done


class PrefillInstance(Instance):
    """See the module; `finished` takes a job with its first token made."""

    phase: Phase = "prefill"

    def __init__(self, *shared: Any, limits: PrefillLimits, finished: Callable[[Job], None]) -> None:
        super().__init__(*shared)
        self._queue = PrefillQueue(limits)
        self._finished = finished

    def submit(self, job: Job) -> None:
        """Take a request."""
        self._queue.add(job)
        self.arrived_requests += 1
        self.arrived_tokens += job.request.input_tokens
        self.wake()

    def load(self) -> LoadSnapshot:
        """Telemetry of this instant."""
        queue, now = self._queue, self.env.now
        return LoadSnapshot(
            time_s=now,
            clock_mhz=self.actuator.commanded_mhz,
            batch_size=len(queue.batch),
            batch_tokens=queue.batch_tokens,
            queued=len(queue),
            queued_tokens=queue.tokens,
            longest_wait_s=queue.longest_wait_s(now),
            idle_s=self.idle_s,
            arrived_requests=self.arrived_requests,
            arrived_tokens=self.arrived_tokens,
        )

    def form_batch(self) -> bool:
        """Take a batch from the queue."""
        return self._queue.form_batch(self.env.now)

    def step(self) -> Step:
        """Cost of the batch at the present clock."""
        queue = self._queue
        return self.plant.prefill(len(queue.batch), queue.batch_tokens, queue.batch_pairs, self.clock_mhz)

    def complete(self) -> None:
        """Hand on the requests whose prompts are computed, first token made."""
        for job in self._queue.complete_batch():
            job.first_token(self.env.now)
            self._finished(job)
