"""A recorded host, played back in real time: for tests of a harness, and to look at a run again."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

from voltana.live.clocks.device import DeviceError, Driver, GpuDevice, GpuInfo, Reading, check_clock, check_power_limit
from voltana.live.clocks.trace import read_trace


class ReplayGpu(GpuDevice):
    """One GPU of a recording, from the moment this object is made.

    Power and clock are those of the last row; energy is interpolated between rows. After the last row nothing can be
    read any more. Commands are checked as on a GPU and change nothing: a recording cannot tell what would have been.
    """

    def __init__(
        self, info: GpuInfo, readings: Sequence[Reading], *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self.info = info
        self._readings, self._now = readings, now
        self._start_s = now()
        self._times_s = [reading.time_s for reading in readings]
        self._cap_w = info.default_power_limit_w

    def lock_clock(self, mhz: int) -> None:
        """Check the clock."""
        check_clock(self.info, mhz)

    def reset_clock(self) -> None:
        """Do nothing."""

    def power_limit_w(self) -> float:
        """The cap set last, at first the default."""
        if self._cap_w is None:
            raise DeviceError("unsupported", f"GPU {self.info.gpu}: its power limit was not recorded")
        return self._cap_w

    def set_power_limit(self, watts: float) -> None:
        """Check the cap and remember it."""
        check_power_limit(self.info, watts)
        self._cap_w = watts

    def power_w(self) -> float:
        """Power of the last row, W."""
        return self._known(self._row()[1].power_w)

    def energy_j(self) -> float:
        """Energy between the last row and the next, J; unknown where the counter started again between the two."""
        row, last = self._row()
        joules = self._known(last.energy_j)
        following = self._readings[row + 1] if row + 1 < len(self._readings) else last
        if following.energy_j is None or following.time_s == last.time_s:
            return joules
        if following.energy_j < joules:
            raise DeviceError("unsupported", f"GPU {self.info.gpu}: its counter started again here")
        share = (self._now() - self._start_s - last.time_s) / (following.time_s - last.time_s)
        return joules + min(share, 1.0) * (following.energy_j - joules)

    def clock_mhz(self) -> int:
        """Clock of the last row."""
        return int(self._known(self._row()[1].clock_mhz))

    def _row(self) -> tuple[int, Reading]:
        since_s = self._now() - self._start_s
        if since_s > self._times_s[-1]:
            raise DeviceError("ended", f"GPU {self.info.gpu}: the recording ended after {self._times_s[-1]:g} s")
        row = max(0, bisect_right(self._times_s, since_s) - 1)
        return row, self._readings[row]

    def _known(self, meter: float | None) -> float:
        if meter is None:
            raise DeviceError("unsupported", f"GPU {self.info.gpu}: not in the recording")
        return meter


class ReplayDriver(Driver):
    """The GPUs of a recording, all starting together.

    Args:
        path: a file as `voltana.live.clocks.trace` describes it.

    Raises:
        UserError: the file does not fit.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.monotonic) -> None:
        self._devices = {gpu: ReplayGpu(info, rows, now=now) for gpu, (info, rows) in read_trace(path).items()}

    def gpus(self) -> tuple[int, ...]:
        """Those recorded."""
        return tuple(self._devices)

    def open(self, gpu: int) -> ReplayGpu:
        """The same object each time."""
        if gpu not in self._devices:
            allowed = ", ".join(map(str, self._devices))
            raise DeviceError("missing", f"GPU {gpu}: not in the recording; allowed: {allowed}")
        return self._devices[gpu]
