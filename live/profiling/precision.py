"""How well a mean over repeated measurements is known."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t as student

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> float:
    """Half width of the 95 % interval of the mean relative to it (Student's t); infinite for a single value."""
    if len(values) < 2:
        return math.inf
    factor = float(student.ppf(0.5 + CONFIDENCE / 2, len(values) - 1))
    return factor * spread(values) / math.sqrt(len(values))


def spread(values: Sequence[float]) -> float:
    """Standard deviation relative to the mean."""
    return statistics.stdev(values) / statistics.fmean(values) if len(values) > 1 else 0.0
