"""What becomes of the requests of a live run, and the run record."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from voltana.live.gpus import Gpus
from voltana.live.gpus.energy import Metered, metered
from voltana.live.latency import LatencyHistogram
from voltana.live.router.core import Routed
from voltana.live.run.load import Result, Timed
from voltana.record import COMPLETED, FAILED, UNFINISHED, RecordWriter, RequestRow
from voltana.record.summary import InstanceTotals, SummaryBuilder
from voltana.state import Slo

_WHICH = re.compile(r" for request \S+(?=:)")
"""What tells failures apart that are the same."""
KNOWN_SHARE = 0.999
"""Where energy is known for less of the run than this, its sum is null: what is missing would look like a saving. It is
well within the 2 % by which the counters of GPUs agree with fine integration."""


class LiveRecorder:
    """Follows the requests of a run to their ends and totals it up; the router's observer.

    Args:
        writer: of the record.
        slo: the objectives.
        policy: as the summary tells it.
        prefill, decode: names of the instances, in the router's order.
        arrivals: tells at the end where the requests came from.
        gpu: as the summary tells it.
    """

    def __init__(
        self,
        writer: RecordWriter,
        slo: Slo,
        policy: Mapping[str, Any],
        prefill: Sequence[str],
        decode: Sequence[str],
        arrivals: Callable[[], Mapping[str, Any]] = dict,
        gpu: Mapping[str, Any] | None = None,
    ) -> None:
        self._writer = writer
        self._slo = slo
        self._summary = SummaryBuilder("live", slo, policy, arrivals, gpu)
        self._names = (prefill, decode)
        self._phases = dict.fromkeys(prefill, "prefill") | dict.fromkeys(decode, "decode")
        self._metered = dict.fromkeys(self._phases, Metered())
        self._recorded_s: float | None = None
        self._seen_s = -math.inf
        self._planned: dict[int, Timed] = {}
        self._routes: dict[str, tuple[str, str]] = {}
        self.planned_all = False
        """Whether no request will be added."""
        self.completed = self.ttft_met = self.itl_met = 0
        self.met: Counter[str] = Counter()
        """Requests in time by instance: TTFT of prefill, ITL of decode instances."""
        self.served: Counter[str] = Counter()
        """Requests that ended, by instance."""
        self.failures: Counter[str] = Counter()
        """Failed requests by reason."""
        self.lag = LatencyHistogram()
        """How late the client sent requests."""

    # Requests

    def plan(self, request: Timed) -> None:
        """A request will be sent."""
        if not self._planned and not self._summary.submitted:
            self._summary.start_s = request.arrival_s
        self._planned[request.request_id] = request

    @property
    def open(self) -> int:
        """Planned requests of which nothing final is known."""
        return len(self._planned)

    @property
    def ended(self) -> int:
        """Requests that are over."""
        return self._summary.submitted

    @property
    def start_s(self) -> float:
        """The first arrival."""
        return self._summary.start_s

    @property
    def end_s(self) -> float:
        """The last token so far, also of a request that has not ended; minus infinity before the first."""
        return self._seen_s

    def on_request(self, routed: Routed) -> None:
        """The router gave a request its instances."""
        if routed.client_id is not None:
            prefill, decode = self._names
            self._routes[routed.client_id] = prefill[routed.prefill], decode[routed.decode]

    def on_first_byte(self, request_id: int, time_s: float) -> None:
        """The client times that itself."""

    def on_end(self, request_id: int, time_s: float, outcome: str) -> None:
        """The client knows better."""

    def take(self, result: Result, give_up: str = "") -> None:
        """A request is over, or its client tells how far all are.

        Args:
            result: what the client says.
            give_up: if not empty, a request that has not ended failed, for this reason.
        """
        if result.last_s is not None:
            self._seen_s = max(self._seen_s, result.last_s)
        request = self._planned.pop(result.request_id, None)
        if request is None or result.status == "unsent":
            return
        if result.lag_s is not None:
            self.lag.add(result.lag_s)
        if result.status == UNFINISHED and give_up:
            result = Result(result.request_id, FAILED, lag_s=result.lag_s, reason=give_up)
        if result.status == FAILED:
            self.failures[_WHICH.sub("", result.reason)] += 1
        self._write(self._row(request, result), result)

    def lose(self, reason: str, now_s: float) -> None:
        """All that is open failed; what had not arrived by now never will."""
        for request in list(self._planned.values()):
            status = FAILED if request.arrival_s <= now_s else "unsent"
            self.take(Result(request.request_id, status, reason=reason))

    def _row(self, request: Timed, result: Result) -> RequestRow:
        prefill, decode = self._routes.pop(str(request.request_id), (None, None))
        done = result.status == COMPLETED and result.first_s is not None and result.last_s is not None
        first_s, last_s, tokens = result.first_s, result.last_s, result.tokens
        itl_s = (last_s - first_s) / (tokens - 1) if done and last_s and first_s and tokens > 1 else None
        return RequestRow(
            request.request_id,
            request.arrival_s,
            request.input_tokens,
            tokens if done else request.output_tokens,
            prefill,
            decode,
            None,
            None,
            first_s if done else None,
            last_s if done else None,
            first_s - request.arrival_s if done and first_s is not None else None,
            itl_s,
            result.max_gap_s if done else None,
            result.status,
        )

    def _write(self, row: RequestRow, result: Result) -> None:
        self._writer.request(row)
        self._summary.add(row)
        self._summary.gaps += result.gaps
        self._summary.gaps_in_slo += result.gaps_in_slo
        done = row.status == COMPLETED
        ttft_met = done and row.ttft_s is not None and row.ttft_s <= self._slo.ttft_s
        itl_met = done and (row.mean_itl_s is None or row.mean_itl_s <= self._slo.itl_s)
        self.completed += done
        self.ttft_met += ttft_met
        self.itl_met += itl_met
        for instance, met in ((row.prefill_instance, ttft_met), (row.decode_instance, itl_met)):
            if instance is not None:
                self.served[instance] += 1
                self.met[instance] += met

    # Instances

    def record(self, gpus: Gpus, to_s: float) -> None:
        """Write what the instances did up to a time, in the order of time; the next call goes on from there.

        Args:
            gpus: their meters, read beyond that time.
            to_s: not beyond the last token so far, since the record ends with the last of all.
        """
        from_s = self.start_s if self._recorded_s is None else self._recorded_s
        if not from_s < to_s:
            return
        self._recorded_s = to_s
        rows = {name: gpus.rows(name, phase, from_s, to_s) for name, phase in self._phases.items()}
        for row in sorted((row for each in rows.values() for row in each), key=lambda row: row.time_s):
            self._writer.instance(row)
        self._writer.keep()
        for name, each in rows.items():
            self._metered[name] = self._metered[name].plus(metered(each, from_s, to_s))

    # The end

    def close(
        self,
        gpus: Gpus,
        changes: Mapping[str, int],
        end_s: float,
        wall_s: float,
        interrupted: bool,
        live: Mapping[str, Any],
        starved: Sequence[str],
    ) -> dict[str, Any]:
        """Write the last rows of the instances and the summary; return it.

        Args:
            gpus: their meters, read a last time.
            changes: clock changes commanded to each instance.
            end_s: when the run ended.
            wall_s: what the run took, start and end of servers not counted.
            interrupted: whether it was cut short.
            live: what only a live run has to tell.
            starved: what was late because the machine was too busy.
        """
        self._summary.end_s = end_s = max(end_s, self.start_s)
        self.record(gpus, end_s)
        totals = {
            name: InstanceTotals(phase, self._metered[name].energy_j, changes.get(name, 0))
            for name, phase in self._phases.items()
        }
        duration_s = end_s - self.start_s
        shares = {name: known_share(metered, duration_s) for name, metered in self._metered.items()}
        numbers = self._summary.build(
            totals,
            interrupted=interrupted,
            wall_s=wall_s,
            starved=list(starved),
            energy_notes=[_note(name, self._metered[name], duration_s) for name, known in shares.items() if known < 1],
            live={**live, "energy_known_share": shares},
        )
        unknown = [name for name, known in shares.items() if known < KNOWN_SHARE]
        if unknown:
            _without_energy(numbers, unknown)
        self._writer.summary(numbers)
        return numbers


def known_share(metered: Metered, duration_s: float) -> float:
    """Share of the run of which energy is known."""
    return 1.0 - metered.unknown_s / duration_s if duration_s > 0 else 0.0


def _note(name: str, metered: Metered, duration_s: float) -> str:
    """What is not known of an instance's energy."""
    if metered.unknown_s >= duration_s:
        return f"{name}: no meter tells its energy"
    counted = (
        "not counted" if known_share(metered, duration_s) >= KNOWN_SHARE else f"the rest is {metered.energy_j:g} J"
    )
    return f"{name}: energy is not known for {metered.unknown_s:.3g} of {duration_s:.4g} s, {counted}"


def _without_energy(numbers: dict[str, Any], unknown: Sequence[str]) -> None:
    """No sum is told where a part of it is not known."""
    energy = numbers["energy_j"]
    energy["per_instance"] |= dict.fromkeys(unknown)
    energy["total"] = None
    for phase in ("prefill", "decode"):
        if any(name.startswith(phase) for name in unknown):
            energy[phase] = None
    for key in ("energy_per_request_j", "energy_per_output_token_j", "mean_power_w"):
        numbers[key] = None
