"""GPUs of emulated servers, which keep their own clocks and meters and tell them over HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from voltana.errors import UserError
from voltana.live.clocks.schedule import RETRY_MOST_S, RETRY_S
from voltana.live.gpus import ANSWER_S, READ_EVERY_S, Gpus, Meter, Setpoint
from voltana.live.gpus.energy import clipped
from voltana.live.http import Connection, demand_json
from voltana.live.servers import Endpoint
from voltana.record import InstanceRow

logger = logging.getLogger(__name__)

ROWS_EVERY_S = 1.0
"""What a server has metered is fetched this often, so that little is lost with it."""
_NOTHING = (None, None, None, None, None)
"""What is known of the state of an instance whose server does not answer."""
_GONE = (None, 0, 0, 0, None)
"""What is known where there is no server any more: it does nothing."""


class _Instance:
    """What is commanded of an instance, and what it has told of its GPUs."""

    def __init__(self, host: asyncio.Lock) -> None:
        self.host = host
        """Held for the time of a command."""
        self.desired = Setpoint()
        self.in_force = Setpoint()
        """What the server has taken."""
        self.driving: asyncio.Task[None] | None = None
        self.commands: Connection | None = None
        self.meters: Connection | None = None
        self.rows: list[tuple[Any, ...]] = []
        """Not asked for yet; as `/emulated/rows` has them, all but the time None where forgotten."""
        self.count = 0
        """How many came, those before included."""
        self.end_s = -math.inf
        """How long the last of them lasts."""
        self.gone_s = math.inf
        """When the server ended."""
        self.power_w: float | None = None
        self.clock_mhz: int | None = None
        self.lag_ms: dict[str, float | None] = {}

    async def ask(self, path: str) -> dict[str, Any]:
        """What the server answers.

        Raises:
            UserError: it does not.
        """
        assert self.meters is not None
        return dict(await demand_json(self.meters, path))


class EmulatedGpus(Gpus):
    """The GPUs of emulated servers.

    In a run a command takes its time as in the simulator: it blocks for `command_s`, calls of one host go one after
    another, the newest command wins; the server itself lets the clock settle.

    Args:
        names: of the servers, in order.
        clocks_mhz, power_limits_w: of the GPUs.
        model: what they are.
        command_s: how long the command of one setting blocks, all GPUs of an instance.
        per_host: instances that share a host.
        drives: whether clocks are commanded.
    """

    def __init__(
        self,
        names: Sequence[str],
        clocks_mhz: Sequence[int],
        power_limits_w: tuple[float, float] | None = None,
        *,
        model: str = "emulated",
        command_s: float = 0.0,
        per_host: int = 1,
        drives: bool = True,
    ) -> None:
        self.drives = drives
        self.models = [model]
        self.clocks_mhz = clocks_mhz
        self.power_limits_w = power_limits_w
        hosts = [asyncio.Lock() for _ in range(-(-len(names) // per_host))]
        self._instances = {name: _Instance(hosts[place // per_host]) for place, name in enumerate(names)}
        self._command_s = command_s
        self._polls: list[asyncio.Task[None]] = []
        self._started = False
        self._start_s = 0.0

    async def attach(self, endpoints: Sequence[Endpoint]) -> None:
        """Connect; see `Gpus`."""
        for endpoint in endpoints:
            instance = self._instances[endpoint.name]
            instance.commands, instance.meters = Connection(endpoint.url), Connection(endpoint.url)
            await instance.ask("/emulated/energy")

    async def close(self) -> None:
        """Hang up; see `Gpus`. The servers go, and their clocks with them."""
        tasks = [*self._polls, *(each.driving for each in self._instances.values() if each.driving is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for instance in self._instances.values():
            for connection in (instance.commands, instance.meters):
                if connection is not None:
                    connection.close()

    # Commands

    def setpoint(self, instance: str) -> Setpoint:
        """See `Clocks`."""
        return self._instances[instance].desired

    def set_clock(self, instance: str, clock_mhz: int) -> None:
        """See `Clocks`."""
        self._command(instance, self.setpoint(instance)._replace(clock_mhz=clock_mhz))

    def set_power_cap(self, instance: str, power_cap_w: float | None) -> None:
        """See `Clocks`. It goes out with the first clock if there was none yet."""
        self._command(instance, self.setpoint(instance)._replace(power_cap_w=power_cap_w))

    def _command(self, name: str, setpoint: Setpoint) -> None:
        instance = self._instances[name]
        instance.desired = setpoint
        idle = instance.driving is None or instance.driving.done()
        if idle and setpoint.clock_mhz and instance.gone_s == math.inf:
            instance.driving = asyncio.create_task(self._drive(name, instance))

    async def _drive(self, name: str, instance: _Instance) -> None:
        """Bring what is desired into force."""
        assert instance.commands is not None
        pause_s = RETRY_S
        while instance.desired != instance.in_force:
            if self._started:
                async with instance.host:
                    pairs = zip(instance.desired, instance.in_force, strict=True)
                    await asyncio.sleep(self._command_s * max(1, sum(new != old for new, old in pairs)))
            wanted = instance.desired
            try:
                body = {"mhz": wanted.clock_mhz, "power_cap_w": wanted.power_cap_w}
                await demand_json(instance.commands, "/emulated/clock", body)
                instance.in_force, pause_s = wanted, RETRY_S
            except UserError as error:
                logger.warning("%s: %s; tried again in %g s", name, error, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MOST_S)

    async def apply(self, instance: str, clock_mhz: int) -> None:
        """Set a clock and wait for it; see `Gpus`."""
        self.set_clock(instance, clock_mhz)
        until_s = time.monotonic() + ANSWER_S
        while (found := (await self.read(instance)).clock_mhz) != clock_mhz:
            if time.monotonic() > until_s:
                raise UserError(f"control: {instance} was set to {clock_mhz} MHz and runs at {found} MHz")
            await asyncio.sleep(0.005)

    # Meters

    async def read(self, instance: str) -> Meter:
        """Read the meters; see `Gpus`."""
        told = await self._instances[instance].ask("/emulated/energy")
        return Meter(told["time_s"], told["energy_j"], told["clock_mhz"])

    def power_w(self, instance: str) -> float | None:
        """The last reading; see `Gpus`."""
        return self._instances[instance].power_w

    def clock_mhz(self, instance: str) -> int | None:
        """The clock in force; see `Gpus`."""
        return self._instances[instance].clock_mhz

    def ended(self, instance: str) -> None:
        """See `Gpus`. Its GPUs are gone with it."""
        told = self._instances[instance]
        told.gone_s = min(told.gone_s, time.monotonic())
        told.power_w = told.clock_mhz = None
        if told.driving is not None:
            told.driving.cancel()

    def begin(self, start_s: float) -> None:
        """See `Gpus`. Before, commands act at once: the GPUs are where the policy wants them when the run begins."""
        self._started = True
        self._start_s = start_s
        every_s = READ_EVERY_S if self.often else ROWS_EVERY_S
        self._polls = [asyncio.create_task(self._poll(each, every_s)) for each in self._instances.values()]

    async def _poll(self, told: _Instance, every_s: float) -> None:
        fetched_s = time.monotonic()
        while True:
            await asyncio.sleep(every_s)
            try:
                now = await told.ask("/emulated/energy")
                told.power_w, told.clock_mhz = now["power_w"], now["clock_in_force_mhz"]
                if time.monotonic() - fetched_s >= ROWS_EVERY_S:
                    fetched_s = time.monotonic()
                    await self._fetch(told)
            except UserError:
                told.power_w = told.clock_mhz = None

    async def _fetch(self, told: _Instance) -> None:
        answer = await told.ask(f"/emulated/rows?first={told.count}")
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
        await asyncio.gather(*(self._fetch_last(name, told) for name, told in self._instances.items()))

    async def _fetch_last(self, name: str, told: _Instance) -> None:
        try:
            await self._fetch(told)
        except UserError:
            logger.warning("%s does not tell its energy any more", name)

    @property
    def known_s(self) -> float:
        """See `Gpus`; a server that is gone will tell nothing more."""
        ends_s = [told.end_s for told in self._instances.values() if told.gone_s == math.inf]
        return min(ends_s, default=time.monotonic()) - self._start_s

    def rows(self, instance: str, phase: str, from_s: float, to_s: float) -> list[InstanceRow]:
        """See `Gpus`."""
        told = self._instances[instance]
        afterwards = [(told.end_s, *_NOTHING), (max(told.end_s, told.gone_s), *_GONE)] if told.rows else []
        rows = [InstanceRow(row[0] - self._start_s, instance, phase, *row[1:]) for row in (*told.rows, *afterwards)]
        ends_s = [*(row.time_s for row in rows[1:]), math.inf]
        over = sum(end_s <= to_s for end_s in ends_s[: len(told.rows)])
        del told.rows[: min(over, len(told.rows) - 1)]
        return clipped(rows, ends_s, from_s, to_s)

    def lags_ms(self) -> dict[str, dict[str, float | None]]:
        """See `Gpus`."""
        return {name: told.lag_ms for name, told in self._instances.items() if told.lag_ms}
