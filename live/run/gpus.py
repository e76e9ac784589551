"""The GPUs of a live run: what is commanded, what is metered.

`EmulatedGpus` are those of emulated servers, which know their own energy to the joule. `OwnedGpus` are commanded and
read through the owner of clocks: real ones, simulated ones that are told the load by telemetry, a recording, or none.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from voltana.app.config import ActuationConfig
from voltana.errors import UserError
from voltana.live.clocks.client import ClockClient, ClockError, Event
from voltana.live.clocks.control import Control, SimulatedControl
from voltana.live.clocks.device import Reading
from voltana.live.clocks.protocol import Lost, Refused
from voltana.live.clocks.simulated import Load
from voltana.live.run.energy import EnergyCurve, History, clipped
from voltana.live.servers import Endpoint
from voltana.live.servers.emulated.cluster import EmulatedClocks
from voltana.live.telemetry.feed import load_of
from voltana.live.telemetry.message import Telemetry
from voltana.record import InstanceRow

logger = logging.getLogger(__name__)

READ_EVERY_S = 0.1
"""As often as the sensors of A100s and H100s show a new value."""
ROWS_EVERY_S = 1.0
"""What an emulated server has metered is fetched this often, so that little is lost with it."""


class Gpus(Protocol):
    """The GPUs of all instances.

    Attributes:
        drives: whether clocks are commanded at all.
        clocks_mhz: what the GPUs support; empty where nothing says.
        power_limits_w: lowest and highest cap; None where nothing says.
        often: whether somebody wants each new value of the power sensors; set before `begin`.
    """

    drives: bool
    often: bool
    clocks_mhz: Sequence[int]
    power_limits_w: tuple[float, float] | None

    async def open(self) -> None:
        """Take them over; the servers need not run yet.

        Raises:
            UserError: that cannot be.
        """
        ...

    async def attach(self, endpoints: Sequence[Endpoint]) -> None:
        """The servers run, these.

        Raises:
            UserError: one does not answer.
        """
        ...

    def set_clock(self, instance: str, clock_mhz: int) -> None:
        """Command the clock of an instance; does not wait."""
        ...

    def set_power_cap(self, instance: str, power_cap_w: float | None) -> None:
        """Command the power limit of every GPU of an instance; does not wait."""
        ...

    def power_w(self, instance: str) -> float | None:
        """The last reading of an instance's power."""
        ...

    def clock_mhz(self, instance: str) -> int | None:
        """The clock in force at the last reading, by the GPUs' own account; None where they do not tell."""
        ...

    def heard(self, telemetry: Telemetry) -> None:
        """Telemetry came."""
        ...

    def ended(self, instance: str) -> None:
        """The server of an instance is gone."""
        ...

    def begin(self, start_s: float) -> None:
        """The run begins at this instant of the monotonic clock, which need not have come; meters are read from now."""
        ...

    async def settle(self) -> None:
        """Read all meters a last time."""
        ...

    @property
    def known_s(self) -> float:
        """Second of the run up to which all has been told; minus infinity before the first reading."""
        ...

    def rows(self, instance: str, phase: str, from_s: float, to_s: float) -> list[InstanceRow]:
        """What an instance did in a stretch of the run, with the mean power of each row; None where it is not known.

        Stretches are asked for in order.
        """
        ...

    def lags_ms(self) -> dict[str, dict[str, float | None]]:
        """How far servers that emulate GPUs fell behind the clock on the wall, by instance; empty for others."""
        ...

    async def close(self) -> None:
        """Give them back; safe to call more than once."""
        ...


class _Told:
    """What an emulated server has told of its GPUs."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []
        """Not asked for yet; as `voltana.live.servers.emulated.meter.Row`, all but the time None where forgotten."""
        self.count = 0
        """How many came, those before included."""
        self.end_s = -math.inf
        """How long the last of them lasts."""
        self.gone_s = math.inf
        """When the server ended."""
        self.power_w: float | None = None
        self.clock_mhz: int | None = None
        self.lag_ms: dict[str, float | None] = {}


class EmulatedGpus:
    """The GPUs of emulated servers.

    A command takes its time as in the simulator: it blocks for `block_s` per GPU, calls of one host go one after
    another, the newest command wins; the server itself lets the clock settle.

    Args:
        names: of the servers, in order.
        clocks_mhz, power_limits_w: of the GPUs.
        actuation: how long a command blocks.
        tp: GPUs of an instance.
        per_host: instances that share a host.
        drives: whether clocks are commanded.
    """

    def __init__(
        self,
        names: Sequence[str],
        clocks_mhz: Sequence[int],
        power_limits_w: tuple[float, float],
        actuation: ActuationConfig,
        tp: int,
        per_host: int,
        *,
        drives: bool = True,
    ) -> None:
        self.drives = drives
        self.often = False
        self.clocks_mhz = clocks_mhz
        self.power_limits_w: tuple[float, float] | None = power_limits_w
        self._endpoints: list[Endpoint] = []
        self._clocks = EmulatedClocks(())
        hosts = [asyncio.Lock() for _ in range(-(-len(names) // per_host))]
        self._host = {name: hosts[place // per_host] for place, name in enumerate(names)}
        self._call_s = actuation.block_s * tp
        self._wanted: dict[str, tuple[int, float | None]] = {}
        self._driven: dict[str, tuple[int, float | None]] = {}
        self._driving: dict[str, asyncio.Task[None]] = {}
        self._told = {name: _Told() for name in names}
        self._polls: list[asyncio.Task[None]] = []
        self._started = False
        self._start_s = 0.0

    async def open(self) -> None:
        """Nothing: they come with the servers."""

    async def attach(self, endpoints: Sequence[Endpoint]) -> None:
        """Connect; see `Gpus`."""
        self._endpoints = list(endpoints)
        self._clocks = EmulatedClocks(endpoints)
        try:
            await self._clocks.connect()
        except OSError as error:
            raise UserError(f"an emulated server does not answer ({error})") from error

    # Commands

    def set_clock(self, instance: str, clock_mhz: int) -> None:
        """Command a clock; see `Gpus`."""
        cap_w = self._wanted.get(instance, (0, None))[1]
        self._command(instance, (clock_mhz, cap_w))

    def set_power_cap(self, instance: str, power_cap_w: float | None) -> None:
        """Command a cap; see `Gpus`. It goes out with the first clock if there was none yet."""
        self._command(instance, (self._wanted.get(instance, (0, None))[0], power_cap_w))

    def _command(self, instance: str, setting: tuple[int, float | None]) -> None:
        self._wanted[instance] = setting
        if not setting[0]:
            return
        if not self._started:
            self._send(instance, setting)
        elif instance not in self._driving:
            self._driving[instance] = asyncio.create_task(self._drive(instance))

    async def _drive(self, instance: str) -> None:
        while (wanted := self._wanted[instance]) != self._driven.get(instance):
            async with self._host[instance]:
                wanted = self._wanted[instance]
                before = self._driven.get(instance, wanted)
                calls = sum(new != old for new, old in zip(wanted, before, strict=True))
                await asyncio.sleep(self._call_s * max(1, calls))
            self._send(instance, wanted)
        del self._driving[instance]

    def _send(self, instance: str, setting: tuple[int, float | None]) -> None:
        before = self._driven.get(instance, (0, None))
        self._driven[instance] = setting
        if setting[1] != before[1]:
            self._clocks.set_power_cap(instance, setting[1])
        if setting[0] != before[0]:
            self._clocks.set_clock(instance, setting[0])

    # Meters

    def power_w(self, instance: str) -> float | None:
        """The last reading; see `Gpus`."""
        return self._told[instance].power_w

    def clock_mhz(self, instance: str) -> int | None:
        """The clock in force; see `Gpus`."""
        return self._told[instance].clock_mhz

    def heard(self, telemetry: Telemetry) -> None:
        """Nothing: the servers know their load."""

    def ended(self, instance: str) -> None:
        """See `Gpus`. Its GPUs are gone with it."""
        told = self._told[instance]
        told.gone_s = min(told.gone_s, time.monotonic())
        told.power_w = told.clock_mhz = None

    def begin(self, start_s: float) -> None:
        """See `Gpus`. Before, commands act at once: the GPUs are where the policy wants them when the run begins."""
        self._started = True
        self._start_s = start_s
        every_s = READ_EVERY_S if self.often else ROWS_EVERY_S
        self._polls = [asyncio.create_task(self._poll(each, every_s)) for each in self._endpoints]

    async def _poll(self, endpoint: Endpoint, every_s: float) -> None:
        told, fetched_s = self._told[endpoint.name], time.monotonic()
        while True:
            await asyncio.sleep(every_s)
            try:
                now = await _get(endpoint, "/emulated/energy")
                told.power_w, told.clock_mhz = now["power_w"], now["clock_in_force_mhz"]
                if time.monotonic() - fetched_s >= ROWS_EVERY_S:
                    fetched_s = time.monotonic()
                    await self._fetch(endpoint)
            except (OSError, ValueError):
                told.power_w = told.clock_mhz = None

    async def _fetch(self, endpoint: Endpoint) -> None:
        told = self._told[endpoint.name]
        answer = await _get(endpoint, f"/emulated/rows?first={told.count}")
        if answer["first"] > told.count:
            told.rows.append((told.end_s, *_NOTHING))
        told.rows += [tuple(row) for row in answer["rows"]]
        told.count = answer["first"] + len(answer["rows"])
        told.end_s = answer["end_s"]
        told.lag_ms = answer["lag_ms"]

    async def settle(self) -> None:
        """Fetch the last rows; see `Gpus`. Of a server that is gone, what was fetched before stays."""
        for poll in self._polls:
            poll.cancel()
        await asyncio.gather(*self._polls, return_exceptions=True)
        for endpoint in self._endpoints:
            try:
                await self._fetch(endpoint)
            except (OSError, ValueError):
                logger.warning("%s does not tell its energy any more", endpoint.name)

    @property
    def known_s(self) -> float:
        """See `Gpus`; a server that is gone will tell nothing more."""
        ends_s = [told.end_s for told in self._told.values() if told.gone_s == math.inf]
        return min(ends_s, default=time.monotonic()) - self._start_s

    def rows(self, instance: str, phase: str, from_s: float, to_s: float) -> list[InstanceRow]:
        """See `Gpus`."""
        told = self._told[instance]
        afterwards = [(told.end_s, *_NOTHING), (max(told.end_s, told.gone_s), *_GONE)] if told.rows else []
        rows = [InstanceRow(row[0] - self._start_s, instance, phase, *row[1:]) for row in (*told.rows, *afterwards)]
        ends_s = [*(row.time_s for row in rows[1:]), math.inf]
        over = sum(end_s <= to_s for end_s in ends_s[: len(told.rows)])
        del told.rows[: min(over, len(told.rows) - 1)]
        return clipped(rows, ends_s, from_s, to_s)

    def lags_ms(self) -> dict[str, dict[str, float | None]]:
        """See `Gpus`."""
        return {name: told.lag_ms for name, told in self._told.items() if told.lag_ms}

    async def close(self) -> None:
        """Hang up."""
        tasks = [*self._polls, *self._driving.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._clocks.close()


_NOTHING = (None, None, None, None, None)
"""What is known of the state of an instance whose server does not answer."""
_GONE = (None, 0, 0, 0, None)
"""What is known where there is no server any more: it does nothing."""


async def _get(endpoint: Endpoint, path: str) -> dict[str, Any]:
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nhost: emulated\r\nconnection: close\r\n\r\n".encode())
            answer = await reader.read()
        finally:
            writer.close()
    told: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return told


class OwnedGpus:
    """GPUs that an owner of clocks commands and reads.

    Args:
        control: how to get at the owner.
        groups: the GPUs of each instance.
        drives: whether clocks are commanded.
        on_lost: called, in the event loop, when the owner is gone.
    """

    def __init__(
        self, control: Control, groups: Mapping[str, Sequence[int]], *, drives: bool, on_lost: Callable[[str], None]
    ) -> None:
        self.drives = drives
        self.often = False
        self.clocks_mhz: Sequence[int] = ()
        self.power_limits_w: tuple[float, float] | None = None
        self.refused: dict[str, int] = {}
        """How often the owner refused a command, by its words."""
        self._control = control
        self._groups = groups
        self._on_lost = on_lost
        self._feeds = isinstance(control, SimulatedControl)
        self._stack = ExitStack()
        self._client: ClockClient | None = None
        self._energy = {name: EnergyCurve() for name in groups}
        self._history = {name: History() for name in groups}
        self._heard: dict[str, Telemetry] = {}
        self._ended: set[str] = set()
        self._readings: dict[str, list[Reading]] = {}
        self._read_s = dict.fromkeys(groups, -math.inf)
        self._start_s = 0.0
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect to the owner and take the GPUs; see `Gpus`."""
        loop = asyncio.get_running_loop()
        gpus = [gpu for group in self._groups.values() for gpu in group]

        def on_event(event: Event) -> None:
            loop.call_soon_threadsafe(self._happened, event)

        opened = self._control.open(gpus, "voltana-live", on_event)
        self._client = client = self._stack.enter_context(opened)
        try:
            if self.drives:
                for name, group in self._groups.items():
                    client.own(name, group)
        except ClockError as error:
            self._stack.close()
            raise UserError(str(error)) from error
        known = [client.gpus[gpu] for gpu in gpus if gpu in client.gpus]
        shared = set.intersection(*(set(info.clocks_mhz) for info in known)) if known else set()
        self.clocks_mhz = sorted(shared)
        ranges = [info.power_limit_range_w for info in known if info.power_limit_range_w is not None]
        if ranges:
            self.power_limits_w = max(low for low, _ in ranges), min(high for _, high in ranges)

    async def attach(self, endpoints: Sequence[Endpoint]) -> None:
        """Nothing: whose they are is known."""

    def _happened(self, event: Event) -> None:
        if isinstance(event, Refused):
            if event.message not in self.refused:
                logger.warning("the owner of clocks refuses: %s", event.message)
            self.refused[event.message] = self.refused.get(event.message, 0) + 1
        elif isinstance(event, Lost):
            self._on_lost(event.message)

    # Commands

    def set_clock(self, instance: str, clock_mhz: int) -> None:
        """Command a clock; see `Gpus`."""
        if self._client is not None and self.drives:
            with contextlib.suppress(ClockError):  # the loss of the owner is told to `on_lost`
                self._client.set_clock(instance, clock_mhz)

    def set_power_cap(self, instance: str, power_cap_w: float | None) -> None:
        """Command a cap; see `Gpus`."""
        if self._client is not None and self.drives:
            with contextlib.suppress(ClockError):
                self._client.set_power_cap(instance, power_cap_w)

    def heard(self, telemetry: Telemetry) -> None:
        """Note what an instance does, and tell simulated GPUs; see `Gpus`."""
        name = telemetry.instance
        if self._reading is not None and name not in self._ended:
            self._note(telemetry)
        self._heard[name] = telemetry
        if self._feeds and self._client is not None:
            with contextlib.suppress(ClockError):
                self._client.feed(self._groups[name], load_of(telemetry))

    def _note(self, telemetry: Telemetry) -> None:
        published_s, load = telemetry.received_s - telemetry.transport_s, telemetry.load
        history = self._history[telemetry.instance]
        history.load(published_s - self._start_s, load.batch_size, load.batch_tokens, load.queued)

    def ended(self, instance: str) -> None:
        """See `Gpus`. Its GPUs rest."""
        self._ended.add(instance)
        self._history[instance].load(time.monotonic() - self._start_s, 0, 0, 0)
        if self._feeds and self._client is not None:
            with contextlib.suppress(ClockError):
                self._client.feed(self._groups[instance], Load())

    # Meters

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
        while True:
            began_s = time.monotonic()
            if not await self._read_once():
                return
            await asyncio.sleep(max(0.0, READ_EVERY_S - (time.monotonic() - began_s)))

    async def _read_once(self) -> bool:
        assert self._client is not None
        try:
            readings = (await asyncio.wrap_future(self._client.request_readings())).readings
        except ClockError:
            return False
        of = {reading.gpu: reading for reading in readings}
        for name, group in self._groups.items():
            self._take(name, [of[gpu] for gpu in group])
        return True

    def _take(self, name: str, readings: list[Reading]) -> None:
        self._readings[name] = readings
        time_s = sum(reading.time_s for reading in readings) / len(readings) - self._start_s
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

    def lags_ms(self) -> dict[str, dict[str, float | None]]:
        """None: these GPUs are nobody's emulation."""
        return {}

    async def close(self) -> None:
        """Hang up; the owner restores what was changed."""
        await self._stop_reading()
        self._client = None
        self._stack.close()
