"""Window control: one clock for the next few seconds, from the mean load of the last few (DynamoLLM)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from voltana import checks
from voltana.policies.ecofreq import TIME_RESOLUTION_S
from voltana.policies.power_model import CubicPower
from voltana.prediction.ecopred import EcoPred
from voltana.state import Decision, LoadSnapshot, Phase, Slo

MAX_LATENCY_S = 1e6
"""Stands for a load that a clock cannot carry at all."""


class Window:
    """Every `interval_s`, the least-energy clock whose predicted latency meets the objective at the window's mean load.

    1. Before the first window ends: the highest level.
    2. At the first iteration after a window's end, with the load of the time since the last choice: of the levels
       predicted to meet the objective times `1 - margin`, the one of least energy (busy time times power, see
       `CubicPower`); if none does, the highest level.
    3. Between, the clock stays whatever happens. Idle for `interval_s`: lowest level.

    Predicted latency. Decode: of an iteration of the mean batch size and the mean KV tokens. Prefill: a request waits
    for the batch under way, then runs in the next, so twice the batch latency L. A batch holds what arrived during the
    one before it: at r prompt tokens per second and a line of c0 + c1 tokens, L = c0 / (1 - c1 r); but no batch is
    smaller than one mean prompt, and r >= 1 / c1 cannot be carried. Busy time: in decode that of an iteration, in
    prefill that of prompts one by one, at most all the time.

    Source: the instance manager of DynamoLLM (HPCA'25, arXiv 2408.00741), which every 5 s looks up a profile of energy
    and latency over load and frequency. Deviations: the profile is EcoPred plus a cubic power law instead of tables of
    measured energy; the next window's load is the last one's; its pools by request type, resizing and resharding,
    and its emergency handling of backlogs are left out: only the clock rule is compared. **Fitted by us**: `margin`.

    Args:
        levels_mhz: clocks to choose from.
        interval_s: length of a window.
        margin: share of the objective held back, 0 to below 1: a mean load says nothing of the peaks within a window.
        static_share: share of busy power that the clock does not change.
    """

    def __init__(
        self,
        phase: Phase,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        *,
        levels_mhz: Sequence[int],
        interval_s: float,
        margin: float,
        static_share: float,
    ) -> None:
        self._prefill = phase == "prefill"
        self._levels = checks.levels("levels_mhz", levels_mhz, clocks_mhz)
        objective_s = slo.ttft_s if self._prefill else slo.itl_s
        self._budget_s = objective_s * (1 - checks.number("margin", margin, low=0, high=0.99))
        self._interval_s = checks.number("interval_s", interval_s, above=0)
        self._latency = predictor.levels(phase, self._levels)
        power = CubicPower(clocks_mhz, static_share)
        self._power = [power.at(clock) for clock in self._levels]
        self._chosen_mhz = self._levels[-1]
        self._begin(0.0, 0, 0)

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rules of the class."""
        if load.batch_size == 0:
            return self._decide_idle(load)
        if load.time_s - self._began_s >= self._interval_s - TIME_RESOLUTION_S:
            if self._iterations:
                self._chosen_mhz = self._least_energy(self._forecast(load))
            self._begin(load.time_s, load.arrived_requests, load.arrived_tokens)
        self._iterations += 1
        self._batch_sum += load.batch_size
        self._token_sum += load.batch_tokens
        return Decision(self._chosen_mhz, self._interval_s)

    def _decide_idle(self, load: LoadSnapshot) -> Decision:
        """A whole window without work is one of no load; before the first work it tells nothing."""
        if load.idle_s < math.inf:
            self._chosen_mhz = self._levels[0]
            self._begin(load.time_s, load.arrived_requests, load.arrived_tokens)
        return Decision(self._chosen_mhz)

    def _begin(self, now_s: float, arrived_requests: int, arrived_tokens: int) -> None:
        """Begin a window."""
        self._began_s = now_s
        self._arrived = arrived_requests, arrived_tokens
        self._iterations = self._batch_sum = self._token_sum = 0

    def _forecast(self, load: LoadSnapshot) -> list[tuple[float, float]]:
        """Predicted latency and relative busy time of each level at the mean load of the window that ends."""
        batch, tokens = self._batch_sum / self._iterations, self._token_sum / self._iterations
        table = self._latency.at(math.ceil(batch))
        if not self._prefill:
            iterations = [fixed + per_request * batch + per_token * tokens for fixed, per_request, per_token in table]
            return [(latency, latency) for latency in iterations]
        requests, arrived = load.arrived_requests - self._arrived[0], load.arrived_tokens - self._arrived[1]
        rate = arrived / (load.time_s - self._began_s)
        prompt = arrived / requests if requests else tokens
        return [_prefill_forecast(fixed, per_token, rate, prompt) for fixed, _, per_token in table]

    def _least_energy(self, forecast: Sequence[tuple[float, float]]) -> int:
        fitting = [
            (busy * power, clock)
            for clock, (latency, busy), power in zip(self._levels, forecast, self._power, strict=True)
            if latency <= self._budget_s
        ]
        return min(fitting)[1] if fitting else self._levels[-1]


def _prefill_forecast(
    fixed_s: float, per_token_s: float, tokens_per_s: float, prompt_tokens: float
) -> tuple[float, float]:
    """Latency and busy share of a prefill instance under a steady stream of prompts."""
    room = 1 - per_token_s * tokens_per_s
    if room <= 0:
        return MAX_LATENCY_S, 1.0
    alone_s = fixed_s + per_token_s * prompt_tokens
    busy = min(1.0, alone_s * tokens_per_s / prompt_tokens) if prompt_tokens else 0.0
    return 2 * max(fixed_s / room, alone_s), busy
