"""How well a mean over repeated runs or measurements is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

CONFIDENCE = 0.95


def half_width(numbers: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of their mean (Student's t); infinite for a single number."""
    from scipy.special import stdtrit

    count = len(numbers)
    if count < 2:
        return math.inf
    mean = math.fsum(numbers) / count
    variance = math.fsum((number - mean) ** 2 for number in numbers) / (count - 1)
    return float(stdtrit(count - 1, 0.5 + CONFIDENCE / 2)) * math.sqrt(variance / count)
