"""What decode will have to bear, and what it can."""

from __future__ import annotations

import math

from voltana.policies.ecofreq import TIME_RESOLUTION_S
from voltana.prediction.ecopred import BIN_ENDS, EcoPred
from voltana.state import LoadSnapshot

KNOWN_AFTER = 30
"""Requests that must have ended before their lengths tell anything."""


class Demand:
    """Output tokens per second that an instance will have to make, once as many requests end as come.

    That is arrivals per second times the mean length of an answer. Nobody knows the lengths of those that run, and
    those that have ended are the short ones; so the mean is taken as all tokens made, whoever made them, per request
    that ended: the maximum-likelihood estimate from censored lives with a constant hazard (B. Epstein, M. Sobel, Life
    Testing, Journal of the American Statistical Association 48, 1953).

    Args:
        memory_s: time constant of the arrival rate.
    """

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._last: LoadSnapshot | None = None
        self._per_s = 0.0
        self._known_s = 0.0
        self._made = 0

    def see(self, load: LoadSnapshot) -> None:
        """Take a snapshot; between two of them the batch was that of the earlier one."""
        last, self._last = self._last, load
        if last is None:
            return
        self._made += last.batch_size * (load.iterations - last.iterations)
        passed_s = load.time_s - last.time_s
        if passed_s > TIME_RESOLUTION_S:
            fade = math.exp(-passed_s / self._memory_s)
            arrived = load.arrived_requests - last.arrived_requests
            self._per_s = self._per_s * fade + arrived / passed_s * (1 - fade)
            self._known_s += passed_s

    @property
    def tokens_per_s(self) -> float:
        """The estimate; 0 while too little is known."""
        load = self._last
        ended = 0 if load is None else load.arrived_requests - load.batch_size - load.queued
        if ended < KNOWN_AFTER:
            return 0.0
        per_s = self._per_s / -math.expm1(-self._known_s / self._memory_s)
        return per_s * self._made / ended


def capacity(predictor: EcoPred, clock_mhz: int, tokens_per_request: float, limit_s: float) -> float:
    """Output tokens per second that decode makes with the largest batch whose iteration keeps to a limit.

    Args:
        predictor: EcoPred.
        clock_mhz: of the instance.
        tokens_per_request: KV tokens, the mean.
        limit_s: of an iteration.
    """
    most = 0.0
    for end, (fixed_s, per_request_s, per_token_s) in zip(BIN_ENDS, predictor.decode_planes(clock_mhz), strict=True):
        each_s = per_request_s + per_token_s * tokens_per_request
        batch = end if fixed_s + each_s * end <= limit_s else (limit_s - fixed_s) / each_s
        if batch > 0:
            most = max(most, batch / max(fixed_s + each_s * batch, 1e-9))
        if batch < end:
            break
    return most
