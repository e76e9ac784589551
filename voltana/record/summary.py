"""The numbers of a run (summary.json), accumulated while it goes.

TTFT is first token, as its client sees it, minus arrival. ITL of a request is its mean inter-token latency: last token
minus first token over output tokens minus one; a one-token answer has none and counts as meeting the ITL objective. The
end-to-end latency (e2e) is last token minus arrival. Goodput is completed requests that meet both objectives, over the
duration. Requests that failed meet nothing. Percentiles are over requests, exact up to 100,000 of them and within
0.05 % beyond (`voltana.record.distribution`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from voltana.record import COMPLETED, FAILED, RequestRow
from voltana.record.distribution import Distribution
from voltana.state import Slo

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
"""Told of every latency beside its mean, in this order."""


@dataclass
class InstanceTotals:
    """What an instance used in all."""

    phase: str
    energy_j: float = 0.0
    clock_changes: int = 0


@dataclass
class SummaryBuilder:
    """Accumulates a summary; every request is added once."""

    source: str
    slo: Slo
    policy: Mapping[str, Any]
    arrivals: Callable[[], Mapping[str, Any]] = dict
    """Tells at the end where the requests came from (`traces.RequestStream.about`)."""
    gpu: Mapping[str, Any] | None = None
    """Its name, and what its power rests on."""
    submitted: int = 0
    failed: int = 0
    unfinished: int = 0
    gaps: int = 0
    gaps_in_slo: int = 0
    _output_tokens: int = 0
    _joint: int = 0
    _ttft_met: int = 0
    _itl_met: int = 0
    _ttft: Distribution = field(default_factory=Distribution)
    _itl: Distribution = field(default_factory=Distribution)
    _e2e: Distribution = field(default_factory=Distribution)
    start_s: float = 0.0
    end_s: float = 0.0
    _last_arrival_s: float = 0.0

    def add(self, row: RequestRow) -> None:
        """Count one request that ended (or did not, when the run was cut)."""
        self.submitted += 1
        if row.arrival_s > self._last_arrival_s:
            self._last_arrival_s = row.arrival_s
        if row.status != COMPLETED:
            self.failed += row.status == FAILED
            self.unfinished += row.status != FAILED
            return
        assert row.ttft_s is not None and row.finish_s is not None
        self._output_tokens += row.output_tokens
        self.end_s = max(self.end_s, row.finish_s)
        self._ttft.add(row.ttft_s)
        self._e2e.add(row.finish_s - row.arrival_s)
        if row.mean_itl_s is not None:
            self._itl.add(row.mean_itl_s)
        ttft_met = row.ttft_s <= self.slo.ttft_s
        itl_met = row.mean_itl_s is None or row.mean_itl_s <= self.slo.itl_s
        self._ttft_met += ttft_met
        self._itl_met += itl_met
        self._joint += ttft_met and itl_met

    def build(self, instances: Mapping[str, InstanceTotals], **extra: Any) -> dict[str, Any]:
        """The summary; `extra` keys are appended as they are."""
        duration = self.end_s - self.start_s
        energy = {name: totals.energy_j for name, totals in instances.items()}
        total = sum(energy.values())
        by_phase = {
            phase: sum(t.energy_j for t in instances.values() if t.phase == phase) for phase in ("prefill", "decode")
        }
        completed = len(self._ttft)
        return {
            "source": self.source,
            "requests": {
                "submitted": self.submitted,
                "completed": completed,
                "failed": self.failed,
                "unfinished": self.unfinished,
            },
            "arrivals": {**self.arrivals(), **measured(self.submitted, self.start_s, self._last_arrival_s)},
            "start_s": self.start_s,
            "end_s": self.end_s,
            "duration_s": duration,
            "slo": {"ttft_ms": self.slo.ttft_s * 1e3, "itl_ms": self.slo.itl_s * 1e3},
            "ttft_attainment": _share(self._ttft_met, self.submitted),
            "itl_attainment": _share(self._itl_met, self.submitted),
            "token_itl_attainment": _share(self.gaps_in_slo, self.gaps),
            "joint_attainment": _share(self._joint, self.submitted),
            "ttft_ms": _milliseconds(self._ttft),
            "itl_ms": _milliseconds(self._itl),
            "e2e_ms": _milliseconds(self._e2e),
            "goodput_per_s": _share(self._joint, duration),
            "energy_j": {"total": total, **by_phase, "per_instance": energy},
            "energy_per_request_j": _share(total, completed),
            "energy_per_output_token_j": _share(total, self._output_tokens),
            "mean_power_w": _share(total, duration),
            "throughput": {
                "requests_per_s": _share(completed, duration),
                "output_tokens_per_s": _share(self._output_tokens, duration),
            },
            "clock_changes": sum(t.clock_changes for t in instances.values()),
            "policy": dict(self.policy),
            **({} if self.gpu is None else {"gpu": dict(self.gpu)}),
            **extra,
        }


def measured(count: int, first_s: float, last_s: float) -> dict[str, Any]:
    """Count, span (first to last arrival) and rate (gaps over span) of arrivals; null where one request tells none."""
    span_s = last_s - first_s
    return {"count": count, "span_s": span_s, "rate_per_s": _share(count - 1, span_s) if count > 1 else None}


def rate_in_words(arrivals: Mapping[str, Any]) -> str:
    """The rate of a run: what was asked for, or that of the trace, from `arrivals` of its summary."""
    asked, rate = arrivals.get("requested_rps"), arrivals["rate_per_s"]
    if asked is not None:
        return f"{asked:g} requests/s"
    return "one request" if rate is None else f"the trace's {rate:.3g} requests/s"


def energy_rests_on(gpu: Mapping[str, Any]) -> str:
    """What is to be said of energies on a GPU, if anything, from `gpu` of a summary or a configuration."""
    if gpu.get("power") != "scaled":
        return ""
    names = " and ".join(map(str, gpu.get("scaled", [gpu.get("name")])))
    return f"power of {names} is scaled from a relative, not measured (docs/catalogue.md)"


def arrivals_in_words(arrivals: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What arrived and what was left out, as labels and lines, from `arrivals` of a summary."""
    rate = "" if arrivals["rate_per_s"] is None else f", {arrivals['rate_per_s']:.3g}/s"
    ended = ", then the trace ended" if arrivals.get("ended_by") == "trace" else ""
    process = f"{arrivals['process']}: " if "process" in arrivals else ""
    lines = [("arrivals", f"{process}{arrivals['count']} requests in {arrivals['span_s']:.1f} s{rate}{ended}")]
    if arrivals.get("counted_from"):
        lines.append(("times counted from", str(arrivals["counted_from"])))
    for each in arrivals.get("skipped", ()):
        of = f"{each['count']} of {arrivals['rows_read']}"
        lines.append(("rows skipped", f"{of}: {each['reason']} (first in line {each['first_line']})"))
    if arrivals.get("ignored"):
        lines.append(("not modelled", f"{', '.join(arrivals['ignored'])} of the trace"))
    return lines


def _share(part: float, whole: float) -> float | None:
    share = part / whole if whole else math.inf
    return share if share < math.inf else None  # a span may be too short to divide by


def _milliseconds(seconds: Distribution) -> dict[str, float | None]:
    if not len(seconds):
        return dict.fromkeys(("mean", *PERCENTILES))
    found = seconds.percentiles(tuple(PERCENTILES.values()))
    return {"mean": seconds.mean() * 1e3, **{name: 1e3 * at for name, at in zip(PERCENTILES, found, strict=True)}}
