"""The queue of a prefill instance and the batch taken from its head, for either engine."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from voltana.app.serving import PrefillLimits
from voltana.sim.serving.job import Job


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

    def add(self, job: Job, now_s: float) -> None:
        """Take a request."""
        job.taken_s = now_s
        self._jobs.append(job)
        self.tokens += job.request.input_tokens

    def longest_wait_s(self, now_s: float) -> float:
        """Longest time in the batch since a request came here, which is that of its first; 0 without one."""
        return now_s - self.batch[0].job.taken_s if self.batch else 0.0

    def jobs(self) -> tuple[list[Job], list[Job]]:
        """Requests of the batch, and those behind it; one that is cut is in the batch."""
        return [part.job for part in self.batch], list(self._jobs)[self._cut :]

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
