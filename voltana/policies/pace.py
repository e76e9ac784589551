"""Two budgets for decode: a tight one where speed is cheap, a wide one where it is dear."""

from __future__ import annotations

from collections.abc import Sequence

from voltana import checks
from voltana.policies.ecofreq_online import EcoFreqOnline
from voltana.prediction.ecopred import EcoPred
from voltana.state import Decision, LoadSnapshot, Phase, Slo


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

    def _decide_idle(self, load: LoadSnapshot, surging: bool) -> Decision:
        answer = super()._decide_idle(load, surging)
        return Decision(self._idle_mhz) if answer.ask_when_idle_s is None else answer
