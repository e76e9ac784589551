"""Random latency: every iteration takes its time times a log-normal factor of median 1, at the same power."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random


def latency_noise(seed: int, name: str, deviation: float) -> Callable[[], float] | None:
    """What draws the factor of an instance's next iteration; None where there is no noise.

    Args:
        seed: of the run.
        name: of the instance, so that each has a stream of its own.
        deviation: standard deviation of the factor's logarithm.
    """
    if deviation == 0:
        return None
    draw = Random(f"{seed} {name}").gauss
    return lambda: math.exp(draw(0.0, deviation))
