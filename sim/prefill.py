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


class PrefillInstance(Instance):
    """See the module; `finished` takes a job with its first token made."""

    phase: Phase = "prefill"

    def __init__(self, *shared: Any, limits: PrefillLimits, finished: Callable[[Job], None]) -> None:
        super().__init__(*shared)
        self._limits = limits
        self._finished = finished
        self._queue: deque[Job] = deque()
        self._queued_tokens = 0
        self._batch: list[Slice] = []
        self._batch_tokens = 0
        self._batch_pairs = 0.0

    def submit(self, job: Job) -> None:
        """Take a request."""
        self._queue.append(job)
        self._queued_tokens += job.request.input_tokens
        self.arrived_requests += 1
        self.arrived_tokens += job.request.input_tokens
        self.wake()

    def load(self) -> LoadSnapshot:
        """Telemetry of this instant."""
        now = self.env.now
        waits = (now - part.job.request.arrival_s for part in self._batch)
        return LoadSnapshot(
            time_s=now,
            clock_mhz=self.actuator.commanded_mhz,
            batch_size=len(self._batch),
            batch_tokens=self._batch_tokens,
            queued=len(self._queue),
            queued_tokens=self._queued_tokens,
            longest_wait_s=max(waits, default=0.0),
            arrived_requests=self.arrived_requests,
            arrived_tokens=self.arrived_tokens,
        )

    def form_batch(self) -> bool:
        """Take from the head of the queue what the limits allow."""
        limits = self._limits
        room = limits.max_tokens if limits.chunk_tokens is None else min(limits.max_tokens, limits.chunk_tokens)
        while self._queue and len(self._batch) < limits.max_requests:
            job = self._queue[0]
            rest = job.request.input_tokens - job.prefilled
            tokens = rest if limits.chunk_tokens is None else min(rest, room)
            if tokens == 0 or (tokens > room and self._batch):
                break
            room -= tokens
            self._batch.append(Slice(job, tokens))
            if tokens < rest:
                break
            self._queue.popleft()
        self._batch_tokens = sum(part.tokens for part in self._batch)
        self._batch_pairs = sum(part.pairs for part in self._batch)
        self._queued_tokens -= self._batch_tokens
        for part in self._batch:
            if part.job.prefill_start_s is None:
                part.job.prefill_start_s = self.env.now
        return bool(self._batch)

    def step(self) -> Step:
        """Cost of the batch at the present clock."""
        return self.plant.prefill(len(self._batch), self._batch_tokens, self._batch_pairs, self.clock_mhz)

    def complete(self) -> None:
        """Hand on the requests whose prompts are computed, first token made."""
        batch, self._batch = self._batch, []
        self._batch_tokens = 0
        for job, tokens in batch:
            job.prefilled += tokens
            if job.prefilled == job.request.input_tokens:
                job.first_token(self.env.now)
                self._finished(job)
