"""The queue of a prefill instance and the batch taken from its head, for either engine."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from voltana.app.serving import PrefillLimits
from voltana.sim.serving.job import Job
from voltana.sim.serving.views import Views, prompts


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

    def remove(self, job: Job) -> None:
        """Take a request out of the queue if it is there; one that is cut stays until its part in the batch is done."""
        if job in self._jobs and not (self._cut and job is self._jobs[0]):
            self._jobs.remove(job)
            self.tokens -= job.request.input_tokens - job.prefilled

    def longest_wait_s(self, now_s: float) -> float:
        """Longest time in the batch since a request came to prefill; 0 without one."""
        return now_s - min(part.job.taken_s for part in self.batch) if self.batch else 0.0

    def requests(self, now_s: float) -> tuple[Views, Views]:
        """Requests of the batch, and those behind it, one by one; one that is cut is in the batch."""
        return prompts((part.job for part in self.batch), now_s), prompts(list(self._jobs)[self._cut :], now_s)

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
        """The batch is computed; return the requests whose prompts are complete with it and whose clients are there."""
        done, batch = [], self.batch
        self.batch = []
        self.batch_tokens = 0
        self.batch_pairs = 0.0
        self._cut = False
        for job, tokens in batch:
            job.prefilled += tokens
            if job.gone:
                self.remove(job)
            elif job.prefilled == job.request.input_tokens:
                done.append(job)
        return done
