"""Latencies counted in bounded memory."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

FINE_S = tuple(1e-6 * 10 ** (step / 20) for step in range(141))
"""Bounds of bins that each are 12 % wide, from 1 us to 10 s: quantiles to 12 %."""


class LatencyHistogram:
    """Counts latencies.

    Args:
        bounds_s: upper bounds of the bins, ascending; what is longer has a bin of its own.
    """

    def __init__(self, bounds_s: Sequence[float] = FINE_S) -> None:
        self.bounds_s = bounds_s
        self.counts = [0] * (len(bounds_s) + 1)
        self.total = 0
        self.sum_s = self.max_s = 0.0

    def add(self, latency_s: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds_s, latency_s)] += 1
        self.total += 1
        self.sum_s += latency_s
        self.max_s = max(self.max_s, latency_s)

    def quantile_s(self, share: float) -> float | None:
        """Upper bound of the latency that this share of all do not exceed; None if there are none."""
        if not self.total:
            return None
        seen, wanted = 0, math.ceil(share * self.total)
        for bound_s, number in zip([*self.bounds_s, math.inf], self.counts, strict=True):
            seen += number
            if seen >= wanted:
                return min(bound_s, self.max_s)
        return self.max_s

    def summary_ms(self) -> dict[str, float | None]:
        """Number, median, 99th percentile and maximum, ms; None where there are none."""
        quantiles = {
            "p50": self.quantile_s(0.5),
            "p99": self.quantile_s(0.99),
            "max": self.max_s if self.total else None,
        }
        told = {name: None if value is None else round(value * 1e3, 4) for name, value in quantiles.items()}
        return {"count": self.total, **told}
