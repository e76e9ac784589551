"""GPUs of which nothing can be known: `--observe` on a host without a driver still serves, and says null."""

from __future__ import annotations

from typing import NoReturn

from voltana.live.clocks.device import DeviceError, Driver, GpuDevice, GpuInfo


class AbsentGpu(GpuDevice):
    """A GPU that no driver shows; every meter is unknown."""

    def __init__(self, gpu: int) -> None:
        self.info = GpuInfo(gpu=gpu, uuid=f"unknown-{gpu}", name="unknown (no driver)")

    def lock_clock(self, mhz: int) -> None:
        """Not possible."""
        self._refuse()

    def reset_clock(self) -> None:
        """Not possible."""
        self._refuse()

    def power_limit_w(self) -> float:
        """Unknown."""
        self._refuse()

    def set_power_limit(self, watts: float) -> None:
        """Not possible."""
        self._refuse()

    def power_w(self) -> float:
        """Unknown."""
        self._refuse()

    def energy_j(self) -> float:
        """Unknown."""
        self._refuse()

    def clock_mhz(self) -> int:
        """Unknown."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise DeviceError("unsupported", f"GPU {self.info.gpu}: there is no driver")


class AbsentDriver(Driver):
    """A host without a driver; every index may be opened."""

    def gpus(self) -> tuple[int, ...]:
        """None is known."""
        return ()

    def open(self, gpu: int) -> AbsentGpu:
        """A GPU that may or may not be there."""
        return AbsentGpu(gpu)
