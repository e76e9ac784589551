"""The numbers of a run (summary.json), accumulated while it goes.

TTFT is first token minus arrival. ITL of a request is its mean inter-token latency: last token minus first token over
output tokens minus one; a one-token answer has none and counts as meeting the ITL objective. Requests that failed
meet nothing. Percentiles are over requests.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from voltana.record import COMPLETED, FAILED, RequestRow
from voltana.state import Slo


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
    submitted: int = 0
    failed: int = 0
    unfinished: int = 0
    gaps: int = 0
    gaps_in_slo: int = 0
    _output_tokens: int = 0
    _joint: int = 0
    _ttft: array[float] = field(default_factory=lambda: array("d"))
    _itl: array[float] = field(default_factory=lambda: array("d"))
    _itl_free: int = 0
    start_s: float = 0.0
    end_s: float = 0.0

    def add(self, row: RequestRow) -> None:
        """Count one request that ended (or did not, when the run was cut)."""
        self.submitted += 1
        if row.status != COMPLETED:
            self.failed += row.status == FAILED
            self.unfinished += row.status != FAILED
            return
        assert row.ttft_s is not None and row.finish_s is not None
        self._output_tokens += row.output_tokens
        self.end_s = max(self.end_s, row.finish_s)
        self._ttft.append(row.ttft_s)
        if row.mean_itl_s is None:
            self._itl_free += 1
        else:
            self._itl.append(row.mean_itl_s)
        itl_met = row.mean_itl_s is None or row.mean_itl_s <= self.slo.itl_s
        self._joint += itl_met and row.ttft_s <= self.slo.ttft_s

    def build(self, instances: Mapping[str, InstanceTotals], **extra: Any) -> dict[str, Any]:
        """The summary; `extra` keys are appended as they are."""
        ttft, itl = np.frombuffer(self._ttft), np.frombuffer(self._itl)
        duration = self.end_s - self.start_s
        energy = {name: totals.energy_j for name, totals in instances.items()}
        total = sum(energy.values())
        by_phase = {
            phase: sum(t.energy_j for t in instances.values() if t.phase == phase) for phase in ("prefill", "decode")
        }
        completed = len(ttft)
        return {
            "source": self.source,
            "requests": {
                "submitted": self.submitted,
                "completed": completed,
                "failed": self.failed,
                "unfinished": self.unfinished,
            },
            "start_s": self.start_s,
            "end_s": self.end_s,
            "duration_s": duration,
            "slo": {"ttft_ms": self.slo.ttft_s * 1e3, "itl_ms": self.slo.itl_s * 1e3},
            "ttft_attainment": _share(int((ttft <= self.slo.ttft_s).sum()), self.submitted),
            "itl_attainment": _share(int((itl <= self.slo.itl_s).sum()) + self._itl_free, self.submitted),
            "token_itl_attainment": _share(self.gaps_in_slo, self.gaps),
            "joint_attainment": _share(self._joint, self.submitted),
            "ttft_ms": _distribution(ttft),
            "itl_ms": _distribution(itl),
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
            **extra,
        }


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _distribution(seconds: np.ndarray[Any, np.dtype[np.float64]]) -> dict[str, float | None]:
    if not len(seconds):
        return dict.fromkeys(("mean", "p50", "p90", "p99"))
    p50, p90, p99 = np.percentile(seconds, [50, 90, 99]) * 1e3
    return {"mean": float(seconds.mean() * 1e3), "p50": float(p50), "p90": float(p90), "p99": float(p99)}
