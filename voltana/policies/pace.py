"""Two budgets for decode: a tight one where speed is cheap, a wide one where it is dear."""

from __future__ import annotations

import math
from collections.abc import Sequence

from voltana import checks
from voltana.policies.ecofreq_online import EcoFreqOnline
from voltana.policies.forecast import Demand, capacity
from voltana.prediction.ecopred import EcoPred
from voltana.state import Decision, LoadSnapshot, Phase, Slo

FORESEE_EVERY_S = 1.0


class Pace(EcoFreqOnline):
    """The lowest clock up to the knee that keeps to `budget`; if none does, the lowest above that keeps to `limit`.

    Up to the knee of the voltage curve speed costs hardly any energy, so it is bought early: what is left undone there
    makes the batch grow, and must be caught up with above the knee. Above it speed is bought only when the objective is
    at stake. Predictions are corrected by measured latencies, as `EcoFreqOnline` does.

    Args: as `EcoFreqOnline`, and
        floor_mhz: lowest clock of an iteration.
        knee_mhz: the clock up to which speed is cheap.
        budget: share of the objective up to the knee: the user's dial between energy and speed.
        limit: share of the objective above it.
        forecast: a clock bears what is foreseen (`voltana.policies.forecast`) up to so many times what it can make
            within `limit`. Where the knee neither bears that nor keeps to `budget`, the clock is at least the lowest
            that bears it, so it rises before the batch has grown to the limit. None: no forecast.
        rate_memory_s: time constant of the arrival rate in the forecast.
        idle_s: without work for so long, an instance goes to the GPU's lowest clock.
    """

    def __init__(
        self,
        phase: Phase,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        *,
        floor_mhz: int,
        knee_mhz: int,
        budget: float,
        limit: float,
        forecast: float | None,
        rate_memory_s: float,
        memory_s: float,
        hold_s: float,
        settle_s: float,
        idle_s: float,
    ) -> None:
        share = checks.number("limit", limit, above=0, high=1)
        super().__init__(
            phase,
            slo,
            clocks_mhz,
            predictor,
            levels_mhz=f"{checks.clock('floor_mhz', floor_mhz, clocks_mhz)}..{clocks_mhz[-1]}",
            margin=1 - share,
            idle_s=idle_s,
            memory_s=memory_s,
            confidence=None,
            hold_s=hold_s,
            settle_s=settle_s,
            knee_mhz=knee_mhz,
            reserve=1 - checks.number("budget", budget, above=0, high=share) / share,
        )
        self._idle_mhz = clocks_mhz[0]
        self._budget_s, self._limit_s = budget * slo.itl_s, share * slo.itl_s
        self._forecast = None if forecast is None else checks.number("forecast", forecast, above=0)
        self._demand = Demand(checks.number("rate_memory_s", rate_memory_s, above=0))
        self._above = [clock for clock in self._levels if clock >= knee_mhz]
        self._foreseen_s = -math.inf
        self._floor_mhz = self._levels[0]

    def _learn(self, load: LoadSnapshot) -> None:
        super()._learn(load)
        if self._forecast is None:
            return
        self._demand.see(load)
        if load.batch_size and load.time_s >= self._foreseen_s + FORESEE_EVERY_S:
            self._foreseen_s = load.time_s
            self._floor_mhz = self._foresee(load.batch_tokens / load.batch_size, self._forecast)

    def _foresee(self, tokens_per_request: float, times: float) -> int:
        """The lowest clock from the knee up that bears what is foreseen; the lowest of all if the knee does."""
        needed, limit_s = self._demand.tokens_per_s / times, self._limit_s / self._ratio.safe
        for clock in self._above:
            if capacity(self._predictor, clock, tokens_per_request, limit_s) >= needed:
                return self._levels[0] if clock == self._above[0] else clock
        return self._above[-1]

    def _lowest_within(self, budget_s: float, batch: float, tokens: float) -> Decision:
        answer = super()._lowest_within(budget_s, batch, tokens)
        if answer.clock_mhz >= self._floor_mhz or answer.clock_mhz < self._above[0]:
            return answer
        at_knee_s = self._predictor.decode_s(math.ceil(batch), tokens, self._above[0]) * self._ratio.safe
        return answer._replace(clock_mhz=self._floor_mhz) if at_knee_s > self._budget_s else answer

    def _decide_idle(self, load: LoadSnapshot, surging: bool) -> Decision:
        answer = super()._decide_idle(load, surging)
        return Decision(self._idle_mhz) if answer.ask_when_idle_s is None else answer
