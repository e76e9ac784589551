"""The power sensors of a cluster: what a policy may read of the power that instances draw.

A sensor publishes every `period_s` the mean over the last `window_s`, so most of the time goes unseen, and it is off
by a factor of its own, up to `error` (A100 and H100: 100 ms, 25 ms, 5 %; Yang et al., SC 2024). A window may last
several periods, as of drivers that publish a mean of one second. The record is metered exactly; only policies see
sensors.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random

from voltana.app.serving import Sensor


def gain(sensor: Sensor, name: str, seed: int) -> float:
    """The factor by which the sensor of an instance is off in a run of this seed."""
    return Random(f"{seed} sensor {name}").uniform(1 - sensor.error, 1 + sensor.error)


class PowerSensors:
    """The sensors of all instances, read together.

    Args:
        names: of the instances; energies and readings are in their order.
        seed: of the run.
    """

    def __init__(self, sensor: Sensor, names: Sequence[str], seed: int) -> None:
        self._gains = [gain(sensor, name, seed) for name in names]
        self._sensor = sensor
        self._opened_j: deque[Sequence[float]] = deque(maxlen=sensor.periods)
        """What each instance had used when a window opened, for every window that is not over, oldest first."""
        self.readings_w: list[float | None] = [None] * len(names)
        """Published last; None before the first."""
        self.total_w: float | None = None

    def open_window(self, energies_j: Sequence[float]) -> None:
        """The window begins: what each instance has used so far."""
        self._opened_j.append(list(energies_j))

    def publish(self, energies_j: Sequence[float]) -> None:
        """The oldest window ends; the first ones are as long as there has been time."""
        sensor, open_windows = self._sensor, len(self._opened_j)
        window_s = sensor.window_s if open_windows == sensor.periods else open_windows * sensor.period_s
        rows = zip(self._gains, self._opened_j[0], energies_j, strict=True)
        readings = [gain * (end - start) / window_s for gain, start, end in rows]
        self.readings_w = list(readings)
        self.total_w = sum(readings)
