"""GreenLLM's clock rules (arXiv 2508.16449): drain the prefill queue in time, follow load and latency in decode."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence

from voltana import checks
from voltana.policies.ecofreq import TIME_RESOLUTION_S
from voltana.policies.power_model import CubicPower
from voltana.prediction.ecopred import BIN_ENDS, EcoPred
from voltana.state import Decision, LoadSnapshot, Slo


class GreenLlmPrefill:
    """The least-energy clock at which the queue is drained in time.

    1. Work: the batch about to run and all that waits behind it, as one batch. Time left: the TTFT objective times
       `1 - margin`, less the longest wait in the batch.
    2. Of the clocks at which the work is predicted to be done in that time, the one of least energy; the highest clock
       if there is none. Energy counts the busy time at cubic power (see `CubicPower`) and the rest of the time left at
       idle power: ``t P(f) + (D - t) P_idle``.
    3. Idle for `idle_s`, and before the first work: the lowest clock.

    Source: the prefill optimiser of GreenLLM, which fits t = a L^2 + b L + c to a prompt of length L. Here latency
    comes from EcoPred's lines over the tokens of a batch, so a = 0: the square is attention within one prompt, small
    beside the matrix products up to the 3000 tokens of chat prompts, and a batch of many prompts has no single L.
    Further deviations: EcoPred has a line per clock, where GreenLLM scales one fit by 1/f; the static share of the
    power law is given, not fitted; prompts are not routed into queues by length.
    **Fitted by us**: `min_clock_mhz` and `margin`.

    Args:
        min_clock_mhz: the lowest clock to choose; every supported clock from it up is a candidate.
        margin: share of the objective held back, 0 to below 1.
        static_share: share of busy power that the clock does not change.
        idle_share: power of an idle GPU over busy power at the highest clock.
        idle_s: time without iterations after which the clock goes to the lowest.
    """

    def __init__(
        self,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        *,
        min_clock_mhz: int,
        margin: float,
        static_share: float,
        idle_share: float,
        idle_s: float,
    ) -> None:
        self._clocks = clocks_from(min_clock_mhz, clocks_mhz)
        self._objective_s = slo.ttft_s * (1 - checks.number("margin", margin, low=0, high=0.99))
        self._idle_share = checks.number("idle_share", idle_share, low=0, high=1)
        self._idle_s = checks.number("idle_s", idle_s, above=0)
        self._lines = [predictor.prefill_line(clock) for clock in self._clocks]
        power = CubicPower(clocks_mhz, static_share)
        self._power = [power.at(clock) for clock in self._clocks]

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rules of the class."""
        if load.batch_size == 0:
            if load.idle_s >= self._idle_s - TIME_RESOLUTION_S:
                return Decision(self._clocks[0])
            return Decision(load.clock_mhz, self._idle_s)
        return Decision(self._least_energy(load), self._idle_s)

    def _least_energy(self, load: LoadSnapshot) -> int:
        tokens = load.batch_tokens + load.queued_tokens
        left_s = self._objective_s - load.longest_wait_s
        least, chosen = math.inf, self._clocks[-1]
        for clock, (fixed_s, per_token_s), power in zip(self._clocks, self._lines, self._power, strict=True):
            busy_s = fixed_s + per_token_s * tokens
            energy = busy_s * power + (left_s - busy_s) * self._idle_share
            if busy_s <= left_s and energy < least:
                least, chosen = energy, clock
        return chosen


class GreenLlmDecode:
    """Two loops: throughput picks a band of clocks from a table, tail latency moves the clock within the band.

    1. Every `window_s`, the tokens per second of the window look up a band. It is taken after `hysteresis` windows in a
       row that ask for another band than the present one; the clock then goes to the nearest of the new band.
    2. Every `step_s`, the 95th percentile of the time between tokens over the last `window_s` is compared with the ITL
       objective: above `high` times it the clock rises by one step of the GPU (15 MHz), below `low` times it falls by
       one, within the band.
    3. Idle for `idle_s`: the lowest clock, and the lowest band. Before the first work: the same.

    The table has a band per level of `bands_mhz`: the throughput that EcoPred says its clock sustains within the
    objective, at `tokens_per_request` KV tokens a request. The band of a throughput is the lowest that sustains it; it
    reaches down to the level below and up to the level above, so neighbours overlap.

    Source: the decode controller of GreenLLM (windows of 200 ms and 20 ms, 3 windows of hysteresis, 15 MHz steps).
    Deviations: its table is measured offline, ours is computed from EcoPred, which was; the overlap of bands and the
    thresholds around the objective were not at hand. An iteration often takes longer than `step_s`, and a clock can
    only be chosen at an iteration: then the loop turns once per iteration. **Fitted by us**:
    `tokens_per_request`, `low` and `high`.

    Args:
        bands_mhz: centres of the bands.
        tokens_per_request: mean KV tokens of a running request that the table assumes.
        window_s: of the outer loop, and memory of the inner.
        hysteresis: windows, at least 1.
        step_s: of the inner loop.
        low, high: the inner loop is at rest between these shares of the objective.
        idle_s: time without iterations after which the clock goes to the lowest.
    """

    def __init__(
        self,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        *,
        bands_mhz: Sequence[int],
        tokens_per_request: float,
        window_s: float,
        hysteresis: int,
        step_s: float,
        low: float,
        high: float,
        idle_s: float,
    ) -> None:
        self._bands = checks.levels("bands_mhz", bands_mhz, clocks_mhz)
        self._clocks = clocks_from(self._bands[0], clocks_mhz, self._bands[-1])
        kv = checks.number("tokens_per_request", tokens_per_request, low=1)
        self._sustains = [sustained_tokens_per_s(predictor, clock, kv, slo.itl_s) for clock in self._bands]
        self._window_s = checks.number("window_s", window_s, above=0)
        self._hysteresis = checks.number("hysteresis", hysteresis, low=1)
        self._step_s = checks.number("step_s", step_s, low=0)
        self._high_s = slo.itl_s * checks.number("high", high, above=0)
        self._low_s = slo.itl_s * checks.number("low", low, low=0, high=high)
        self._idle_s = checks.number("idle_s", idle_s, above=0)
        self._rest(0.0)

    def _rest(self, now_s: float) -> None:
        """Begin anew at the lowest clock, with nothing remembered."""
        self._place = self._band = self._astray = self._tokens = 0
        self._window_began_s = self._stepped_s = now_s
        self._gaps: deque[tuple[float, float]] = deque()
        self._last: LoadSnapshot | None = None

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rules of the class."""
        if load.batch_size == 0:
            if load.idle_s >= self._idle_s - TIME_RESOLUTION_S:
                self._rest(load.time_s)
            return Decision(self._clocks[self._place], None if self._last is None else self._idle_s)
        self._remember(load)
        self._turn_outer_loop(load.time_s)
        self._turn_inner_loop(load.time_s)
        return Decision(self._clocks[self._place], self._idle_s)

    def _remember(self, load: LoadSnapshot) -> None:
        """Take the iterations since the last snapshot into account: their tokens and the gaps between those."""
        last, self._last = self._last, load
        if last is None or load.iterations == last.iterations:
            return
        iterations = load.iterations - last.iterations
        self._tokens += iterations * last.batch_size
        self._gaps.append((load.time_s, (load.busy_s - last.busy_s) / iterations))
        while self._gaps[0][0] < load.time_s - self._window_s and len(self._gaps) > 1:
            self._gaps.popleft()

    def _turn_outer_loop(self, now_s: float) -> None:
        elapsed_s = now_s - self._window_began_s
        if elapsed_s < self._window_s - TIME_RESOLUTION_S:
            return
        wanted = min(bisect_left(self._sustains, self._tokens / elapsed_s), len(self._bands) - 1)
        self._astray = self._astray + 1 if wanted != self._band else 0
        if self._astray >= self._hysteresis:
            self._band, self._astray = wanted, 0
        self._tokens, self._window_began_s = 0, now_s

    def _turn_inner_loop(self, now_s: float) -> None:
        if self._gaps and now_s - self._stepped_s >= self._step_s - TIME_RESOLUTION_S:
            tail_s = percentile([gap for _, gap in self._gaps], 0.95)
            self._place += (tail_s > self._high_s) - (tail_s < self._low_s)
            self._stepped_s = now_s
        lowest = bisect_left(self._clocks, self._bands[max(0, self._band - 1)])
        highest = bisect_left(self._clocks, self._bands[min(len(self._bands) - 1, self._band + 1)])
        self._place = min(max(self._place, lowest), highest)


def clocks_from(lowest_mhz: int, clocks_mhz: Sequence[int], highest_mhz: int | None = None) -> tuple[int, ...]:
    """The supported clocks from one to another, the highest by default."""
    checks.clock("min_clock_mhz", lowest_mhz, clocks_mhz)
    top = clocks_mhz[-1] if highest_mhz is None else highest_mhz
    return tuple(clock for clock in clocks_mhz if lowest_mhz <= clock <= top)


def sustained_tokens_per_s(predictor: EcoPred, clock_mhz: int, tokens_per_request: float, objective_s: float) -> float:
    """The most output tokens per second that a clock makes in iterations no longer than the objective; 0 if it cannot.

    Throughput grows with the batch within each of the predictor's bins, so the largest that fits in each is looked at.
    """
    best, below = 0.0, 0
    for last, plane in zip(BIN_ENDS, predictor.decode_planes(clock_mhz), strict=True):
        per_request_s = plane.per_request_s + plane.per_token_s * tokens_per_request
        spare_s = objective_s - plane.intercept_s
        batch = last if per_request_s * last <= spare_s else math.floor(spare_s / per_request_s)
        if batch > below:
            latency_s = predictor.decode_s(batch, batch * tokens_per_request, clock_mhz)
            best = max(best, batch / latency_s) if latency_s > 0 else best
        below = last
    return best


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least a share of the values do not exceed (nearest rank)."""
    return sorted(values)[math.ceil(share * len(values)) - 1]
