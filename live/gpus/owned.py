"""GPUs that an owner of clocks commands and reads: real ones, simulated ones that are told their load by telemetry."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from voltana.errors import UserError
from voltana.live.clocks.client import ClockClient, ClockError
from voltana.live.clocks.control import Control, SimulatedControl
from voltana.live.clocks.device import Reading
from voltana.live.clocks.protocol import Event, Lost, Refused
from voltana.live.clocks.schedule import HIGHER_CLOCK
from voltana.live.clocks.simulated import Load
from voltana.live.gpus import ANSWER_S, READ_EVERY_S, Gpus, Meter, Setpoint
from voltana.live.gpus.energy import EnergyCurve, History
from voltana.live.gpus.host_clock import HostClock
from voltana.live.gpus.visible import Gpu
from voltana.live.telemetry.feed import load_of
from voltana.live.telemetry.message import Telemetry
from voltana.record import InstanceRow

logger = logging.getLogger(__name__)


class OwnedGpus(Gpus):
    """GPUs that an owner of clocks commands and reads.

    Args:
        control: how to get at the owner.
        groups: the GPUs of each instance, by UUID or the owner's index.
        name: of this client, for the owner's messages.
        drives: whether clocks are commanded; the GPUs are then taken by `open`, else when one is.
        on_lost: called, in the event loop, when the owner is gone or can never do what is wanted.
        where: said before what is wrong with the owner, where there are several.
    """

    def __init__(
        self,
        control: Control,
        groups: Mapping[str, Sequence[Gpu]],
        name: str,
        *,
        drives: bool,
        on_lost: Callable[[str], None] = lambda message: None,
        where: str = "",
    ) -> None:
        self.drives = drives
        self._control = control
        self._wanted = groups
        self._groups: dict[str, list[int]] = {}
        self._host_clock = HostClock()
        self._name = name
        self._on_lost = on_lost
        self._where = f"{where}: " if where else ""
        self._feeds = isinstance(control, SimulatedControl)
        self._stack = ExitStack()
        self._client: ClockClient | None = None
        self._lost = False
        self._owned: set[str] = set()
        self._refused: Counter[str] = Counter()
        self._awaited: dict[int, asyncio.Future[Event]] = {}
        self._energy = {name: EnergyCurve() for name in groups}
        self._history = {name: History() for name in groups}
        self._heard: dict[str, Telemetry] = {}
        self._ended: set[str] = set()
        self._readings: dict[str, list[Reading]] = {}
        self._read_s = dict.fromkeys(groups, -math.inf)
        self._start_s = 0.0
        self._reading: asyncio.Task[None] | None = None

    @property
    def instances(self) -> list[str]:
        """Those whose GPUs these are."""
        return list(self._wanted)

    async def open(self) -> None:
        """Connect to the owner and take the GPUs; see `Gpus`."""
        loop = asyncio.get_running_loop()
        wanted = [gpu for group in self._wanted.values() for gpu in group]

        def on_event(event: Event) -> None:
            loop.call_soon_threadsafe(self._happened, event)

        try:
            self._client = client = self._stack.enter_context(self._control.open(wanted, self._name, on_event))
            self._groups = {name: client.indices(group) for name, group in self._wanted.items()}
            for name in self._groups if self.drives else ():
                self._own(name)
        except ClockError as error:
            self._stack.close()
            raise UserError(f"{self._where}{error}") from error
        gpus = [gpu for group in self._groups.values() for gpu in group]
        known = [client.gpus[gpu] for gpu in gpus if gpu in client.gpus]
        unlisted = [info for info in known if self.drives and not info.clocks_mhz]
        if unlisted:
            self._stack.close()
            raise UserError(
                f"control: GPU {unlisted[0].gpu} ({unlisted[0].name}) supports no clock that could be set, "
                "allowed: control=observe"
            )
        shared = set.intersection(*(set(info.clocks_mhz) for info in known)) if known else set()
        self.clocks_mhz = sorted(shared)
        self.settable = bool(shared) and not client.observe
        self.models = sorted({info.name for info in known})
        self.power_meters = sorted({info.power_meter for info in known if info.power_meter is not None})
        ranges = [info.power_limit_range_w for info in known if info.power_limit_range_w is not None]
        if ranges:
            self.power_limits_w = max(low for low, _ in ranges), min(high for _, high in ranges)
        fixed = [info for info in known if info.power_limit_range_w is None]
        if self.drives and fixed:
            self.uncapped = f"GPU {fixed[0].gpu} ({fixed[0].name}) lets nobody set its power limit on this host"

    def _own(self, instance: str) -> None:
        if instance not in self._owned:
            self._connected.own(instance, self._groups[instance])
            self._owned.add(instance)

    @property
    def _connected(self) -> ClockClient:
        if self._client is None:
            raise ClockError("no connection to the owner: it was closed", "lost")
        return self._client

    def _happened(self, event: Event) -> None:
        awaited = self._awaited.pop(event.id, None) if event.id is not None else None
        if awaited is not None and not awaited.done():
            awaited.set_result(event)
        elif isinstance(event, Refused):
            if event.message not in self._refused:
                logger.warning("the owner of clocks refuses: %s", event.message)
            self._refused[event.message] += 1
            if event.code == "unsupported":  # it will not be tried again
                self._on_lost(f"what a policy wants can never be set: {self._where}{event.message}")
        elif isinstance(event, Lost):
            self._lost = True
            self._on_lost(f"the owner of clocks is gone ({self._where}{event.message})")

    async def close(self) -> None:
        """Hang up; the owner restores what was changed."""
        await self._stop_reading()
        self._client = None
        self._stack.close()

    # Commands

    def setpoint(self, instance: str) -> Setpoint:
        """See `Clocks`."""
        if self._client is None:
            return Setpoint()
        clock_mhz, cap_w = self._client.desired(instance, "clock"), self._client.desired(instance, "power")
        return Setpoint(int(clock_mhz or 0), cap_w)

    def set_clock(self, instance: str, clock_mhz: int) -> None:
        """See `Clocks`."""
        if self.drives:
            with contextlib.suppress(ClockError):  # the loss of the owner is told to `on_lost`
                self._connected.set_clock(instance, clock_mhz)

    def set_power_cap(self, instance: str, power_cap_w: float | None) -> None:
        """See `Clocks`."""
        if self.drives:
            with contextlib.suppress(ClockError):
                self._connected.set_power_cap(instance, power_cap_w)

    def refused(self) -> dict[str, int]:
        """See `Gpus`."""
        return dict(self._refused)

    async def apply(self, instance: str, clock_mhz: int) -> None:
        """Set a clock and wait until the owner has seen it; see `Gpus`."""
        wrong = f"control: {instance} cannot be set to {clock_mhz} MHz"
        try:
            self._own(instance)
            number = self._connected.set_clock(instance, clock_mhz)
            event = None if number is None else await self._outcome(number)
        except (ClockError, TimeoutError) as error:
            raise UserError(f"{wrong}: {str(error) or 'no answer'}") from error
        if isinstance(event, Refused):
            raise UserError(f"{wrong}: {event.message}")
        found = (await self.read(instance)).clock_mhz
        if found is not None and found > clock_mhz * (1 + HIGHER_CLOCK):
            raise UserError(f"control: {instance} was set to {clock_mhz} MHz and runs at {found} MHz")

    async def _outcome(self, number: int) -> Event:
        """What becomes of a command; events come in the event loop, so none is missed."""
        future: asyncio.Future[Event] = asyncio.get_running_loop().create_future()
        self._awaited[number] = future
        async with asyncio.timeout(ANSWER_S):
            return await future

    # Load

    def heard(self, telemetry: Telemetry) -> None:
        """Note what an instance does, and tell simulated GPUs; see `Gpus`."""
        name = telemetry.instance
        if self._reading is not None and name not in self._ended:
            self._note(telemetry)
        self._heard[name] = telemetry
        self._feed(name, load_of(telemetry))

    def _feed(self, name: str, load: Load) -> None:
        if self._feeds:
            with contextlib.suppress(ClockError):
                self._connected.feed(self._groups[name], load)

    def _note(self, telemetry: Telemetry) -> None:
        published_s, load = telemetry.received_s - telemetry.transport_s, telemetry.load
        history = self._history[telemetry.instance]
        history.load(published_s - self._start_s, load.batch_size, load.batch_tokens, load.queued)

    def ended(self, instance: str) -> None:
        """See `Gpus`. Its GPUs rest."""
        self._ended.add(instance)
        self._history[instance].load(time.monotonic() - self._start_s, 0, 0, 0)
        self._feed(instance, Load())

    # Meters

    async def read(self, instance: str) -> Meter:
        """Read the meters; see `Gpus`."""
        try:
            readings = await self._ask(self._groups[instance])
        except (ClockError, TimeoutError) as error:
            why = str(error) or "no answer"
            raise UserError(f"control: the meters of {instance} cannot be read: {why}") from error
        energies_j = [reading.energy_j for reading in readings if reading.energy_j is not None]
        energy_j = sum(energies_j) if len(energies_j) == len(readings) else None
        return Meter(self._host_clock.here(readings[0].time_s), energy_j, readings[0].clock_mhz)

    async def _ask(self, gpus: Sequence[int] | None = None) -> list[Reading]:
        """Readings of these GPUs, of all by default; every answer tells more of the owner's clock."""
        asked_s = time.monotonic()
        async with asyncio.timeout(ANSWER_S):
            readings = (await asyncio.wrap_future(self._connected.request_readings(gpus))).readings
        came_s = time.monotonic()
        for reading in readings:
            self._host_clock.answered(asked_s, reading.time_s, came_s)
        return readings

    def power_w(self, instance: str) -> float | None:
        """The last reading; see `Gpus`."""
        powers = [reading.power_w for reading in self._readings.get(instance, ())]
        return sum(filter(None, powers)) if powers and None not in powers else None

    def clock_mhz(self, instance: str) -> int | None:
        """The clock in force: the lowest of the group's, which holds up the others; see `Gpus`."""
        clocks = [reading.clock_mhz for reading in self._readings.get(instance, ())]
        return min(clock for clock in clocks if clock is not None) if clocks and None not in clocks else None

    def begin(self, start_s: float) -> None:
        """Read all meters from now on; see `Gpus`."""
        self._start_s = start_s
        for telemetry in self._heard.values():
            self._note(telemetry)
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while not self._lost:
            began_s = time.monotonic()
            await self._read_once()
            await asyncio.sleep(max(0.0, READ_EVERY_S - (time.monotonic() - began_s)))

    async def _read_once(self) -> None:
        """Read what can be read now: where a driver hangs or a GPU is lost, a reading is missing."""
        try:
            readings = await self._ask()
        except (ClockError, TimeoutError):
            return
        of = {reading.gpu: reading for reading in readings}
        for name, group in self._groups.items():
            self._take(name, [of[gpu] for gpu in group])

    def _take(self, name: str, readings: list[Reading]) -> None:
        self._readings[name] = readings
        told_s = sum(reading.time_s for reading in readings) / len(readings)
        time_s = self._host_clock.here(told_s) - self._start_s
        self._read_s[name] = time_s
        self._history[name].clock(time_s, self.clock_mhz(name))
        counters_j = [reading.energy_j for reading in readings if reading.energy_j is not None]
        if len(counters_j) == len(readings):
            self._energy[name].add(time_s, *counters_j)

    async def settle(self) -> None:
        """Read a last time; see `Gpus`."""
        await self._stop_reading()
        if self._client is not None:
            await self._read_once()

    async def _stop_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
            self._reading = None

    @property
    def known_s(self) -> float:
        """See `Gpus`."""
        return min(self._read_s.values())

    def rows(self, instance: str, phase: str, from_s: float, to_s: float) -> list[InstanceRow]:
        """See `Gpus`."""
        return self._history[instance].rows(instance, phase, from_s, to_s, self._energy[instance])
