"""A prefill instance: a first-come-first-served queue, batches up to a token budget."""

from __future__ import annotations

from collections.abc import Callable

from voltana.app.serving import PrefillLimits
from voltana.sim.plant import Plant, Step
from voltana.sim.serving.instance import Instance, Occupancy
from voltana.sim.serving.job import Job
from voltana.sim.serving.meter import Meter
from voltana.sim.serving.prefill_queue import PrefillQueue
from voltana.sim.serving.views import Views


class PrefillInstance(Instance):
    """See the module; `finished` takes a job whose prompt is computed."""

    phase = "prefill"

    def __init__(self, plant: Plant, meter: Meter, limits: PrefillLimits, finished: Callable[[Job], None]) -> None:
        super().__init__(plant, meter)
        self._queue = PrefillQueue(limits)
        self._finished = finished

    def _add(self, job: Job) -> None:
        self._queue.add(job)

    def _remove_waiting(self, job: Job) -> None:
        self._queue.remove(job)

    def occupancy(self) -> Occupancy:
        """As the base class says."""
        queue = self._queue
        return Occupancy(len(queue.batch), queue.batch_tokens, len(queue), queue.tokens)

    def longest_wait_s(self, now_s: float) -> float:
        """As the base class says."""
        return self._queue.longest_wait_s(now_s)

    def requests(self, now_s: float) -> tuple[Views, Views]:
        """As the base class says."""
        return self._queue.requests(now_s)

    def _form_batch(self, now_s: float) -> bool:
        return self._queue.form_batch(now_s)

    def what_if(self, clock_mhz: int) -> Step:
        """As the base class says."""
        queue = self._queue
        return self.plant.prefill(len(queue.batch), queue.batch_tokens, queue.batch_pairs, clock_mhz, self.limit_w)

    def _complete(self, now_s: float) -> None:
        for job in self._queue.complete_batch():
            job.prompt_done(now_s)
            self._finished(job)
