"""An owner of clocks in this process, and GPUs that do not obey."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from voltana.live.clocks import access
from voltana.live.clocks.changes import Changes
from voltana.live.clocks.device import DeviceError, GpuDevice, GpuInfo
from voltana.live.clocks.limits import Limits
from voltana.live.clocks.owner import serve

PATIENCE_S = 60.0


class LocalOwner:
    """An owner in a thread of this process."""

    def __init__(
        self, folder: Path, gpus: Sequence[GpuDevice], limits: Limits | None = None, observe: bool = False
    ) -> None:
        self.folder = folder
        self.socket = folder / access.SOCKET_NAME
        self.failures: list[str] | None = None
        self._listening = access.listen(self.socket, None)
        self._run = (gpus, Changes(folder), limits or Limits(), None, self._listening, observe)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        self.failures = await serve(*self._run, self._stop)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stop(self) -> None:
        if self.alive:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(PATIENCE_S)
            assert not self.alive
            self._listening.close()


class SteadyGpu(GpuDevice):
    """Draws 100 W at 1395 MHz whatever is commanded.

    Args:
        gpu: its index.
        clocks_mhz: those that it claims to support.
        silent: no meter tells anything.
        restarts_s: its energy counter starts again so often, and tells nothing for a quarter of that time before.
    """

    def __init__(
        self, gpu: int, clocks_mhz: tuple[int, ...] = (), *, silent: bool = False, restarts_s: float | None = None
    ) -> None:
        self.info = GpuInfo(gpu, f"GPU-{os.getpid()}-{gpu}", "A100", clocks_mhz)
        self._silent, self._restarts_s = silent, restarts_s
        self._start_s = time.monotonic()

    def lock_clock(self, mhz: int) -> None:
        """Nothing comes of it."""

    def reset_clock(self) -> None:
        """Nothing to undo."""

    def power_limit_w(self) -> float:
        """None."""
        raise DeviceError("unsupported", f"GPU {self.info.gpu}: no power limit")

    def set_power_limit(self, watts: float) -> None:
        """Not possible."""
        self.power_limit_w()

    def power_w(self) -> float:
        """Always the same."""
        return self._told(100.0)

    def energy_j(self) -> float:
        """Since it was made, or its counter started again."""
        since_s = time.monotonic() - self._start_s
        if self._restarts_s is not None:
            since_s %= self._restarts_s
            if since_s > 0.75 * self._restarts_s:
                raise DeviceError("driver", f"GPU {self.info.gpu}: its counter is about to start again")
        return self._told(100.0 * since_s)

    def clock_mhz(self) -> int:
        """Always the same."""
        return int(self._told(1395))

    def _told(self, value: float) -> float:
        if self._silent:
            raise DeviceError("unsupported", f"GPU {self.info.gpu}: no meter")
        return value
