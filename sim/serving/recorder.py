"""Follows the requests of a run to their ends and totals it up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from voltana.record import RecordWriter
from voltana.record.summary import SummaryBuilder
from voltana.sim.serving.job import Job
from voltana.sim.serving.meter import Meter
from voltana.state import Slo


class Recorder:
    """Writes the row of every request that ends, and the summary when the run does.

    Args:
        writer: of the record.
        slo: the objectives.
        policy: as the summary tells it.
        arrivals: tells at the end where the requests came from.
        gpu: as the summary tells it.
    """

    def __init__(
        self,
        writer: RecordWriter,
        slo: Slo,
        policy: Mapping[str, Any],
        arrivals: Callable[[], Mapping[str, Any]] = dict,
        gpu: Mapping[str, Any] | None = None,
    ) -> None:
        self._writer = writer
        self.itl_slo_s = slo.itl_s
        self._summary = SummaryBuilder("sim", slo, policy, arrivals, gpu)
        self._in_flight: set[Job] = set()

    @property
    def in_flight(self) -> int:
        """Requests that have arrived and not ended."""
        return len(self._in_flight)

    @property
    def submitted(self) -> int:
        """Requests that have ended or are in flight."""
        return self._summary.submitted + len(self._in_flight)

    def arrived(self, job: Job) -> None:
        """A request arrived."""
        if not self.submitted:
            self._summary.start_s = job.request.arrival_s
        self._in_flight.add(job)

    def token(self, job: Job, gap_s: float | None) -> None:
        """A token came so long after the one before; None: it is the first."""
        if gap_s is not None:
            self._summary.gaps += 1
            self._summary.gaps_in_slo += gap_s <= self.itl_slo_s

    def token_gaps(self, gaps: int, within_slo: int) -> None:
        """So many tokens came, and so many of them within the objective after the one before."""
        self._summary.gaps += gaps
        self._summary.gaps_in_slo += within_slo

    def ended(self, job: Job) -> None:
        """A request is over, completed or failed."""
        self._in_flight.remove(job)
        self._write(job)

    def close(self, end_s: float, meters: Iterable[Meter], wall_s: float, interrupted: bool) -> dict[str, Any]:
        """Write what is still in flight as unfinished, and the summary; return it.

        Args:
            end_s: when the run ended, simulated time.
            meters: of all instances.
            wall_s: what the simulation took.
            interrupted: whether it was cut short.
        """
        for job in sorted(self._in_flight, key=lambda job: job.request.request_id):
            self._write(job)
        self._summary.end_s = end_s
        numbers = self._summary.build(
            {meter.name: meter.totals for meter in meters},
            interrupted=interrupted,
            wall_s=wall_s,
            simulated_requests_per_s=self._summary.submitted / wall_s,
        )
        self._writer.summary(numbers)
        return numbers

    def _write(self, job: Job) -> None:
        row = job.row()
        self._writer.request(row)
        self._summary.add(row)
