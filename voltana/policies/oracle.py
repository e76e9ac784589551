"""The oracle: what a rule that decides per iteration could do at best.

It is told by the world what the batch about to run really costs (`truth`), and its clocks act at once. No live system
can offer either, so the oracle is no policy to use, but a mark to measure policies against.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from voltana import checks
from voltana.state import Decision, LoadSnapshot, Phase, Slo

RIPPLE = 1.1
"""Energy per iteration over the clock is a valley, but for ripples of up to 4 % where bandwidth has its bends."""


class Truth(Protocol):
    """What an oracle is told."""

    def cost(self, clock_mhz: int) -> tuple[float, float]:
        """Seconds and joules of the iteration about to run, at a clock."""
        ...


class Oracle:
    """The least-energy clock among those whose true latency meets the budget.

    In this order:

    1. no iteration to run: lowest level, `idle_s` after the last one ended;
    2. requests waiting behind the batch: the fastest level, as EcoFreq does;
    3. else, of the levels whose true latency is within the budget, the one that spends least; none is: the fastest.

    The budget is that of EcoFreq: the ITL objective in decode, in prefill the TTFT objective less the longest wait of
    the batch. What a level spends is the energy of the iteration less `drawn_anyway_w` over its time: a decode
    instance under steady load is never idle, so part of its power is drawn whatever the clock, and slower iterations
    serve larger batches. With 0 the iteration pays for all of it.

    Args:
        levels_mhz: clocks to choose from; None: all of the GPU.
        margin: share of the objective held back; below 1.
        drawn_anyway_w: power of the whole instance that is not charged to an iteration.
        idle_s: time without iterations after which rule 1 acts.
    """

    acts_at_once = True

    def __init__(
        self,
        phase: Phase,
        slo: Slo,
        clocks_mhz: Sequence[int],
        truth: Truth,
        *,
        levels_mhz: Sequence[int] | str | None,
        margin: float,
        drawn_anyway_w: float,
        idle_s: float,
    ) -> None:
        self.truth = truth
        self._levels = checks.levels("levels_mhz", clocks_mhz if levels_mhz is None else levels_mhz, clocks_mhz)
        scale = 1 - checks.number("margin", margin, above=-10, high=0.99)
        self._objective_s = scale * (slo.ttft_s if phase == "prefill" else slo.itl_s)
        self._drawn_anyway_w = checks.number("drawn_anyway_w", drawn_anyway_w, low=0)
        self._idle_s = checks.number("idle_s", idle_s, above=0)

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rules of the class."""
        if load.batch_size == 0:
            return Decision(self._levels[0])
        clock = self._levels[-1]
        if not load.queued:
            clock = self._least_energy_within(self._objective_s - load.longest_wait_s)
        return Decision(clock, self._idle_s)

    def _least_energy_within(self, budget_s: float) -> int:
        """From the fastest level down, until one is too slow or the valley of least energy is clearly behind."""
        least_j, chosen = math.inf, self._levels[-1]
        for clock in reversed(self._levels):
            seconds, joules = self.truth.cost(clock)
            if seconds > budget_s:
                break
            spent_j = joules - self._drawn_anyway_w * seconds
            if spent_j < least_j:
                least_j, chosen = spent_j, clock
            elif spent_j > RIPPLE * least_j:
                break
        return chosen
