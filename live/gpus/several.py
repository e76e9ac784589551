"""GPUs of several hosts: each has an owner of clocks of its own, and the rest of a run sees them as one set."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from voltana.live.gpus import Gpus, Meter, Setpoint
from voltana.live.gpus.owned import OwnedGpus
from voltana.live.servers import Endpoint
from voltana.live.telemetry.message import Telemetry
from voltana.record import InstanceRow


class SeveralGpus(Gpus):
    """The GPUs of several owners, each of other instances.

    Clocks and power limits are those that all of them support.

    Args:
        parts: those of one owner each.
    """

    def __init__(self, parts: Sequence[OwnedGpus]) -> None:
        self._parts = parts
        self._of = {instance: part for part in parts for instance in part.instances}
        self.drives = all(part.drives for part in parts)

    async def open(self) -> None:
        """Take them over, one owner after the other; see `Gpus`."""
        for part in self._parts:
            await part.open()
        parts = self._parts
        self.models = sorted({model for part in parts for model in part.models})
        self.clocks_mhz = sorted(set.intersection(*(set(part.clocks_mhz) for part in parts)))
        self.settable = bool(self.clocks_mhz) and all(part.settable for part in parts)
        limits = [part.power_limits_w for part in parts if part.power_limits_w is not None]
        self.uncapped = next((part.uncapped for part in parts if part.uncapped), "")
        self.power_meters = sorted({meter for part in parts for meter in part.power_meters})
        if limits:
            self.power_limits_w = max(low for low, _ in limits), min(high for _, high in limits)

    async def attach(self, endpoints: Sequence[Endpoint]) -> None:
        """See `Gpus`."""
        for part in self._parts:
            await part.attach([each for each in endpoints if self._of[each.name] is part])

    async def close(self) -> None:
        """Give all back, whatever becomes of one; see `Gpus`."""
        await asyncio.gather(*(part.close() for part in self._parts), return_exceptions=True)

    def set_clock(self, instance: str, clock_mhz: int) -> None:
        """See `Clocks`."""
        self._of[instance].set_clock(instance, clock_mhz)

    def set_power_cap(self, instance: str, power_cap_w: float | None) -> None:
        """See `Clocks`."""
        self._of[instance].set_power_cap(instance, power_cap_w)

    def setpoint(self, instance: str) -> Setpoint:
        """See `Clocks`."""
        return self._of[instance].setpoint(instance)

    async def apply(self, instance: str, clock_mhz: int) -> None:
        """See `Gpus`."""
        await self._of[instance].apply(instance, clock_mhz)

    async def read(self, instance: str) -> Meter:
        """See `Gpus`."""
        return await self._of[instance].read(instance)

    def heard(self, telemetry: Telemetry) -> None:
        """See `Gpus`."""
        self._of[telemetry.instance].heard(telemetry)

    def ended(self, instance: str) -> None:
        """See `Gpus`."""
        self._of[instance].ended(instance)

    def begin(self, start_s: float) -> None:
        """See `Gpus`."""
        for part in self._parts:
            part.often = self.often
            part.begin(start_s)

    async def settle(self) -> None:
        """See `Gpus`."""
        await asyncio.gather(*(part.settle() for part in self._parts))

    def power_w(self, instance: str) -> float | None:
        """See `Gpus`."""
        return self._of[instance].power_w(instance)

    def clock_mhz(self, instance: str) -> int | None:
        """See `Gpus`."""
        return self._of[instance].clock_mhz(instance)

    @property
    def known_s(self) -> float:
        """See `Gpus`: where the slowest of them is."""
        return min(part.known_s for part in self._parts)

    def rows(self, instance: str, phase: str, from_s: float, to_s: float) -> list[InstanceRow]:
        """See `Gpus`."""
        return self._of[instance].rows(instance, phase, from_s, to_s)

    def refused(self) -> dict[str, int]:
        """See `Gpus`."""
        return dict(sum((Counter(part.refused()) for part in self._parts), Counter()))
