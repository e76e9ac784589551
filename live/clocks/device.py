"""One GPU of this host as a controller sees it: what can be set, what can be read. Implementations stand beside.

    nvml.py        a real GPU
    simulated.py   a GPU that draws power by the plant

Energy: the counter (`energy_j`) is the better meter. The power sensor of an A100 or H100 shows a new value every
100 ms, the mean of 25 ms, up to 5 % off; over 200 ms and more the counter agrees with fine integration within 2 %.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

Fault = Literal["permission", "lost", "unsupported", "missing", "driver"]
Value = TypeVar("Value")


class DeviceError(Exception):
    """A driver call that failed.

    Args:
        fault: "permission" (the caller may not), "lost" (the GPU fell off the bus), "unsupported" (this GPU cannot, or
            not to that value), "missing" (there is no such GPU), "driver" (all else).
        message: one line for people.
    """

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault: Fault = fault


@dataclass(frozen=True)
class GpuInfo:
    """What does not change about a GPU."""

    gpu: int
    """Its index on this host."""
    uuid: str
    name: str
    clocks_mhz: tuple[int, ...] = ()
    """Supported SM clocks, ascending."""
    default_power_limit_w: float | None = None
    power_limit_range_w: tuple[float, float] | None = None
    """Lowest and highest power limit; None: it cannot be set, or not here."""
    power_meter: str | None = None
    """Where `GpuDevice.power_w` comes from, and what it is the mean of; None: unknown."""
    settle_s: float | None = None
    """From the end of a clock command until the clock is in force; None: unknown."""


@dataclass(frozen=True)
class Reading:
    """The meters of one GPU at one moment; what it cannot tell is None, never zero."""

    gpu: int
    time_s: float
    """System-wide monotonic clock (CLOCK_MONOTONIC), halfway through the reading of the energy counter."""
    power_w: float | None
    energy_j: float | None
    """A counter: only differences mean something."""
    clock_mhz: int | None


class GpuDevice(ABC):
    """One GPU. Every method may raise `DeviceError`; none is to be called from two threads at once."""

    info: GpuInfo

    @abstractmethod
    def lock_clock(self, mhz: int) -> None:
        """Hold the SM clock at one of the supported clocks. Blocks for a driver call, ~3 ms."""

    @abstractmethod
    def reset_clock(self) -> None:
        """Give the SM clock back to the GPU's own governor."""

    @abstractmethod
    def power_limit_w(self) -> float:
        """The power cap in force, W."""

    @abstractmethod
    def set_power_limit(self, watts: float) -> None:
        """Cap the power; the GPU then lowers its own clock as needed."""

    def reset_power_limit(self) -> None:
        """Cap the power at the GPU's default."""
        if self.info.default_power_limit_w is None:
            raise DeviceError("unsupported", f"GPU {self.info.gpu}: its default power limit is unknown")
        self.set_power_limit(self.info.default_power_limit_w)

    @abstractmethod
    def power_w(self) -> float:
        """The power sensor, W: coarse, see the top of this file."""

    @abstractmethod
    def energy_j(self) -> float:
        """The energy counter, J."""

    @abstractmethod
    def clock_mhz(self) -> int:
        """The SM clock at this moment."""

    def check_privilege(self) -> None:
        """Raise `DeviceError` ("permission") if this process may not lock the GPU's clock.

        Where it may not set the power limit, `info` has no range of it from then on.
        """
        return

    def divided(self) -> bool:
        """Whether the GPU is divided into instances (MIG), whose clock is that of the whole."""
        return False

    def read(self) -> Reading:
        """All meters at once; one that fails is None.

        Raises:
            DeviceError: the GPU is lost.
        """
        before_s = time.monotonic()
        energy_j = _or_none(self.energy_j)
        time_s = (before_s + time.monotonic()) / 2
        return Reading(self.info.gpu, time_s, _or_none(self.power_w), energy_j, _or_none(self.clock_mhz))


class DeviceGroup:
    """The GPUs of one tensor-parallel instance, set together: they run in lockstep, so one slow GPU slows all."""

    def __init__(self, devices: Sequence[GpuDevice]) -> None:
        if not devices:
            raise ValueError("a group needs at least one GPU")
        self.devices = tuple(devices)

    def clocks_mhz(self) -> tuple[int, ...]:
        """Clocks that all of them support, ascending."""
        common = set.intersection(*(set(device.info.clocks_mhz) for device in self.devices))
        return tuple(sorted(common))

    def lock_clock(self, mhz: int) -> None:
        """Lock the clock of every GPU; one that fails does not keep the others from being set."""
        self.each(lambda device: device.lock_clock(mhz))

    def reset_clock(self) -> None:
        """Reset the clock of every GPU."""
        self.each(lambda device: device.reset_clock())

    def set_power_limit(self, watts: float) -> None:
        """Cap the power of every GPU, W each."""
        self.each(lambda device: device.set_power_limit(watts))

    def power_w(self) -> float:
        """Sum of the sensors, W."""
        return sum(device.power_w() for device in self.devices)

    def energy_j(self) -> float:
        """Sum of the counters, J."""
        return sum(device.energy_j() for device in self.devices)

    def each(self, act: Callable[[GpuDevice], None]) -> None:
        """Do something to every GPU, then raise the first `DeviceError` met."""
        errors = []
        for device in self.devices:
            try:
                act(device)
            except DeviceError as error:
                errors.append(error)
        if errors:
            raise errors[0]


class Driver(ABC):
    """The GPUs of this host."""

    @abstractmethod
    def gpus(self) -> tuple[int, ...]:
        """Indices of the GPUs."""

    @abstractmethod
    def open(self, gpu: int) -> GpuDevice:
        """Open one; `DeviceError` ("missing") if there is none."""

    def find(self, uuid: str) -> GpuDevice:
        """Open the GPU with this UUID: indices may change from one boot to the next."""
        for gpu in self.gpus():
            try:
                device = self.open(gpu)
            except DeviceError:
                continue
            if device.info.uuid == uuid:
                return device
        raise DeviceError("missing", f"no GPU with UUID {uuid}")

    def close(self) -> None:
        """Let go of the driver."""
        return


def check_clock(info: GpuInfo, mhz: int) -> None:
    """Raise `DeviceError` unless the GPU supports the clock."""
    if mhz not in info.clocks_mhz:
        raise DeviceError("unsupported", f"GPU {info.gpu}: found {mhz} MHz; allowed: {_describe(info.clocks_mhz)}")


def check_power_limit(info: GpuInfo, watts: float) -> None:
    """Raise `DeviceError` unless the cap lies within the GPU's range."""
    if info.power_limit_range_w is None:
        raise DeviceError("unsupported", f"GPU {info.gpu}: its power cannot be capped")
    low, high = info.power_limit_range_w
    if not low <= watts <= high:
        raise DeviceError("unsupported", f"GPU {info.gpu}: found {watts:g} W; allowed: {low:g} to {high:g} W")


def _describe(clocks_mhz: Sequence[int]) -> str:
    if not clocks_mhz:
        return "none, its clocks cannot be locked"
    return f"one of its {len(clocks_mhz)} clocks from {clocks_mhz[0]} to {clocks_mhz[-1]} MHz"


def _or_none(meter: Callable[[], Value]) -> Value | None:
    """What a meter shows; None for one that this GPU does not have or that fails."""
    try:
        return meter()
    except DeviceError as error:
        if error.fault == "lost":
            raise
        return None
