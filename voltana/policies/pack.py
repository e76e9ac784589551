"""Decode on as few instances as the objective allows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from voltana import checks
from voltana.prediction.ecopred import EcoPred
from voltana.state import InstanceLoad, RequestInfo, Slo


class Pack:
    """Requests go to the fewest instances that hold them all, and among those to the one with the fewest requests.

    An iteration reads all weights whatever its batch, so the same work in fewer, fuller iterations needs less energy.
    The instances in use are the first k: k is the least number for which the predicted iteration of an even share, at
    the knee, takes no longer than `budget` of the ITL objective, and the KV tokens fill no more than `kv_share` of the
    caches. Fewer than now only if that leaves `hysteresis` of both. The others get nothing, run empty and idle.

    Args:
        knee_mhz: the clock up to which speed is cheap.
        budget: share of the ITL objective.
        hysteresis: share of the budget.
        kv_share: of the KV cache.
    """

    def __init__(
        self,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        kv_capacity_tokens: int,
        *,
        knee_mhz: int,
        budget: float,
        hysteresis: float,
        kv_share: float,
    ) -> None:
        self._knee_mhz = checks.clock("knee_mhz", knee_mhz, clocks_mhz)
        self._budget_s = slo.itl_s * checks.number("budget", budget, above=0, high=1)
        self._down = 1 - checks.number("hysteresis", hysteresis, low=0, high=0.9)
        self._kv_tokens = kv_capacity_tokens * checks.number("kv_share", kv_share, above=0, high=1)
        self._predictor = predictor
        self._active = 1

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        """Apply the rule of the class."""
        requests = sum(load.requests for load in candidates) + 1
        tokens = sum(load.tokens for load in candidates) + request.prompt_tokens
        active = min(self._active, len(candidates))
        while active < len(candidates) and not self._fits(requests, tokens, active, 1.0):
            active += 1
        while active > 1 and self._fits(requests, tokens, active - 1, self._down):
            active -= 1
        self._active = active
        return min(range(active), key=lambda index: candidates[index].requests)

    def _fits(self, requests: int, tokens: int, instances: int, share: float) -> bool:
        """Whether so many instances hold all requests, within a share of what they may."""
        each = tokens / instances
        seconds = self._predictor.decode_s(math.ceil(requests / instances), each, self._knee_mhz)
        return seconds <= share * self._budget_s and each <= share * self._kv_tokens
