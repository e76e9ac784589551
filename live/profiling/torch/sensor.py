"""Energy and clock of the GPU that is profiled, over `voltana.live.clocks`.

Power over a window is taken between two ticks of the energy counter: the counter moves in steps (every 20 to 100 ms),
so a difference read at the window's ends would be off by up to a step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from voltana.checks import levels
from voltana.errors import UserError
from voltana.live.clocks.device import DeviceError, GpuDevice
from voltana.live.clocks.hold import GpuHolds
from voltana.live.clocks.nvml import NvmlDriver

POLL_S = 0.002
STUCK_S = 10.0
"""A driver that takes longer for a reading is not waited for."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class NoPrivilegeError(Exception):
    """The caller may not set clocks."""


def find_gpu(uuid: str) -> GpuDevice:
    """The GPU of that UUID, which CUDA_VISIBLE_DEVICES does not change as it does numbers.

    Raises:
        UserError: there is no NVML, or it does not know the GPU.
    """
    driver = NvmlDriver()  # open as long as this process lives
    try:
        for index in driver.gpus():
            gpu = driver.open(index)
            if gpu.info.uuid == uuid:
                return gpu
    except DeviceError as error:
        raise UserError(f"NVML: {error}") from error
    raise UserError(f"NVML: found no GPU {uuid}, as for a slice of one (MIG)")


def describe(gpu: GpuDevice) -> dict[str, Any]:
    """Driver, power limit (W) and clocks (MHz); null what NVML does not tell."""
    try:
        limit_w = gpu.power_limit_w()
    except DeviceError:
        limit_w = None
    return {"driver": _driver_version(), "power_limit_w": limit_w, "clocks_mhz": list(gpu.info.clocks_mhz)}


def check_clocks(gpu: GpuDevice, clocks_mhz: Sequence[int]) -> None:
    """Refuse clocks that the GPU lacks.

    Raises:
        UserError: names the first.
    """
    if gpu.info.clocks_mhz:
        levels("profile.clocks_mhz", clocks_mhz, gpu.info.clocks_mhz)


@contextmanager
def locked(gpu: GpuDevice, clock_mhz: int) -> Iterator[None]:
    """Hold the SM clock; afterwards, whatever happened, give it back to the GPU's own governor.

    A request to end (SIGTERM, SIGHUP) meanwhile becomes a KeyboardInterrupt, so that it too gives the clock back.

    Raises:
        NoPrivilegeError: the caller may not set clocks.
        UserError: the GPU refuses for another reason, or an owner of clocks has it.
    """
    with _stoppable(), GpuHolds().borrowed(gpu.info.gpu, gpu.info.uuid):
        try:
            gpu.lock_clock(clock_mhz)
        except DeviceError as error:
            if error.fault == "permission":
                raise NoPrivilegeError(str(error)) from error
            raise UserError(f"profile.clocks_mhz: {clock_mhz} MHz cannot be set ({error})") from error
        try:
            yield
        finally:
            gpu.reset_clock()


class Watch:
    """Reads a GPU's meters from a thread of its own while the GPU works, and tells mean power and clock."""

    def __init__(self, gpu: GpuDevice) -> None:
        self._gpu = gpu
        self._ticks: list[tuple[float, float]] = []
        self._clocks: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(STUCK_S)

    def _run(self) -> None:
        last = None
        while not self._ended.wait(POLL_S):
            now = self._gpu.read()
            if now.energy_j is not None and last is not None and now.energy_j != last:
                self._ticks.append((now.time_s, now.energy_j))
            last = now.energy_j
            if now.clock_mhz is not None:
                self._clocks.append(now.clock_mhz)

    @property
    def power_w(self) -> float | None:
        """Mean power between the first and the last tick of the counter; None without two, or if it went back."""
        counted_j = [energy_j for _, energy_j in self._ticks]
        if len(counted_j) < 2 or counted_j != sorted(counted_j):
            return None
        (start_s, first_j), (end_s, last_j) = self._ticks[0], self._ticks[-1]
        return (last_j - first_j) / (end_s - start_s)

    @property
    def clock_mhz(self) -> float | None:
        """Mean SM clock; None if it was never told."""
        return sum(self._clocks) / len(self._clocks) if self._clocks else None


@contextmanager
def _stoppable() -> Iterator[None]:
    """Turn requests to end into KeyboardInterrupt, where signals can be handled at all."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _driver_version() -> str | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
