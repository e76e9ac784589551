"""GPUs that are not there: they draw power by the plant, behind the delays and the coarse sensor of real ones."""

from __future__ import annotations

import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from uuid import NAMESPACE_OID, uuid5

from pydantic import Field

from voltana.errors import UserError
from voltana.live.clocks.device import DeviceError, Driver, GpuDevice, GpuInfo, check_clock, check_power_limit
from voltana.section import Section, WholeNumber, between, parse
from voltana.sim.plant import EngineSpec, GpuSpec, ModelSpec, Plant, Step

BLOCK_S = 0.003
"""A clock command blocks for so long (PHYSICS: ~3 ms)."""
SETTLE_S = 0.020
"""From its end until the clock is in force (PHYSICS: up to ~20 ms)."""
SENSOR_PERIOD_S = 0.100
SENSOR_WINDOW_S = 0.025
SENSOR_GAIN_ERROR = 0.05
"""The sensor of an A100 or H100: a new value each period, the mean over the window before it, a gain of its own.
Another GPU may have another window (`GpuSpec.sensor_window_s`)."""
LEAST_CAP = 0.25
"""The lowest power cap accepted, as a share of the default limit (A100: 100 of 400 W)."""


@dataclass(frozen=True)
class Load:
    """What an instance runs from now on, whole TP group."""

    phase: Literal["idle", "prefill", "decode"] = "idle"
    requests: int = 0
    """In the batch."""
    tokens: int = 0
    """Prefill: new prompt tokens of the iteration; decode: KV tokens of the batch."""
    token_pairs: float = 0.0
    """Prefill: causal attention pairs, as `Plant.prefill` counts them."""


class SimulatedGpu(GpuDevice):
    """One GPU of an instance of `plant.model.tp`; it draws that share of the instance's power.

    Its load comes through `feed`, and holds until the next. Power follows at once; a clock that was commanded is in
    force `settle_s` after the command has blocked for `block_s`. Without a lock the GPU runs at its highest clock.
    A power cap below the plant's own: the highest clock at or below the one asked for at which the plant's power is
    within the cap, or the lowest clock if none is.
    The energy counter is the exact integral of the power, to the mJ.
    `feed` may be called from any thread; `now` and `sleep` are the clock, so that a test need not wait.
    `host` makes its UUID another than that of a GPU simulated elsewhere.
    """

    def __init__(
        self,
        gpu: int,
        plant: Plant,
        *,
        seed: int = 0,
        host: str = "",
        block_s: float = BLOCK_S,
        settle_s: float = SETTLE_S,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        lock: threading.Lock | None = None,
    ) -> None:
        spec = plant.gpu
        self._window_s = spec.sensor_window_s or SENSOR_WINDOW_S
        self.info = GpuInfo(
            gpu=gpu,
            uuid=f"GPU-{uuid5(NAMESPACE_OID, f'voltana {host} {seed} {gpu}')}",
            name=f"{spec.name} (simulated)",
            clocks_mhz=spec.clocks(),
            default_power_limit_w=spec.power_limit_w,
            power_limit_range_w=(LEAST_CAP * spec.power_limit_w, spec.power_limit_w),
            power_meter=f"simulated, mean of {self._window_s * 1e3:g} ms",
            settle_s=settle_s,
        )
        self._plant, self._block_s, self._settle_s = plant, block_s, settle_s
        self._now, self._sleep = now, sleep
        self._guard = lock or threading.Lock()
        draws = random.Random(f"{seed}/{gpu}")
        self._gain = 1.0 + draws.uniform(-SENSOR_GAIN_ERROR, SENSOR_GAIN_ERROR)
        self._sensor_phase_s = draws.uniform(0.0, SENSOR_PERIOD_S)
        self._load = Load()
        self._locked_mhz: int | None = None
        self._cap_w = spec.power_limit_w
        self._coming: deque[tuple[float, int | None]] = deque()
        self._power_w, self._clock_mhz = self._draw()
        self._meter = _Meter(now(), self._power_w, SENSOR_PERIOD_S + self._window_s)

    def feed(self, load: Load) -> None:
        """Run this load from now on."""
        with self._guard:
            self._advance()
            self._load = load
            self._change(self._meter.time_s)

    def lock_clock(self, mhz: int) -> None:
        """Hold a clock, in force `block_s` + `settle_s` from now."""
        check_clock(self.info, mhz)
        self._command(mhz)

    def reset_clock(self) -> None:
        """Back to the highest clock, with the same delays."""
        self._command(None)

    def power_limit_w(self) -> float:
        """The cap, W."""
        return self._cap_w

    def set_power_limit(self, watts: float) -> None:
        """Cap the power, in force as the call returns."""
        check_power_limit(self.info, watts)
        self._sleep(self._block_s)
        with self._guard:
            self._advance()
            self._cap_w = watts
            self._change(self._meter.time_s)

    def power_w(self) -> float:
        """What the sensor last published."""
        with self._guard:
            self._advance()
            periods = math.floor((self._meter.time_s - self._sensor_phase_s) / SENSOR_PERIOD_S)
            published_s = self._sensor_phase_s + periods * SENSOR_PERIOD_S
            seen_j = self._meter.at(published_s) - self._meter.at(published_s - self._window_s)
            return self._gain * seen_j / self._window_s

    def energy_j(self) -> float:
        """Since this object was made, to the mJ."""
        with self._guard:
            self._advance()
            return math.floor(self._meter.energy_j * 1e3) / 1e3

    def clock_mhz(self) -> int:
        """The clock in force; under a power limit the plant may alternate between two, then their mean."""
        with self._guard:
            self._advance()
            return round(self._clock_mhz)

    def _command(self, mhz: int | None) -> None:
        self._sleep(self._block_s)
        with self._guard:
            self._advance()
            self._coming.append((self._now() + self._settle_s, mhz))

    def _advance(self) -> None:
        """Bring the meter to the present, past every clock that has come into force."""
        now_s = self._now()
        while self._coming and self._coming[0][0] <= now_s:
            at_s, self._locked_mhz = self._coming.popleft()
            self._change(at_s)
        self._meter.advance(now_s, self._power_w)

    def _change(self, time_s: float) -> None:
        self._meter.advance(time_s, self._power_w)
        self._power_w, self._clock_mhz = self._draw()

    def _draw(self) -> tuple[float, float]:
        """Power of this GPU, W, and its clock, MHz, under the present load, lock and cap."""
        clocks = self.info.clocks_mhz
        asked = self._locked_mhz or clocks[-1]
        step = self._step(asked)
        if not self._within_cap(step):
            step = self._capped([clock for clock in clocks if clock <= asked])
        return step.power_w, step.clock_mhz

    def _capped(self, clocks_mhz: list[int]) -> Step:
        """The highest clock within the cap: power rises with the clock, so it can be bisected."""
        low, high = 0, len(clocks_mhz) - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self._within_cap(self._step(clocks_mhz[middle])):
                low = middle
            else:
                high = middle - 1
        return self._step(clocks_mhz[low])

    def _within_cap(self, step: Step) -> bool:
        return step.power_w <= self._cap_w * (1.0 + 1e-9)  # the plant's own limit is kept to rounding

    def _step(self, clock_mhz: int) -> Step:
        """An iteration under the present load, its power that of one GPU."""
        load, plant = self._load, self._plant
        if load.phase == "decode" and load.requests > 0:
            step = plant.decode(load.requests, load.tokens, clock_mhz)
        elif load.phase == "prefill" and load.requests > 0 and load.tokens > 0:
            step = plant.prefill(load.requests, load.tokens, load.token_pairs, clock_mhz)
        else:
            step = Step(0.0, plant.idle_power_w(clock_mhz), clock_mhz)
        return step._replace(power_w=step.power_w / plant.model.tp)


class _Meter:
    """The integral of a power that is constant from change to change, with as much past as the sensor looks back on."""

    def __init__(self, time_s: float, power_w: float, past_s: float) -> None:
        self.time_s, self.energy_j = time_s, 0.0
        self._past_s = past_s
        self._past = deque([(time_s - past_s, -power_w * past_s), (time_s, 0.0)])

    def advance(self, time_s: float, power_w: float) -> None:
        """Draw `power_w` from the last call until `time_s`."""
        if time_s <= self.time_s:
            return
        self.energy_j += power_w * (time_s - self.time_s)
        self.time_s = time_s
        self._past.append((time_s, self.energy_j))
        while self._past[1][0] < time_s - self._past_s:
            self._past.popleft()

    def at(self, time_s: float) -> float:
        """The integral at a time in the past the sensor sees."""
        later = next((point for point in self._past if point[0] > time_s), self._past[-1])
        earlier = next((point for point in reversed(self._past) if point[0] <= time_s), self._past[0])
        if later[0] == earlier[0]:
            return earlier[1]
        return earlier[1] + (later[1] - earlier[1]) * (time_s - earlier[0]) / (later[0] - earlier[0])


class SimulatedHost(Section):
    """What an owner of simulated GPUs is told: what its plant is made of, how many GPUs, and their delays, seconds."""

    gpu: GpuSpec
    model: ModelSpec
    engine: EngineSpec
    gpus: Annotated[int, Field(ge=1, le=1024, strict=True)]
    seed: WholeNumber = 0
    block_s: Annotated[float, between(0, 10)] = BLOCK_S
    settle_s: Annotated[float, between(0, 10)] = SETTLE_S


class SimulatedDriver(Driver):
    """A host full of simulated GPUs, all of one kind and serving one model.

    Args:
        plant: the physics of one instance.
        gpus: how many GPUs the host has.
        seed: of the sensors' errors.
        host: where they are, which the UUIDs of its GPUs depend on: an owner's folder, so that an owner started anew
            there finds the same GPUs, and one elsewhere has others.
        block_s: a clock command blocks for so long.
        settle_s: from its end until the clock is in force.
    """

    def __init__(
        self,
        plant: Plant,
        gpus: int,
        *,
        seed: int = 0,
        host: str = "",
        block_s: float = BLOCK_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        guard = threading.Lock()  # the plant remembers what it has worked out, and is shared
        self._devices = tuple(
            SimulatedGpu(gpu, plant, seed=seed, host=host, block_s=block_s, settle_s=settle_s, lock=guard)
            for gpu in range(gpus)
        )

    @classmethod
    def of(cls, settings: Mapping[str, Any], host: str = "") -> Self:
        """Build from plain values, those of a `SimulatedHost`, and where they are.

        Raises:
            UserError: an unknown or missing key, a bad value.
        """
        try:
            told = parse(SimulatedHost, settings)
        except UserError as error:
            raise UserError(f"simulated GPUs: {error}") from error
        plant = Plant(told.gpu, told.model, told.engine)
        return cls(plant, told.gpus, seed=told.seed, host=host, block_s=told.block_s, settle_s=told.settle_s)

    def gpus(self) -> tuple[int, ...]:
        """All of them."""
        return tuple(range(len(self._devices)))

    def open(self, gpu: int) -> SimulatedGpu:
        """The same object each time: what it has drawn does not go away."""
        if gpu not in self.gpus():
            raise DeviceError("missing", f"GPU {gpu}: found no such index; allowed: 0 to {len(self._devices) - 1}")
        return self._devices[gpu]
