"""The GPUs of servers that are profiled: their clocks and meters, through an owner of clocks or in emulated servers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from voltana.errors import UserError
from voltana.live.clocks.client import ClockClient, ClockError, Event
from voltana.live.clocks.protocol import Applied, Refused, Superseded
from voltana.live.profiling.served.http import ask_json
from voltana.live.servers import Endpoint
from voltana.live.telemetry.feed import load_of
from voltana.live.telemetry.message import Telemetry

SETTLE_S = 0.05
"""From the end of a clock command until the clock is in force, where the GPU does not tell: twice an A100's."""
ANSWER_S = 10.0
SAME_CLOCK = 0.02
"""A clock may be read by this share higher than it was set; how much lower, is for power limits and rest to say."""


class Meter(NamedTuple):
    """All GPUs of an instance at one moment."""

    time_s: float
    """Monotonic clock."""
    energy_j: float | None
    """A counter: only differences mean something. None: not told."""
    clock_mhz: int | None


class Gpus(Protocol):
    """The GPUs of all instances.

    Attributes:
        names: what they are, for the report.
        clocks_mhz: clocks that can be set; empty: none.
    """

    names: list[str]
    clocks_mhz: tuple[int, ...]

    async def set_clock(self, instance: str, clock_mhz: int) -> None:
        """Set the clock of an instance; it is in force when this returns.

        Raises:
            UserError: it cannot be set.
        """
        ...

    async def read(self, instance: str) -> Meter:
        """Read the meters."""
        ...

    def on_telemetry(self, telemetry: Telemetry) -> None:
        """Take note of what an instance runs."""
        ...

    async def close(self) -> None:
        """Give the clocks back."""
        ...


class Acknowledgements:
    """Lets a coroutine wait for what becomes of a clock command; `on_event` is for `ClockClient`, in its thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, asyncio.Future[Event]] = {}
        self._early: dict[int, Event] = {}

    def on_event(self, event: Event) -> None:
        """Take an event."""
        self._loop.call_soon_threadsafe(self._take, event)

    def _take(self, event: Event) -> None:
        number = getattr(event, "id", None)
        if not isinstance(event, Applied | Refused | Superseded) or number is None:
            return
        future = self._waiting.pop(number, None)
        if future is None:
            self._early[number] = event
        elif not future.done():
            future.set_result(event)

    async def of(self, number: int) -> Event:
        """What became of a command."""
        if number in self._early:
            return self._early.pop(number)
        future: asyncio.Future[Event] = self._loop.create_future()
        self._waiting[number] = future
        async with asyncio.timeout(ANSWER_S):
            return await future


class OwnedGpus:
    """GPUs behind an owner of clocks, real or simulated.

    Args:
        clocks: connected to it; closing it gives the clocks back.
        acknowledgements: its `on_event` is the client's.
        groups: the GPUs of each instance.
        simulated: tell the GPUs what their instance runs, which they cannot know.
        on_clock: called with instance and clock, as a share of the highest, when a clock has come into force.
    """

    def __init__(
        self,
        clocks: ClockClient,
        acknowledgements: Acknowledgements,
        groups: Mapping[str, Sequence[int]],
        *,
        simulated: bool = False,
        on_clock: Callable[[str, float], None] = lambda instance, share: None,
    ) -> None:
        self._clocks = clocks
        self._acknowledgements = acknowledgements
        self._groups = groups
        self._simulated = simulated
        self._on_clock = on_clock
        self._owned: set[str] = set()
        infos = [clocks.gpus[gpu] for gpus in groups.values() for gpu in gpus]
        self.names = sorted({info.name for info in infos})
        common = set.intersection(*(set(info.clocks_mhz) for info in infos)) if infos else set()
        self.clocks_mhz = () if clocks.observe else tuple(sorted(common))
        settle = [info.settle_s for info in infos]
        self._settle_s = max((SETTLE_S if each is None else each for each in settle), default=SETTLE_S)

    async def set_clock(self, instance: str, clock_mhz: int) -> None:
        """Set the clock of an instance; see `Gpus`."""
        try:
            if instance not in self._owned:
                self._clocks.own(instance, self._groups[instance])
                self._owned.add(instance)
            number = self._clocks.set_clock(instance, clock_mhz)
            event = None if number is None else await self._acknowledgements.of(number)
        except (ClockError, TimeoutError) as error:
            raise UserError(f"control: {instance} cannot be set to {clock_mhz} MHz: {error or 'no answer'}") from error
        if isinstance(event, Refused):
            raise UserError(f"control: {instance} cannot be set to {clock_mhz} MHz: {event.message}")
        await asyncio.sleep(self._settle_s)
        found = (await self.read(instance)).clock_mhz
        if found is not None and found > clock_mhz * (1 + SAME_CLOCK):
            raise UserError(f"control: {instance} was set to {clock_mhz} MHz and runs at {found} MHz")
        self._on_clock(instance, clock_mhz / self.clocks_mhz[-1])

    async def read(self, instance: str) -> Meter:
        """Read the meters; see `Gpus`."""
        gpus = self._groups[instance]
        try:
            readings = (await asyncio.wrap_future(self._clocks.request_readings(gpus))).readings
        except ClockError as error:
            raise UserError(f"control: the meters of {instance} cannot be read: {error}") from error
        energies = [reading.energy_j for reading in readings if reading.energy_j is not None]
        energy_j = sum(energies) if len(energies) == len(readings) else None
        return Meter(readings[0].time_s, energy_j, readings[0].clock_mhz)

    def on_telemetry(self, telemetry: Telemetry) -> None:
        """Tell simulated GPUs; see `Gpus`."""
        if self._simulated and telemetry.instance in self._groups:
            self._clocks.feed(self._groups[telemetry.instance], load_of(telemetry))

    async def close(self) -> None:
        """Give the clocks back."""
        for instance in self._owned:
            self._clocks.release(instance)
            self._on_clock(instance, 1.0)
        self._owned.clear()


class EmulatedGpus:
    """Those in emulated servers, which keep their own clocks and meters.

    Args:
        endpoints: the servers.
        clocks_mhz: what they have.
        name: what they are.
    """

    def __init__(self, endpoints: Iterable[Endpoint], clocks_mhz: Sequence[int], name: str = "emulated") -> None:
        self._endpoints = {endpoint.name: endpoint for endpoint in endpoints}
        self.names = [name]
        self.clocks_mhz = tuple(clocks_mhz)
        self._changed: set[str] = set()

    async def set_clock(self, instance: str, clock_mhz: int) -> None:
        """Set the clock of an instance; see `Gpus`."""
        answer = await self._ask(instance, "/emulated/clock", {"mhz": clock_mhz})
        self._changed.add(instance)
        while answer["mhz"] != clock_mhz:
            await asyncio.sleep(0.005)
            answer = {"mhz": (await self._ask(instance, "/emulated/energy"))["clock_mhz"]}

    async def read(self, instance: str) -> Meter:
        """Read the meters; see `Gpus`."""
        answer = await self._ask(instance, "/emulated/energy")
        return Meter(answer["time_s"], answer["energy_j"], answer["clock_mhz"])

    async def _ask(self, instance: str, path: str, body: object = None) -> dict[str, Any]:
        return dict(await ask_json(self._endpoints[instance].url, path, body))

    def on_telemetry(self, telemetry: Telemetry) -> None:
        """Nothing: they run it themselves."""

    async def close(self) -> None:
        """Back to the highest clock, at which they start unless told otherwise."""
        for instance in self._changed:
            await self.set_clock(instance, self.clocks_mhz[-1])
        self._changed.clear()
