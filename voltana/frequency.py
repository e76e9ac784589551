"""Frequency controllers: one instance, one decision per iteration.

A controller is built with what it asks for by name (see `voltana.build`) and the parameters of its YAML file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from math import ceil
from statistics import median

from voltana import checks
from voltana.ecopred import EcoPred, decode_bin
from voltana.state import Decision, LoadSnapshot, Phase, Slo


class StaticClock:
    """One clock for the whole run; `max` is the highest the GPU has."""

    def __init__(self, clocks_mhz: Sequence[int], *, clock_mhz: int | str = "max") -> None:
        chosen = clocks_mhz[-1] if clock_mhz == "max" else checks.clock("clock_mhz", clock_mhz, clocks_mhz)  # type: ignore[arg-type]
        self._decision = Decision(chosen)

    def decide(self, load: LoadSnapshot) -> Decision:
        """Answer with the clock."""
        return self._decision


class EcoFreq:
    """The published per-iteration rule: the lowest clock whose predicted latency meets the budget.

    In this order (VoltanaLLM, arXiv 2509.04827, and its released controller):

    1. arrivals over the last `rate_window_s` above a threshold: highest level;
    2. no iteration to decide for: keep the clock, lowest level after `idle_s` of it;
    3. requests waiting behind the batch: highest level;
    4. else the lowest level whose predicted latency is within the budget, highest if none is.

    The budget is the ITL objective in decode, and in prefill the TTFT objective less the longest wait of the batch;
    the objective is first scaled by `1 - margin`. The release loosens it instead: its preset has margin -0.35.

    Args:
        levels_mhz: clocks to choose from.
        margin: share of the objective held back; below 1.
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
        levels_mhz: Sequence[int] = (1005, 1410),
        margin: float = 0.0,
        interval_s: float = 0.0,
        rate_window_s: float = 1.0,
        max_requests_per_s: float | None = None,
        max_tokens_per_s: float | None = None,
        idle_s: float = 5.0,
    ) -> None:
        self._levels = checks.levels("levels_mhz", levels_mhz, clocks_mhz)
        scale = 1 - checks.number("margin", margin, above=-10, high=0.99)
        self._objective_s = scale * (slo.ttft_s if phase == "prefill" else slo.itl_s)
        self._latency = _level_latency(phase, predictor, self._levels)
        self._interval_s = checks.number("interval_s", interval_s, low=0)
        self._idle_s = checks.number("idle_s", idle_s, above=0)
        self._surge = SurgeGuard(rate_window_s, max_requests_per_s, max_tokens_per_s)
        self._batches: list[int] = []
        self._tokens: list[int] = []
        self._decided_s = float("-inf")
        self._last_iteration_s = float("-inf")

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rules of the class."""
        surging = self._surge.above_threshold(load)
        if load.batch_size == 0:
            return self._decide_idle(load, surging)
        self._last_iteration_s = load.time_s
        self._batches.append(load.batch_size)
        self._tokens.append(load.batch_tokens)
        if load.time_s - self._decided_s < self._interval_s:
            return Decision(load.clock_mhz, self._idle_s)
        batch, tokens = _median(self._batches), _median(self._tokens)
        self._forget()
        self._decided_s = load.time_s
        if surging or load.queued:
            return Decision(self._levels[-1], self._idle_s)
        return Decision(self._lowest_within(self._objective_s - load.longest_wait_s, batch, tokens), self._idle_s)

    def _decide_idle(self, load: LoadSnapshot, surging: bool) -> Decision:
        if surging:
            return Decision(self._levels[-1], self._idle_s)
        idle = load.time_s - self._last_iteration_s
        if idle >= self._idle_s - 1e-9:
            self._forget()
            return Decision(self._levels[0])
        return Decision(load.clock_mhz, self._idle_s - idle)

    def _forget(self) -> None:
        self._batches.clear()
        self._tokens.clear()

    def _lowest_within(self, budget_s: float, batch: float, tokens: float) -> int:
        for level, clock in enumerate(self._levels):
            if self._latency(level, batch, tokens) <= budget_s:
                return clock
        return self._levels[-1]


class SurgeGuard:
    """Tells when arrivals over a sliding window exceed a threshold."""

    def __init__(self, window_s: float, max_requests_per_s: float | None, max_tokens_per_s: float | None) -> None:
        self._window_s = checks.number("rate_window_s", window_s, above=0)
        self._max_requests = _threshold("max_requests_per_s", max_requests_per_s)
        self._max_tokens = _threshold("max_tokens_per_s", max_tokens_per_s)
        self._on = not (max_requests_per_s is None and max_tokens_per_s is None)
        self._seen: deque[tuple[float, int, int]] = deque([(0.0, 0, 0)])

    def above_threshold(self, load: LoadSnapshot) -> bool:
        """Take a snapshot into account and judge the window that ends with it."""
        if not self._on:
            return False
        self._seen.append((load.time_s, load.arrived_requests, load.arrived_tokens))
        while len(self._seen) > 1 and self._seen[1][0] <= load.time_s - self._window_s:
            self._seen.popleft()
        _, requests, tokens = self._seen[0]
        return (
            load.arrived_requests - requests > self._max_requests * self._window_s
            or load.arrived_tokens - tokens > self._max_tokens * self._window_s
        )


def _threshold(name: str, value: float | None) -> float:
    return float("inf") if value is None else checks.number(name, value, above=0)


def _median(values: list[int]) -> float:
    return values[0] if len(values) == 1 else median(values)


def _level_latency(phase: Phase, predictor: EcoPred, levels_mhz: Sequence[int]) -> Callable[[int, float, float], float]:
    """Predicted latency (s) of a batch at a level, with the coefficients looked up once."""
    if phase == "prefill":
        lines = [predictor.prefill_line(clock) for clock in levels_mhz]

        def prefill(level: int, batch: float, tokens: float) -> float:
            intercept, per_token = lines[level]
            return max(0.0, intercept + per_token * tokens)

        return prefill
    planes = [predictor.decode_planes(clock) for clock in levels_mhz]

    def decode(level: int, batch: float, tokens: float) -> float:
        intercept, per_request, per_token = planes[level][decode_bin(ceil(batch))]
        return max(0.0, intercept + per_request * batch + per_token * tokens)

    return decode
