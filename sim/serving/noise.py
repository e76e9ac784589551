"""What is random about a plant: latencies of iterations, and what a predictor of output lengths tells."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

from voltana.traces import Request


def latency_noise(seed: int, name: str, deviation: float) -> Callable[[], float] | None:
    """What draws the log-normal factor, of median 1, on an instance's next iteration; None where there is no noise.

    Power is not changed by it.

    Args:
        seed: of the run.
        name: of the instance, so that each has a stream of its own.
        deviation: standard deviation of the factor's logarithm.
    """
    if deviation == 0:
        return None
    draw = Random(f"{seed} {name}").gauss
    return lambda: math.exp(draw(0.0, deviation))


def length_predictor(seed: int, error: float) -> Callable[[Request], float]:
    """A predictor of output lengths that is as wrong as stated, whatever it may be built on.

    Args:
        seed: of the run.
        error: relative standard deviation of the prediction, which is log-normal with the true length as its mean.

    Returns:
        What tells the expected output tokens of a request, always the same for the same request.
    """
    if error == 0:
        return lambda request: float(request.output_tokens)
    deviation = math.sqrt(math.log1p(error * error))

    def expected(request: Request) -> float:
        draw = Random(seed << 32 ^ request.request_id).gauss(-deviation * deviation / 2, deviation)
        return request.output_tokens * math.exp(draw)

    return expected
