"""How many instances are in service, over minutes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from voltana import checks
from voltana.policies.ecofreq import TIME_RESOLUTION_S
from voltana.prediction.ecopred import EcoPred
from voltana.state import ClusterLoad, Placement, Slo


class Trend:
    """A rate and how it changes: exponential smoothing with a trend (C. C. Holt, Forecasting seasonals and trends by
    exponentially weighted moving averages, 1957).

    Args:
        memory_s: time constant of both.
    """

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._time_s: float | None = None
        self._total = 0
        self._level: float | None = None
        self._slope = 0.0

    def see(self, time_s: float, total: int) -> None:
        """So many have come up to now."""
        last_s, last = self._time_s, self._total
        self._time_s, self._total = time_s, total
        passed_s = 0.0 if last_s is None else time_s - last_s
        if passed_s <= TIME_RESOLUTION_S:
            return
        rate, weight = (total - last) / passed_s, -math.expm1(-passed_s / self._memory_s)
        if self._level is None:
            self._level = rate
            return
        expected = self._level + self._slope * passed_s
        level = expected + weight * (rate - expected)
        self._slope += weight * ((level - self._level) / passed_s - self._slope)
        self._level = level

    def rate(self, ahead_s: float) -> float:
        """Per second, so many seconds from now."""
        return max(0.0, (self._level or 0.0) + self._slope * ahead_s)


class LoadPlanner:
    """The fewest instances that bear the load at the knee of the voltage curve, each phase by itself.

    Decode: the requests there are now, spread evenly, take an iteration within `budget` of the ITL objective and
    `kv_share` of the caches. Prefill: prompt tokens per second, in batches of `batch_tokens`, keep instances busy for
    `utilisation` of their time, and those waiting can be computed within the TTFT objective. Both are scaled by how
    arrivals are expected to change within `ahead_s`. An instance more serves at once, one less after `hold_s`.

    Args:
        knee_mhz: the clock up to which speed is cheap.
        budget, kv_share, utilisation, batch_tokens: see above.
        memory_s: time constant of arrival rates and their trends.
        hold_s: for so long an instance must not have been needed.
        ahead_s: how far the trend is taken to go on; 0: the load of now.
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
        kv_share: float,
        utilisation: float,
        batch_tokens: int,
        memory_s: float,
        hold_s: float,
        ahead_s: float,
    ) -> None:
        self._knee_mhz = checks.clock("knee_mhz", knee_mhz, clocks_mhz)
        self._slo = slo
        self._predictor = predictor
        self._budget_s = slo.itl_s * checks.number("budget", budget, above=0, high=1)
        self._kv_tokens = kv_capacity_tokens * checks.number("kv_share", kv_share, above=0, high=1)
        tokens = checks.number("batch_tokens", batch_tokens, low=1)
        utilisation = checks.number("utilisation", utilisation, above=0, high=1)
        self._tokens_per_s = tokens / max(predictor.prefill_s(tokens, self._knee_mhz), 1e-9)
        self._bears_per_s = utilisation * self._tokens_per_s
        memory_s = checks.number("memory_s", memory_s, above=0)
        self._requests, self._tokens = Trend(memory_s), Trend(memory_s)
        self._ahead_s = checks.number("ahead_s", ahead_s, low=0)
        self._hold_s = checks.number("hold_s", hold_s, low=0)
        self._needed: list[tuple[float, Placement]] = []

    def plan(self, load: ClusterLoad) -> Placement:
        """Apply the rule of the class."""
        self._requests.see(load.time_s, load.arrived_requests)
        self._tokens.see(load.time_s, load.arrived_tokens)
        needed = Placement(self._prefill(load), self._decode(load))
        since_s = load.time_s - self._hold_s
        self._needed = [each for each in self._needed if each[0] > since_s - TIME_RESOLUTION_S]
        self._needed.append((load.time_s, needed))
        if load.time_s < self._hold_s:
            return Placement(load.prefill.instances, load.decode.instances)
        return Placement(*(max(counts) for counts in zip(*(each for _, each in self._needed), strict=True)))

    def _prefill(self, load: ClusterLoad) -> int:
        steady = self._tokens.rate(self._ahead_s) / self._bears_per_s
        waiting = load.prefill.tokens / (self._tokens_per_s * self._slo.ttft_s)
        return max(1, min(load.prefill.instances, math.ceil(max(steady, waiting))))

    def _decode(self, load: ClusterLoad) -> int:
        now = self._requests.rate(0.0)
        growth = self._requests.rate(self._ahead_s) / now if now else 1.0
        requests, tokens = load.decode.requests * growth, load.decode.tokens * growth
        for count in range(1, load.decode.instances):
            each = tokens / count
            seconds = self._predictor.decode_s(max(1, math.ceil(requests / count)), each, self._knee_mhz)
            if seconds <= self._budget_s and each <= self._kv_tokens:
                return count
        return load.decode.instances
