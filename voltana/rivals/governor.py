"""What a GPU does with its clock when nobody tells it: NVIDIA's default boost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from voltana import checks
from voltana.state import Decision, LoadSnapshot


class Governor:
    """The highest clock while there is work, the lowest after a short idle time.

    1. At an iteration: the highest clock. The power limit may hold the GPU below it; that is the GPU's (in the
       simulator the plant's) doing, as on hardware.
    2. Idle for `idle_s`, and before the first work: the lowest clock.

    Source: NVIDIA's documented autoboost ("the highest clock within the power and thermal budget"), and idle clocks as
    `nvidia-smi` shows them. Deviations: how soon a GPU that holds a CUDA context drops its clock is not documented, so
    it is a parameter. The GPU drops and raises the clock by itself in firmware, without a driver call: hence
    `acts_at_once`; the ramp of some milliseconds is left out, which flatters this policy slightly. On real GPUs the
    true governor is to leave the clocks alone (`control=observe`).

    Args:
        idle_s: time without iterations after which the clock drops.
    """

    acts_at_once = True

    def __init__(self, clocks_mhz: Sequence[int], *, idle_s: float = 0.1) -> None:
        self._busy = Decision(clocks_mhz[-1], checks.number("idle_s", idle_s, above=0), math.inf)
        self._idle = Decision(clocks_mhz[0])

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rules of the class; an idle instance is asked only when it is time."""
        return self._busy if load.batch_size else self._idle
