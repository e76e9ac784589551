"""What a GPU does with its clock when nobody tells it: NVIDIA's default boost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from voltana import checks
from voltana.state import Decision, LoadSnapshot


class Governor:
    """The highest clock as long as a CUDA context is loaded: a server's GPUs never leave it.

    1. The highest clock, at work, idle and before the first work, as a server has loaded its context by then. The power
       limit may hold the GPU below it; that is the GPU's (in the simulator the plant's) doing, as on hardware.
    2. Without `perf_boost`: the lowest clock before the first work and after `idle_s` without any.

    Source: the driver boosts a GPU "to a higher power state when running CUDA applications" (NVIDIA driver 580.105.08,
    release notes, which add `CUDA_DISABLE_PERF_BOOST=1` to switch that off), and "the highest clock within the power
    and thermal budget" of its autoboost. **Fitted by us**: nothing; `idle_s` is assumed, as nothing says how soon a
    clock falls. The GPU changes its clock by itself in firmware, without a driver call: hence `acts_at_once`; the ramp
    of some milliseconds is left out, which flatters rule 2 slightly. On real GPUs the true governor is to leave the
    clocks alone (`control=observe`).

    Args:
        perf_boost: the driver's default; False: as with CUDA_DISABLE_PERF_BOOST=1.
        idle_s: time without iterations after which the clock drops, without `perf_boost`.
    """

    acts_at_once = True

    def __init__(self, clocks_mhz: Sequence[int], *, perf_boost: bool, idle_s: float) -> None:
        checks.flag("perf_boost", perf_boost)
        idle_s = checks.number("idle_s", idle_s, above=0)
        self._busy = Decision(clocks_mhz[-1], None if perf_boost else idle_s, math.inf)
        self._idle = self._busy if perf_boost else Decision(clocks_mhz[0])

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rules of the class; an idle instance is asked only when it is time."""
        return self._busy if load.batch_size else self._idle
