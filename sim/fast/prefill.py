"""Prefill in the event-skipping engine: every batch is another, so every iteration is an event."""

from __future__ import annotations

from collections.abc import Callable

from voltana.app.serving import PrefillLimits
from voltana.dispatch import Standing
from voltana.sim.fast.instance import FastInstance, Made
from voltana.sim.plant import Step
from voltana.sim.serving.job import Job
from voltana.sim.serving.prefill_queue import PrefillQueue
from voltana.sim.serving.views import Views
from voltana.state import Decision, LoadSnapshot, Phase


class FastPrefill(FastInstance):
    """See the module; `finished` takes a job whose prompt is computed."""

    phase: Phase = "prefill"

    def __init__(self, of: Made, *, limits: PrefillLimits, finished: Callable[[Job], None]) -> None:
        super().__init__(of)
        self._queue = PrefillQueue(limits)
        self._finished = finished
        self._left = 1.0
        self._step: Step
        self._duration_s = 0.0
        self._started_s = 0.0

    def submit(self, job: Job) -> None:
        """Take a request."""
        self._queue.add(job)
        self.arrived_requests += 1
        self.arrived_tokens += job.request.input_tokens
        if self._idle:
            self._wake()

    def load(self, idle_s: float = 0.0) -> LoadSnapshot:
        """Telemetry of this instant."""
        queue, now = self._queue, self.events.now
        return LoadSnapshot(
            now,
            self.commanded.clock_mhz,
            len(queue.batch),
            queue.batch_tokens,
            len(queue),
            queue.tokens,
            queue.longest_wait_s(now),
            idle_s,
            self.arrived_requests,
            self.arrived_tokens,
            self._iterations,
            self._busy_s,
        )

    def _stand(self) -> Standing:
        queue = self._queue
        return Standing(
            self.commanded.clock_mhz,
            len(queue.batch) + len(queue),
            queue.batch_tokens + queue.tokens,
            self.arrived_requests,
            self.arrived_tokens,
        )

    def standing(self) -> Standing:
        """As the base class says."""
        return self._told

    def what_if(self, clock_mhz: int) -> Step:
        """As the base class says."""
        queue = self._queue
        return self.plant.prefill(len(queue.batch), queue.batch_tokens, queue.batch_pairs, clock_mhz, self.limit_w)

    def requests(self) -> tuple[Views, Views]:
        """As the base class says."""
        return self._queue.requests(self.events.now)

    @property
    def energy_j(self) -> float:
        """As the base class says."""
        since_s = self.events.now - self._metered_s
        return self.meter.totals.energy_j + (self._idle_j() if self._idle else self._step.power_w * since_s)

    def _queued(self) -> int:
        return len(self._queue)

    def _form_batch(self) -> bool:
        return self._queue.form_batch(self.events.now)

    def _start_work(self, decision: Decision) -> None:
        self._left = 1.0
        self._started_s = self.events.now
        self._resume_work()

    def _resume_work(self) -> None:
        queue, now = self._queue, self.events.now
        self._step = self.what_if(self.clock_mhz)
        self._duration_s = self._step.duration_s * self._stretch
        self.meter.enter(now, self.clock_mhz, len(queue.batch), queue.batch_tokens, len(queue))
        self._end_at(now + self._left * self._duration_s)

    def _meter_work(self) -> None:
        now = self.events.now
        spent = now - self._metered_s
        self.meter.spend(self._step.power_w, spent)
        self._metered_s = now
        self._left -= spent / self._duration_s

    def _work_ends(self) -> None:
        self._end = None
        now = self.events.now
        self.meter.spend(self._step.power_w, now - self._metered_s)
        self._metered_s = now
        self._iterations += 1
        self._busy_s += now - self._started_s
        for job in self._queue.complete_batch():
            job.prompt_done(now)
            self._finished(job)
        if self.ended is not None:
            self._publish()
            self.ended()
        self._boundary()
