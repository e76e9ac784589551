"""The plant as an oracle sees it: what the batch about to run would cost at any clock.

No policy but an oracle asks for it (`voltana.policies.build`), and only the simulator can offer it.
"""

from __future__ import annotations

from typing import Protocol

from voltana.sim.plant import Step


class Knows(Protocol):
    """An instance that can tell what its batch would cost."""

    def what_if(self, clock_mhz: int) -> Step:
        """The iteration about to run, at a clock."""
        ...


class Truth:
    """What one instance would do; the engine binds it."""

    def __init__(self) -> None:
        self._instance: Knows

    def bind(self, instance: Knows) -> None:
        """Tell whose truth this is."""
        self._instance = instance

    def cost(self, clock_mhz: int) -> tuple[float, float]:
        """Seconds and joules of the iteration about to run, at a clock."""
        step = self._instance.what_if(clock_mhz)
        return step.duration_s, step.duration_s * step.power_w
