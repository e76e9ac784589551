"""Measuring one cell: windows of repeated iterations until their mean is known well enough."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from voltana.live.clocks.device import GpuDevice
from voltana.live.profiling.cells import Cell, Point
from voltana.live.profiling.precision import interval, spread
from voltana.live.profiling.torch.blocks import Decode, Prefill, Shard
from voltana.live.profiling.torch.device import Device, Step
from voltana.live.profiling.torch.roofline import SLACK, Floor, Rates, floor
from voltana.live.profiling.torch.sensor import Watch
from voltana.live.profiling.torch.settings import Settings
from voltana.prediction.profile import Sample
from voltana.sim.plant import EngineSpec
from voltana.state import Phase

WARM_UP_SHARE = 0.2
"""Of a window, before the first: clocks and power settle."""


@dataclass(frozen=True)
class Measured:
    """A finished cell: means over windows, for the whole model on the whole TP group."""

    phase: Phase
    clock_mhz: int
    batch_size: int
    length: int
    latency_s: float
    latency_spread: float
    """Standard deviation over windows, relative to the mean."""
    latency_interval: float
    """Half width of the 95 % interval of the mean, relative to it."""
    windows: int
    energy_j: float | None
    energy_spread: float | None
    sm_clock_mhz: float | None
    """As read meanwhile: below `clock_mhz` where the GPU lowered its clock by itself."""
    floor_s: float
    floor_bound: str
    spent_s: float

    @property
    def cell(self) -> Cell:
        """The load."""
        return Cell(self.phase, self.batch_size, self.length)

    @property
    def point(self) -> Point:
        """The load and its latency."""
        return Point(self.phase, self.batch_size, self.cell.tokens, self.latency_s)

    @property
    def too_fast(self) -> bool:
        """Whether it undercuts its floor, which nothing real can."""
        return self.latency_s < (1.0 - SLACK) * self.floor_s

    def sample(self) -> Sample:
        """The row of the profile table."""
        return Sample(
            self.phase, self.clock_mhz, self.batch_size, self.cell.tokens, self.latency_s, self.energy_j or None
        )


@dataclass(frozen=True)
class Window:
    """One stretch of repeated iterations."""

    latency_s: float
    power_w: float | None
    clock_mhz: float | None


class Bench:
    """Measures cells of one model on one device.

    Args:
        device: where the shard lies.
        shard: weights and KV room.
        engine: which batch sizes have CUDA graphs.
        gpu: its meters; None where there are none.
        settings: windows and tolerance.
        layer_counts: layers to run: all of the model, or two counts from which the rest is extrapolated.
    """

    def __init__(
        self,
        device: Device,
        shard: Shard,
        engine: EngineSpec,
        gpu: GpuDevice | None,
        settings: Settings,
        layer_counts: Sequence[int],
    ) -> None:
        self._device = device
        self._shard = shard
        self._engine = engine
        self._gpu = gpu
        self._settings = settings
        self._counts = layer_counts

    def measure(self, cell: Cell, clock_mhz: int, rates: Rates) -> Measured:
        """Measure a cell at the clock in force, called `clock_mhz`."""
        began = time.perf_counter()
        steps = [self._step(cell, count) for count in self._counts]
        times = [self._warm_up(step) for step in steps]
        whole: list[Window] = []
        least, most = self._settings.windows
        while len(whole) < least or (len(whole) < most and self._interval(whole) > self._settings.tolerance):
            whole.append(self._extrapolate([self._window(s, n) for s, n in zip(steps, times, strict=True)]))
        latency = statistics.fmean(w.latency_s for w in whole)
        tp = self._shard.model.tp
        energies = [tp * w.power_w * w.latency_s for w in whole if w.power_w is not None]
        clocks = [w.clock_mhz for w in whole if w.clock_mhz is not None]
        least_s = self._floor(cell, rates)
        return Measured(
            phase=cell.phase,
            clock_mhz=clock_mhz,
            batch_size=cell.batch_size,
            length=cell.length,
            latency_s=latency,
            latency_spread=spread([w.latency_s for w in whole]),
            latency_interval=self._interval(whole),
            windows=len(whole),
            energy_j=statistics.fmean(energies) if energies else None,
            energy_spread=spread(energies) if len(energies) > 1 else None,
            sm_clock_mhz=statistics.fmean(clocks) if clocks else None,
            floor_s=least_s.seconds,
            floor_bound=least_s.bound,
            spent_s=time.perf_counter() - began,
        )

    def clock_in_force(self, gpu: GpuDevice) -> float | None:
        """SM clock under a light load, where no power limit lowers it; None if it is not told."""
        step = self._step(Cell("decode", 1, 1), self._counts[-1])
        times = self._warm_up(step)
        with Watch(gpu) as watch:
            self._device.timed(step, times)
        return watch.clock_mhz

    def idle_power_w(self, seconds: float) -> float | None:
        """Power of one GPU with the model loaded and nothing running."""
        if self._gpu is None:
            return None
        time.sleep(0.5)  # from the last kernel on
        with Watch(self._gpu) as watch:
            time.sleep(seconds)
        return watch.power_w

    def _step(self, cell: Cell, layers: int) -> Step:
        if cell.phase == "prefill":
            return self._device.repeatable(Prefill(self._shard, cell, layers), graph=False)
        rows, graph = self._engine.padded(cell.batch_size), self._engine.captured(cell.batch_size)
        return self._device.repeatable(Decode(self._shard, cell, layers, rows), graph)

    def _warm_up(self, step: Step) -> int:
        """Run for a while; how many steps make a window."""
        times = self._times(step)
        self._device.timed(step, max(1, round(WARM_UP_SHARE * times)))
        return times

    def _times(self, step: Step) -> int:
        once = self._device.timed(step, 1)
        return max(1, math.ceil(self._settings.window_s / min(once, self._device.timed(step, 1))))

    def _window(self, step: Step, times: int) -> Window:
        with ExitStack() as stack:
            watch = stack.enter_context(Watch(self._gpu)) if self._gpu else None
            seconds = self._device.timed(step, times) / times
        return Window(seconds, watch.power_w if watch else None, watch.clock_mhz if watch else None)

    def _extrapolate(self, windows: Sequence[Window]) -> Window:
        """The whole model's window from those of the layer counts; energy, not power, is a line in layers."""
        latency = self._whole([w.latency_s for w in windows])
        powers = [w.power_w for w in windows]
        energies = [p * w.latency_s for p, w in zip(powers, windows, strict=True) if p is not None]
        power = self._whole(energies) / latency if len(energies) == len(windows) else None
        return Window(latency, power, windows[-1].clock_mhz)

    def _whole(self, values: Sequence[float]) -> float:
        return through(self._counts, values, self._shard.model.layers)

    def _interval(self, windows: Sequence[Window]) -> float:
        return interval([w.latency_s for w in windows])

    def _floor(self, cell: Cell, rates: Rates) -> Floor:
        model, shard = self._shard.model, self._shard
        rows = cell.tokens if cell.phase == "prefill" else self._engine.padded(cell.batch_size)
        cache = self._device.facts.cache_bytes
        return floor(shard.shapes, cell, rows, model.layers, len(shard.layers), cache, rates)


def through(counts: Sequence[int], values: Sequence[float], layers: int) -> float:
    """The value at `layers` on the line through one or two points; one point is taken as it is.

    An iteration is a fixed part (embedding, output projection) and a part per layer.
    """
    if len(counts) == 1:
        return values[0]
    (low, high), (first, second) = counts, values
    return first + (second - first) * (layers - low) / (high - low)
