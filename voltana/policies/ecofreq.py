"""Frequency controllers: one instance, one decision per iteration.

A controller is built with what it asks for by name (see `voltana.policies.build`) and the parameters of its YAML file.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from statistics import median

from voltana import checks
from voltana.prediction.ecopred import EcoPred
from voltana.state import Decision, LoadSnapshot, Phase, Slo

TIME_RESOLUTION_S = 1e-9
"""Two times closer than this are the same."""

TOKEN_RESOLUTION = 1e-12
"""A promise ends this share early, so that rounding cannot make it last too long."""


class EcoFreq:
    """The published per-iteration rule: the lowest clock whose predicted latency meets the budget.

    In this order (VoltanaLLM, arXiv 2509.04827, and its released controller):

    1. arrivals over the last `rate_window_s` above a threshold: highest level;
    2. no iteration to decide for: keep the clock, lowest level at the start and after `idle_s` of it;
    3. requests waiting behind the batch: highest level;
    4. else the lowest level whose predicted latency is within the budget, highest if none is.

    The budget is the ITL objective in decode, and in prefill the TTFT objective less the longest wait of the batch;
    the objective is first scaled by `1 - margin`. The release loosens it instead: its preset has margin -0.35, and
    objectives of its own.

    Args:
        levels_mhz: clocks to choose from, a list, or a range like 1005..1410 of all the GPU has.
        margin: share of the objective held back; below 1.
        objective_ms: controls to this objective; None: to the run's.
        interval_s: decide at most this often, from the medians of batch size and tokens since the last decision;
            0 decides at every iteration.
        rate_window_s: window of rule 1.
        max_requests_per_s, max_tokens_per_s: thresholds of rule 1 on arriving requests and prompt tokens; None: off.
        idle_s: time without iterations after which rule 2 goes to the lowest level.
    """

    def __init__(
        self,
        phase: Phase,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        *,
        levels_mhz: Sequence[int] | str,
        margin: float,
        objective_ms: float | None,
        interval_s: float,
        rate_window_s: float,
        max_requests_per_s: float | None,
        max_tokens_per_s: float | None,
        idle_s: float,
    ) -> None:
        self._levels = checks.levels("levels_mhz", levels_mhz, clocks_mhz)
        self._objective_s = checks.budget_s(slo.ttft_s if phase == "prefill" else slo.itl_s, margin, objective_ms)
        self._latency = predictor.levels(phase, self._levels)
        self._interval_s = checks.number("interval_s", interval_s, low=0)
        self._idle_s = checks.number("idle_s", idle_s, above=0)
        self._surge = SurgeGuard(rate_window_s, max_requests_per_s, max_tokens_per_s)
        self._batches: list[int] = []
        self._tokens: list[int] = []
        self._decided_s = -math.inf
        self._promises = self._interval_s == 0 and not self._surge.on  # nothing matters but the snapshot at hand
        self._top = Decision(self._levels[-1], self._idle_s, math.inf if self._promises else 0.0)

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rules of the class."""
        surging = self._surge.on and self._surge.above_threshold(load)
        if load.batch_size == 0:
            return self._decide_idle(load, surging)
        batch, tokens = float(load.batch_size), float(load.batch_tokens)
        if self._interval_s:
            self._batches.append(load.batch_size)
            self._tokens.append(load.batch_tokens)
            if load.time_s - self._decided_s < self._interval_s:
                return Decision(load.clock_mhz, self._idle_s)
            batch, tokens = median(self._batches), median(self._tokens)
            self._batches.clear()
            self._tokens.clear()
            self._decided_s = load.time_s
        if surging or load.queued:
            return self._top
        return self._lowest_within(self._objective_s - load.longest_wait_s, batch, tokens)

    def _decide_idle(self, load: LoadSnapshot, surging: bool) -> Decision:
        if surging:
            return Decision(self._levels[-1], self._idle_s)
        if load.idle_s >= self._idle_s - TIME_RESOLUTION_S:
            self._batches.clear()
            self._tokens.clear()
            return Decision(self._levels[0])
        return Decision(load.clock_mhz, self._idle_s)

    def _lowest_within(self, budget_s: float, batch: float, tokens: float) -> Decision:
        """The decision, and up to how many tokens it holds: no lower level comes to fit, and this one still does."""
        if budget_s < 0:
            return self._top
        holds_below, chosen = math.inf, self._levels[-1]
        for clock, (fixed_s, per_request_s, per_token_s) in zip(
            self._levels, self._latency.at(math.ceil(batch)), strict=True
        ):
            spare_s = budget_s - fixed_s - per_request_s * batch
            fits = per_token_s * tokens <= spare_s
            if per_token_s > 0 if fits else per_token_s < 0:
                holds_below = min(holds_below, spare_s / per_token_s * (1 - TOKEN_RESOLUTION))
            if fits:
                chosen = clock
                break
        return Decision(chosen, self._idle_s, holds_below if self._promises else 0.0)


class SurgeGuard:
    """Tells when arrivals over a sliding window exceed a threshold."""

    def __init__(self, window_s: float, max_requests_per_s: float | None, max_tokens_per_s: float | None) -> None:
        self._window_s = checks.number("rate_window_s", window_s, above=0)
        self._max_requests = _threshold("max_requests_per_s", max_requests_per_s)
        self._max_tokens = _threshold("max_tokens_per_s", max_tokens_per_s)
        self.on = not (max_requests_per_s is None and max_tokens_per_s is None)
        self._seen: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)])

    def above_threshold(self, load: LoadSnapshot) -> bool:
        """Take a snapshot into account and judge the window that ends with it."""
        self._seen.append((load.time_s, load.arrived_requests, load.arrived_tokens))
        while len(self._seen) > 1 and self._seen[1][0] <= load.time_s - self._window_s:
            self._seen.popleft()
        _, requests, tokens = self._seen[0]
        return (
            load.arrived_requests - requests > self._max_requests * self._window_s
            or load.arrived_tokens - tokens > self._max_tokens * self._window_s
        )


def _threshold(name: str, value: float | None) -> float:
    return math.inf if value is None else checks.number(name, value, above=0)
