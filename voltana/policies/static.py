"""A clock that never changes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from voltana import checks
from voltana.state import Decision, LoadSnapshot


class StaticClock:
    """One clock for the whole run; `max` is the highest the GPU has."""

    reads_load = False

    def __init__(self, clocks_mhz: Sequence[int], *, clock_mhz: int | str) -> None:
        chosen = clocks_mhz[-1] if clock_mhz == "max" else checks.clock("clock_mhz", clock_mhz, clocks_mhz)  # type: ignore[arg-type]
        self._decision = Decision(chosen, holds_below_tokens=math.inf)

    def decide(self, load: LoadSnapshot) -> Decision:
        """Answer with the clock."""
        return self._decision
