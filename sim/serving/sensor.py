"""The power sensors of a cluster: what a policy may read of the power that instances draw.

A sensor publishes every `period_s` the mean over the last `window_s`, so most of the time goes unseen, and it is off
by a factor of its own, up to `error` (A100 and H100: 100 ms, 25 ms, 5 %; Yang et al., SC 2024). The record is metered
exactly; only policies see sensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class SensorSpec:
    """How a power sensor measures."""

    period_s: float
    window_s: float
    error: float
    """Largest relative error of a sensor; each has one of its own for the whole run."""
    seed: int = 0

    def gain(self, name: str) -> float:
        """The factor by which the sensor of an instance is off."""
        return Random(f"{self.seed} sensor {name}").uniform(1 - self.error, 1 + self.error)


class PowerSensors:
    """The sensors of all instances, read together.

    Args:
        names: of the instances; energies and readings are in their order.
    """

    def __init__(self, spec: SensorSpec, names: Sequence[str]) -> None:
        self._gains = [spec.gain(name) for name in names]
        self._window_s = spec.window_s
        self._opened_j = [0.0] * len(names)
        self.readings_w: list[float | None] = [None] * len(names)
        """Published last; None before the first."""
        self.total_w: float | None = None

    def open_window(self, energies_j: Sequence[float]) -> None:
        """The window begins: what each instance has used so far."""
        self._opened_j = list(energies_j)

    def publish(self, energies_j: Sequence[float]) -> None:
        """The window ends."""
        rows = zip(self._gains, self._opened_j, energies_j, strict=True)
        readings = [gain * (end - start) / self._window_s for gain, start, end in rows]
        self.readings_w = list(readings)
        self.total_w = sum(readings)
