"""DualScale's clock rules (arXiv 2602.18755): looking ahead over the queue in prefill, a limit on latency in decode."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from voltana import checks
from voltana.policies.ecofreq import TIME_RESOLUTION_S, TOKEN_RESOLUTION
from voltana.policies.power_model import CubicPower
from voltana.prediction.ecopred import EcoPred
from voltana.state import Decision, LoadSnapshot, Slo


class Batch(NamedTuple):
    """Known requests that will run together."""

    tokens: float
    due_s: float
    """Until when its oldest request must be served, in seconds from now."""


class DualScalePrefill:
    """Model-predictive control: plan the clocks of the next batches, use the first, plan anew at the next batch.

    1. Forecast the next `horizon` batches: the one about to run, those that the waiting requests fill in turn, then
       what arrives meanwhile, as a steady stream at the token rate of the last `rate_window_s`.
    2. Plan greedily: every batch at the lowest level; while a batch ends late, raise by one level the batch, up to
       that one, that saves most time per added energy, of equals the first. A batch that is late at the highest
       levels all the same is given up, and the ones behind it are planned for.
    3. Answer with the level of the first batch. Idle for `idle_s`, and before the first work: the lowest level.

    Late: the oldest request of the batch waits longer than the TTFT objective times `1 - margin`. Energy is predicted
    latency times power (see `CubicPower`).

    Source: the prefill controller of DualScale (horizon of 8 batches, 7 levels, greedy). Deviations: how the paper
    forecasts arrivals and in which order it is greedy was not at hand, both are ours; its fitted power model is
    replaced by a cubic law; its coarse tier (placement, base clocks) is left out. **Fitted by us**: `levels_mhz` and
    `margin`.

    Args:
        levels_mhz: clocks to choose from.
        horizon: batches to look ahead.
        max_batch_tokens: prompt tokens that a batch of the server holds.
        margin: share of the objective held back, 0 to below 1.
        rate_window_s: over which the arrival rate is measured.
        static_share: share of busy power that the clock does not change.
        idle_s: time without iterations after which the clock goes to the lowest level.
    """

    reads_requests = True

    def __init__(
        self,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        *,
        levels_mhz: Sequence[int],
        horizon: int,
        max_batch_tokens: int,
        margin: float,
        rate_window_s: float,
        static_share: float,
        idle_s: float,
    ) -> None:
        self._levels = checks.levels("levels_mhz", levels_mhz, clocks_mhz)
        self._horizon = int(checks.number("horizon", horizon, low=1, high=64))
        self._max_tokens = checks.number("max_batch_tokens", max_batch_tokens, low=1)
        self._budget_s = slo.ttft_s * (1 - checks.number("margin", margin, low=0, high=0.99))
        self._idle_s = checks.number("idle_s", idle_s, above=0)
        self._arrivals = TokenRate(checks.number("rate_window_s", rate_window_s, above=0))
        self._lines = [predictor.prefill_line(clock) for clock in self._levels]
        power = CubicPower(clocks_mhz, static_share)
        self._power = [power.at(clock) for clock in self._levels]

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rules of the class."""
        rate = self._arrivals.measure(load)
        if load.batch_size == 0:
            return self._decide_idle(load)
        return Decision(self._levels[self._plan(list(self._known_batches(load)), rate)], self._idle_s)

    def _decide_idle(self, load: LoadSnapshot) -> Decision:
        if load.idle_s >= self._idle_s - TIME_RESOLUTION_S:
            return Decision(self._levels[0])
        return Decision(load.clock_mhz, self._idle_s)

    def _known_batches(self, load: LoadSnapshot) -> Iterator[Batch]:
        """The batch about to run, then those that the waiting requests fill, first come first served."""
        yield Batch(load.batch_tokens, self._budget_s - load.longest_wait_s)
        tokens, due_s = 0, math.inf
        for request in load.waiting:
            if tokens and tokens + request.prompt_tokens > self._max_tokens:
                yield Batch(tokens, due_s)
                tokens, due_s = 0, math.inf
            tokens += request.prompt_tokens
            due_s = min(due_s, self._budget_s - request.age_s)
        if tokens:
            yield Batch(tokens, due_s)

    def _plan(self, known: Sequence[Batch], rate: float) -> int:
        """The level of the first batch, as an index."""
        top = len(self._levels) - 1
        plan = [0] * self._horizon
        given_up: set[int] = set()
        while True:
            late, tokens = self._first_late(known, rate, plan, given_up)
            if late is None:
                return plan[0]
            can_rise = [index for index in range(late + 1) if plan[index] < top]
            if can_rise:
                plan[max(can_rise, key=lambda index: self._worth(plan[index], tokens[index]))] += 1
            else:
                given_up.add(late)

    def _first_late(
        self, known: Sequence[Batch], rate: float, plan: Sequence[int], given_up: set[int]
    ) -> tuple[int | None, list[float]]:
        """Roll the plan out: the first batch that ends late, and the tokens of every batch up to there."""
        now_s, coming, coming_since_s = 0.0, 0.0, 0.0
        sizes: list[float] = []
        for index, level in enumerate(plan):
            tokens, due_s = known[index] if index < len(known) else (0.0, coming_since_s + self._budget_s)
            if index and index >= len(known) - 1:  # the last known batch has room for some who come meanwhile
                joining = min(coming, self._max_tokens - tokens)
                tokens, coming = tokens + max(0.0, joining), coming - max(0.0, joining)
            if not tokens:
                break
            sizes.append(tokens)
            started_s = now_s
            now_s += self._latency_s(level, tokens)
            if now_s > due_s and index not in given_up:
                return index, sizes
            if not coming:
                coming_since_s = started_s
            coming += rate * (now_s - started_s)
        return None, sizes

    def _latency_s(self, level: int, tokens: float) -> float:
        fixed_s, per_token_s = self._lines[level]
        return fixed_s + per_token_s * tokens

    def _worth(self, level: int, tokens: float) -> float:
        """Seconds saved per unit of energy added, when a batch rises from this level to the next."""
        before_s, after_s = self._latency_s(level, tokens), self._latency_s(level + 1, tokens)
        added = after_s * self._power[level + 1] - before_s * self._power[level]
        return (before_s - after_s) / added if added > 0 else math.inf


class TokenRate:
    """Prompt tokens that arrive per second, over a sliding window."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, int]] = deque([(0.0, 0)])

    def measure(self, load: LoadSnapshot) -> float:
        """Take a snapshot into account and return the rate over the window that ends with it."""
        self._seen.append((load.time_s, load.arrived_tokens))
        while len(self._seen) > 2 and self._seen[1][0] <= load.time_s - self._window_s:
            self._seen.popleft()
        since_s, tokens = self._seen[0]
        return (load.arrived_tokens - tokens) / max(load.time_s - since_s, self._window_s)


class DualScaleDecode:
    """The lowest clock whose predicted iteration latency keeps a headroom under the objective.

    1. KV tokens of batch and queue above `kv_high` of the capacity: highest level, so that requests leave sooner.
    2. Else the lowest level predicted to take no longer than the ITL objective times `1 - headroom`, highest if none.
    3. Idle for `idle_s`, and before the first work: the lowest level.

    Source: the decode controller of DualScale (5 % headroom, KV use high: highest clock). Deviations: the threshold of
    KV use was not at hand. **Fitted by us**: `headroom` (published: 0.05).

    Args:
        levels_mhz: clocks to choose from.
        headroom: share of the objective held back, 0 to below 1.
        kv_high: share of the KV capacity, above 0 to 1.
        idle_s: time without iterations after which the clock goes to the lowest level.
    """

    def __init__(
        self,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        kv_capacity_tokens: int,
        *,
        levels_mhz: Sequence[int],
        headroom: float,
        kv_high: float,
        idle_s: float,
    ) -> None:
        self._levels = checks.levels("levels_mhz", levels_mhz, clocks_mhz)
        self._budget_s = slo.itl_s * (1 - checks.number("headroom", headroom, low=0, high=0.99))
        self._kv_high = checks.number("kv_high", kv_high, above=0, high=1) * kv_capacity_tokens
        self._idle_s = checks.number("idle_s", idle_s, above=0)
        self._latency = predictor.levels("decode", self._levels)
        self._top = Decision(self._levels[-1], self._idle_s, math.inf)

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rules of the class."""
        if load.batch_size == 0:
            return self._decide_idle(load)
        kv_room = self._kv_high - load.queued_tokens
        if load.batch_tokens > kv_room:
            return self._top
        return self._lowest_within_budget(load, kv_room)

    def _decide_idle(self, load: LoadSnapshot) -> Decision:
        if load.idle_s >= self._idle_s - TIME_RESOLUTION_S:
            return Decision(self._levels[0])
        return Decision(load.clock_mhz, self._idle_s)

    def _lowest_within_budget(self, load: LoadSnapshot, kv_room: float) -> Decision:
        """The decision, and up to how many tokens it holds: no lower level comes to fit, and this one still does."""
        holds_below, chosen = kv_room, self._levels[-1]
        for clock, (fixed_s, per_request_s, per_token_s) in zip(
            self._levels, self._latency.at(load.batch_size), strict=True
        ):
            spare_s = self._budget_s - fixed_s - per_request_s * load.batch_size
            fits = per_token_s * load.batch_tokens <= spare_s
            if per_token_s > 0 if fits else per_token_s < 0:
                holds_below = min(holds_below, spare_s / per_token_s)
            if fits:
                chosen = clock
                break
        return Decision(chosen, self._idle_s, holds_below * (1 - TOKEN_RESOLUTION))
