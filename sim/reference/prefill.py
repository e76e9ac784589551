"""A prefill instance: a first-come-first-served queue, batches up to a token budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from voltana.app.serving import PrefillLimits
from voltana.sim.plant import Step
from voltana.sim.reference.instance import Instance
from voltana.sim.serving.job import Job
from voltana.sim.serving.prefill_queue import PrefillQueue
from voltana.sim.serving.views import Views, prompts
from voltana.state import LoadSnapshot, Phase


class PrefillInstance(Instance):
    """See the module; `finished` takes a job whose prompt is computed."""

    phase: Phase = "prefill"

    def __init__(self, *shared: Any, limits: PrefillLimits, finished: Callable[[Job], None]) -> None:
        super().__init__(*shared)
        self._queue = PrefillQueue(limits)
        self._finished = finished

    def submit(self, job: Job) -> None:
        """Take a request."""
        self._queue.add(job, self.env.now)
        self.arrived_requests += 1
        self.arrived_tokens += job.request.input_tokens
        self.wake()

    def load(self) -> LoadSnapshot:
        """Telemetry of this instant."""
        queue, now = self._queue, self.env.now
        return LoadSnapshot(
            time_s=now,
            clock_mhz=self.actuator.commanded.clock_mhz,
            batch_size=len(queue.batch),
            batch_tokens=queue.batch_tokens,
            queued=len(queue),
            queued_tokens=queue.tokens,
            longest_wait_s=queue.longest_wait_s(now),
            idle_s=self.idle_s,
            arrived_requests=self.arrived_requests,
            arrived_tokens=self.arrived_tokens,
            iterations=self.iterations,
            busy_s=self.busy_s,
        )

    def requests(self) -> tuple[Views, Views]:
        """As the base class says."""
        running, waiting = self._queue.jobs()
        return prompts(running, self.env.now), prompts(waiting, self.env.now)

    def form_batch(self) -> bool:
        """Take a batch from the queue."""
        return self._queue.form_batch(self.env.now)

    def what_if(self, clock_mhz: int) -> Step:
        """Cost of the batch at a clock."""
        queue = self._queue
        return self.plant.prefill(len(queue.batch), queue.batch_tokens, queue.batch_pairs, clock_mhz, self.limit_w)

    def complete(self) -> None:
        """Hand on the requests whose prompts are computed."""
        for job in self._queue.complete_batch():
            job.prompt_done(self.env.now)
            self._finished(job)
