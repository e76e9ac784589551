"""How well a mean over repeated measurements is known."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from voltana.intervals import half_width


def interval(values: Sequence[float]) -> float:
    """Half width of the 95 % interval of the mean relative to it (Student's t); infinite for a single value."""
    return half_width(values) / statistics.fmean(values)


def spread(values: Sequence[float]) -> float:
    """Standard deviation relative to the mean."""
    return statistics.stdev(values) / statistics.fmean(values) if len(values) > 1 else 0.0
