"""What the front end costs, and what a GPU is commanded to."""

from __future__ import annotations

from typing import NamedTuple

from voltana.section import Count, Seconds, Section
from voltana.state import Decision


class FrontEnd(Section):
    """`front_end`: what stands before the servers and does one thing at a time."""

    name: str
    leg_s: Seconds
    """To send a request to prefill, and again to decode."""
    stall_s: Seconds
    stall_legs: Count | None
    """It stalls with every so many-th leg."""

    def duration_s(self, leg: int) -> float:
        """Time of a leg, counted from 1."""
        return self.leg_s + (self.stall_s if self.stall_legs and leg % self.stall_legs == 0 else 0.0)


class Setting(NamedTuple):
    """What a GPU is commanded to."""

    clock_mhz: int
    power_cap_w: float | None = None
    """Of one GPU; None: its own limit."""

    def limit_w(self, gpus: int) -> float | None:
        """The cap of a group of so many GPUs together, W; None: their own limit."""
        return None if self.power_cap_w is None else self.power_cap_w * gpus

    @classmethod
    def of(cls, decision: Decision) -> Setting:
        """What a decision commands."""
        return cls(decision.clock_mhz, decision.power_cap_w)

    def calls_from(self, before: Setting) -> int:
        """Driver calls for each GPU to get here: one for the clock, one for the cap."""
        return (self.clock_mhz != before.clock_mhz) + (self.power_cap_w != before.power_cap_w)
