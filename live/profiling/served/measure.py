"""Measuring cells on servers: windows of the iterations that telemetry tells, and the energy meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from voltana.live.gpus import Gpus, Meter
from voltana.live.profiling.cells import Cell, Point
from voltana.live.profiling.precision import interval
from voltana.live.profiling.served.iterations import Iteration, Iterations
from voltana.live.profiling.served.pair import Pair
from voltana.live.profiling.served.settings import ServedSettings
from voltana.prediction.profile import Sample
from voltana.state import Phase

METER_S = 0.02
"""The meters are read this often: an NVML energy counter moves every 20 to 100 ms, and when is known no better."""
IDLE_S = 1.0
END_S = 30.0
"""Requests that were given up are gone after so long."""
CUT = 0.1
"""Share of the iterations at either end of the order of latency that is left out: hiccups of a shared host."""


@dataclass(frozen=True)
class Served:
    """A cell measured at a clock."""

    phase: Phase
    clock_mhz: int
    asked_batch: int
    asked_length: int
    """Tokens of each request."""
    batch_size: int
    tokens: int
    """What the iterations really had, in the mean."""
    latency_s: float
    latency_interval: float
    """Half width of the 95 % interval of the mean, relative to it."""
    iterations: int
    energy_j: float | None
    spent_s: float

    @property
    def cell(self) -> Cell:
        """The load that was asked for."""
        return Cell(self.phase, self.asked_batch, self.asked_length)

    @property
    def point(self) -> Point:
        """The load that there was, and its latency."""
        return Point(self.phase, self.batch_size, self.tokens, self.latency_s)

    def sample(self) -> Sample:
        """The row of the profile table."""
        return Sample(self.phase, self.clock_mhz, self.batch_size, self.tokens, self.latency_s, self.energy_j)


class NotReachedError(Exception):
    """The servers did not run what was asked for; the message says what they ran."""


class Stage:
    """A pair of servers, what it runs, and its GPUs.

    Args:
        pair: the servers.
        iterations: what their telemetry tells.
        gpus: their clocks and meters.
        settings: how long to measure.
    """

    def __init__(self, pair: Pair, iterations: Iterations, gpus: Gpus, settings: ServedSettings) -> None:
        self._pair = pair
        self._iterations = iterations
        self._gpus = gpus
        self._settings = settings
        self._idle_w: dict[tuple[str, int], float | None] = {}

    async def measure(self, cell: Cell, clocks_mhz: Sequence[int], settable: bool) -> AsyncIterator[Served]:
        """Measure a cell at each of the clocks.

        Args:
            cell: the load.
            clocks_mhz: clocks to set in turn, or the one in force.
            settable: whether they are set.

        Raises:
            NotReachedError: the servers did not run it.
            UserError: a server or the GPUs refuse.
        """
        one_phase = self._prefill if cell.phase == "prefill" else self._decode
        async for measured in one_phase(cell, clocks_mhz, settable):
            yield measured

    async def _set(self, instance: str, clock_mhz: int, settable: bool) -> None:
        if settable:
            await self._gpus.apply(instance, clock_mhz)

    # Prefill: one batch after the other

    async def _prefill(self, cell: Cell, clocks_mhz: Sequence[int], settable: bool) -> AsyncIterator[Served]:
        name = self._pair.prefill.name
        for clock in clocks_mhz:
            began_s = time.monotonic()
            await self._set(name, clock, settable)
            idle_w = await self._idle_power_w(name, clock)
            self._iterations.clear(name)
            largest: list[Iteration] = []
            async with self._metered(name) as readings:
                while not self._enough(largest):
                    largest.append(await self._one_batch(name, cell))
            yield self._result(cell, clock, largest, self._power_w(name, readings, idle_w), began_s)

    async def _one_batch(self, name: str, cell: Cell) -> Iteration:
        """A batch may run in parts, if its prompts did not come together: the largest part is what counts."""
        before = len(self._iterations.ended(name))
        await self._pair.prefill_once(cell.batch_size, cell.length, self._settings.timeout_s)
        ended = self._iterations.ended(name)
        if not await self._iterations.until(lambda: len(ended) > before and not self._busy(name), END_S):
            raise NotReachedError("no iteration was told")
        return max(ended[before:], key=lambda iteration: iteration.tokens)

    def _busy(self, name: str) -> bool:
        return self._iterations.load(name).batch_size > 0

    # Decode: one batch that goes on and on, while the clock changes

    async def _decode(self, cell: Cell, clocks_mhz: Sequence[int], settable: bool) -> AsyncIterator[Served]:
        todo = list(clocks_mhz)
        while todo:
            before = len(todo)
            async for measured in self._one_load(cell, todo, settable):
                todo.remove(measured.clock_mhz)
                yield measured
            if len(todo) == before:
                raise NotReachedError("requests ended before a window was full: raise profile.decode.output_tokens")

    async def _one_load(self, cell: Cell, clocks_mhz: Sequence[int], settable: bool) -> AsyncIterator[Served]:
        name = self._pair.decode.name
        began_s = time.monotonic()
        await self._set(name, clocks_mhz[-1], settable)
        async with self._pair.decoding(cell.batch_size, cell.length, self._settings.decode.output_tokens) as ended:
            ended.add_done_callback(self._iterations.wake)
            await self._until_full(name, cell, ended)
            for clock in reversed(clocks_mhz):
                await self._set(name, clock, settable)
                window = await self._decode_window(name, cell, ended)
                if window is None:
                    break
                iterations, power_w = window
                yield self._result(cell, clock, iterations, power_w, began_s)
                began_s = time.monotonic()
        await self._iterations.until(lambda: not self._busy(name), END_S)

    async def _until_full(self, name: str, cell: Cell, ended: asyncio.Future[None]) -> None:
        def full() -> bool:
            return ended.done() or self._iterations.load(name).batch_size == cell.batch_size

        largest_s = self._settings.timeout_s
        reached = await self._iterations.until(full, largest_s)
        if ended.done():
            ended.result()
            raise NotReachedError("requests ended before all were in the batch: raise profile.decode.output_tokens")
        if not reached:
            found = self._iterations.load(name).batch_size
            raise NotReachedError(f"the batch had {found} of {cell.batch_size} requests after {largest_s:g} s")

    async def _decode_window(
        self, name: str, cell: Cell, ended: asyncio.Future[None]
    ) -> tuple[list[Iteration], float | None] | None:
        """Iterations of the whole batch from now on, and the power meanwhile; None if it ended before."""
        from_s = time.monotonic()
        self._iterations.clear(name)

        def whole() -> list[Iteration]:
            seen = self._iterations.ended(name)
            return [each for each in seen if each.start_s >= from_s and each.batch_size == cell.batch_size]

        async with self._metered(name) as readings:
            full = await self._iterations.until(lambda: ended.done() or self._enough(whole()), self._settings.timeout_s)
        if not full or ended.done():
            return None
        return whole(), self._power_w(name, readings, None)

    # Windows

    def _enough(self, iterations: Sequence[Iteration]) -> bool:
        """Whether a mean is known well enough, or can be known no better in the time for it."""
        settings = self._settings
        least, most = settings.iterations
        if len(iterations) < least:
            return False
        spent_s = sum(iteration.duration_s for iteration in iterations)
        if spent_s < settings.window_s[0]:
            return False
        if len(iterations) >= most or spent_s >= settings.window_s[1]:
            return True
        return interval([each.duration_s for each in trimmed(iterations)]) <= settings.tolerance

    def _result(
        self, cell: Cell, clock_mhz: int, iterations: Sequence[Iteration], power_w: float | None, began_s: float
    ) -> Served:
        kept = trimmed(iterations)
        latency_s = statistics.fmean(each.duration_s for each in kept)
        return Served(
            phase=cell.phase,
            clock_mhz=clock_mhz,
            asked_batch=cell.batch_size,
            asked_length=cell.length,
            batch_size=max(1, round(statistics.fmean(each.batch_size for each in kept))),
            tokens=max(1, round(statistics.fmean(each.tokens for each in kept))),
            latency_s=latency_s,
            latency_interval=interval([each.duration_s for each in kept]),
            iterations=len(kept),
            energy_j=power_w * latency_s if power_w is not None and power_w > 0 else None,
            spent_s=time.monotonic() - began_s,
        )

    # Energy

    @contextlib.asynccontextmanager
    async def _metered(self, name: str) -> AsyncIterator[list[Meter]]:
        """Read the meters now and then, and at both ends."""
        readings = [await self._gpus.read(name)]
        if readings[0].energy_j is None:
            yield readings
            return
        reading = asyncio.create_task(self._keep_reading(name, readings))
        try:
            yield readings
        finally:
            reading.cancel()
            await asyncio.wait([reading])
        if not reading.cancelled():
            reading.result()
        readings.append(await self._gpus.read(name))

    async def _keep_reading(self, name: str, readings: list[Meter]) -> None:
        while True:
            await asyncio.sleep(METER_S)
            readings.append(await self._gpus.read(name))

    async def _idle_power_w(self, name: str, clock_mhz: int) -> float | None:
        """Power at a clock with nothing to run; measured once."""
        if (name, clock_mhz) not in self._idle_w:
            async with self._metered(name) as readings:
                if readings[0].energy_j is not None:
                    await asyncio.sleep(IDLE_S)
            self._idle_w[name, clock_mhz] = mean_power_w(readings, [], None)
        return self._idle_w[name, clock_mhz]

    def _power_w(self, name: str, readings: Sequence[Meter], idle_w: float | None) -> float | None:
        return mean_power_w(readings, self._iterations.ended(name), idle_w)


def mean_power_w(readings: Sequence[Meter], iterations: Sequence[Iteration], idle_w: float | None) -> float | None:
    """Mean power while iterations ran, W; with no iterations, mean power.

    Energy is taken between the first and the last tick of the counter, which moves in steps. What the time between
    iterations took, at idle power, is taken off it.

    Args:
        readings: of one instance, in order.
        iterations: all that ran between them.
        idle_w: power at rest; None: there was no rest.

    Returns:
        None if the counter did not move twice, or went back, as one that started again does.
    """
    counted_j = [reading.energy_j for reading in readings if reading.energy_j is not None]
    if counted_j != sorted(counted_j):
        return None
    ticks = [
        (later.time_s, later.energy_j)
        for earlier, later in itertools.pairwise(readings)
        if later.energy_j is not None and later.energy_j != earlier.energy_j
    ]
    if len(ticks) < 2:
        return None
    (start_s, first_j), (end_s, last_j) = ticks[0], ticks[-1]
    span_s, energy_j = end_s - start_s, last_j - first_j
    if idle_w is None or not iterations:
        return energy_j / span_s
    busy_s = sum(_overlap(each, start_s, end_s) for each in iterations)
    if busy_s <= 0.0:
        return None
    return max(0.0, energy_j - idle_w * max(0.0, span_s - busy_s)) / busy_s


def _overlap(iteration: Iteration, start_s: float, end_s: float) -> float:
    return max(0.0, min(end_s, iteration.start_s + iteration.duration_s) - max(start_s, iteration.start_s))


def trimmed(iterations: Sequence[Iteration]) -> list[Iteration]:
    """Iterations without the slowest and fastest tenth."""
    ordered = sorted(iterations, key=lambda each: each.duration_s)
    cut = math.floor(CUT * len(ordered))
    return ordered[cut : len(ordered) - cut]
