"""The power model that rivals assume who trade power against time but have no measured power table."""

from __future__ import annotations

from collections.abc import Sequence

from voltana import checks


class CubicPower:
    """Power at a clock, relative to that at the highest: ``s + (1 - s) (f / f_max)^3``.

    Dynamic power is capacitance times voltage squared times frequency; voltage follows frequency, hence the cube
    (GreenLLM and DynamoLLM fit the same shape). Only ratios matter to who compares clocks, so there are no watts.

    Args:
        clocks_mhz: clocks the GPU supports, ascending.
        static_share: s, the share of the busy power at the highest clock that no clock changes; 0 to 1.
    """

    def __init__(self, clocks_mhz: Sequence[int], static_share: float) -> None:
        self._top_mhz = clocks_mhz[-1]
        self._static = checks.number("static_share", static_share, low=0, high=1)

    def at(self, clock_mhz: int) -> float:
        """Busy power at a clock over that at the highest."""
        return self._static + (1 - self._static) * (clock_mhz / self._top_mhz) ** 3
