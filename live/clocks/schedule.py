"""The order of driver calls: one at a time in a thread of its own, restores first, newest command wins, reads last."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from voltana.live.clocks.changes import Change, Changes
from voltana.live.clocks.device import DeviceError, DeviceGroup, Fault, GpuDevice, Reading
from voltana.live.clocks.limits import Limits
from voltana.live.clocks.protocol import Applied, Changed, Refused, Reply, Setting, Slow, Superseded

Value = TypeVar("Value")
_PATIENCE_S = 0.1
"""A read that has waited for so long goes before the next command, or a busy driver would never be metered."""
log = logging.getLogger("voltana-clocks")


class TokenBucket:
    """At most `burst` at once and `rate` per second on average."""

    def __init__(self, rate: float, burst: float, now_s: float) -> None:
        self._rate, self._burst = rate, burst
        self._tokens, self._at_s = float(burst), now_s

    def wait_s(self, now_s: float) -> float:
        """How long until there is a token."""
        self._tokens = min(self._burst, self._tokens + self._rate * (now_s - self._at_s))
        self._at_s = now_s
        return max(0.0, (1.0 - self._tokens) / self._rate)

    def take(self) -> None:
        """Use one up."""
        self._tokens -= 1.0


@dataclass(eq=False)
class OwnedGpu:
    """One listed GPU and what the owner knows about it."""

    device: GpuDevice
    bucket: TokenBucket
    in_force: dict[Setting, float | None] = field(default_factory=dict)
    """Values that the driver accepted; None: the default. A missing one is unknown."""


@dataclass(eq=False)
class Command:
    """One command for one group, waiting for the driver."""

    id: int
    group: str
    gpus: tuple[OwnedGpu, ...]
    setting: Setting
    value: float | None
    reply: Callable[[Reply], None]
    received_s: float = field(default_factory=time.monotonic)

    @property
    def slot(self) -> tuple[Setting, tuple[OwnedGpu, ...]]:
        """What a newer command takes the place of."""
        return self.setting, self.gpus

    def in_force(self) -> bool:
        """Whether every GPU has the value already."""
        return all(self.setting in gpu.in_force and gpu.in_force[self.setting] == self.value for gpu in self.gpus)


@dataclass(eq=False)
class _Call:
    """A restore or a read, waiting for the driver."""

    what: str
    work: Callable[[], object]
    done: asyncio.Future[object]
    since_s: float = field(default_factory=time.monotonic)


class Scheduler:
    """Executes commands, restores and reads. Its methods are called in the event loop; `run` is its task.

    Args:
        changes: the note of what has been changed, kept before every first change.
        limits: rates and times.
        tell: called with a "changed" or "slow" that no request asked for.
    """

    def __init__(self, changes: Changes, limits: Limits, tell: Callable[[Reply], None]) -> None:
        self._changes, self._limits, self._tell = changes, limits, tell
        self._thread = ThreadPoolExecutor(1, "driver")
        self._commands: dict[object, Command] = {}
        self._restores: deque[_Call] = deque()
        self._reads: deque[_Call] = deque()
        self._news = asyncio.Event()
        self._calling_since_s: float | None = None

    @property
    def stuck_for_s(self) -> float | None:
        """How long a driver call has not come back, if longer than any should."""
        if self._calling_since_s is None:
            return None
        seconds = time.monotonic() - self._calling_since_s
        return seconds if seconds > self._limits.stuck_s else None

    def submit(self, command: Command) -> None:
        """Execute a command as soon as may be, unless a newer one for the same group comes first."""
        older = self._commands.get(command.slot)
        if older is not None:
            older.reply(Superseded(id=older.id, group=older.group, setting=older.setting))
        if command.in_force():
            self._commands.pop(command.slot, None)
            command.reply(_applied(command, wait_s=0.0, driver_s=0.0))
            return
        self._commands[command.slot] = command  # at the place in the queue that an older one had
        self._news.set()

    async def read(self, device: GpuDevice) -> Reading:
        """Read the meters of one GPU once nothing more urgent waits."""
        reading = await self._enqueue(self._reads, f"reading GPU {device.info.gpu}", device.read)
        assert isinstance(reading, Reading)
        return reading

    async def restore(self, gpus: Sequence[OwnedGpu]) -> list[str]:
        """Drop the commands that wait for these GPUs and undo their changes; returns what could not be undone."""
        for slot, command in list(self._commands.items()):
            if set(command.gpus) & set(gpus):
                del self._commands[slot]
                command.reply(Superseded(id=command.id, group=command.group, setting=command.setting))
        failures = []
        for gpu in gpus:
            failure = await self._restore_one(gpu)
            if failure:
                failures.append(failure)
        return failures

    async def _restore_one(self, gpu: OwnedGpu) -> str | None:
        device = gpu.device
        try:
            change = await self._enqueue(self._restores, f"restoring GPU {device.info.gpu}", lambda: self._undo(device))
        except Exception as error:
            return f"GPU {device.info.gpu}: not restored: {error}"
        finally:
            gpu.in_force.clear()  # now, and not before: a command may just have been in the driver
        if change is not None:
            self._tell(Changed(gpus=[device.info.gpu], mhz=None, time_s=time.monotonic()))
        return None

    def _undo(self, device: GpuDevice) -> Change | None:
        """In the driver's thread."""
        change = self._changes.of(device)
        if change is not None:
            change.undo(device)
            self._changes.undone(change)
        return change

    async def _enqueue(self, queue: deque[_Call], what: str, work: Callable[[], object]) -> object:
        call = _Call(what, work, asyncio.get_running_loop().create_future())
        queue.append(call)
        self._news.set()
        return await call.done

    async def restore_all(self, devices: Sequence[GpuDevice]) -> list[str]:
        """At exit, after `run` was cancelled: undo every change as soon as the driver comes back from its last call.

        Returns what could not be undone. The note of those stays, for the next owner.
        """
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._thread, self._undo_all, devices)
        try:
            async with asyncio.timeout(self._limits.restore_s):
                return await asyncio.shield(work)
        except TimeoutError:
            left = [f"GPU {change.gpu}: not restored" for change in self._changes.all()]
            return [f"{line}: the driver has not answered for {self._limits.restore_s:g} s" for line in left]

    def _undo_all(self, devices: Sequence[GpuDevice]) -> list[str]:
        """In the driver's thread."""
        failures = []
        for device in devices:
            try:
                self._undo(device)
            except Exception as error:
                failures.append(f"GPU {device.info.gpu}: not restored: {error}")
        return failures

    # The task

    async def run(self) -> None:
        """Call the driver for ever."""
        while True:
            wait_s = await self._next()
            if wait_s != 0.0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s):
                        await self._news.wait()
                self._news.clear()

    async def _next(self) -> float | None:
        """Do what is most urgent; returns how long to wait for more, 0: not at all, None: until there is news."""
        if self._restores:
            await self._answer(self._restores.popleft())
            return 0.0
        if self._reads and time.monotonic() - self._reads[0].since_s > _PATIENCE_S:
            await self._answer(self._reads.popleft())
        command, wait_s = self._ready_command()
        if command is not None:
            await self._execute(command)
            return 0.0
        if self._reads:
            await self._answer(self._reads.popleft())
            return 0.0
        return wait_s

    def _ready_command(self) -> tuple[Command | None, float | None]:
        """The first command whose GPUs have tokens, or how long until one has."""
        now_s = time.monotonic()
        least_s = None
        for slot, command in self._commands.items():
            wait_s = max(gpu.bucket.wait_s(now_s) for gpu in command.gpus)
            if wait_s == 0.0:
                del self._commands[slot]
                return command, None
            least_s = wait_s if least_s is None else min(least_s, wait_s)
        return None, least_s

    async def _answer(self, call: _Call) -> None:
        try:
            result = await self._call(call.what, call.work)
        except Exception as error:
            if not call.done.done():
                call.done.set_exception(error)
        else:
            if not call.done.done():
                call.done.set_result(result)

    async def _execute(self, command: Command) -> None:
        started_s = time.monotonic()
        for gpu in command.gpus:
            gpu.bucket.take()
            gpu.in_force.pop(command.setting, None)
        numbers = [gpu.device.info.gpu for gpu in command.gpus]
        try:
            await self._call(f"setting the {command.setting} of GPUs {numbers}", lambda: self._set(command))
        except DeviceError as error:
            command.reply(_failed(command, error.fault, str(error)))
            return
        except Exception as error:
            log.exception("GPUs %s: %s", numbers, error)
            command.reply(_failed(command, "driver", f"{type(error).__name__}: {error}"))
            return
        ended_s = time.monotonic()
        for gpu in command.gpus:
            gpu.in_force[command.setting] = command.value
        command.reply(_applied(command, started_s - command.received_s, ended_s - started_s))
        if command.setting == "clock":
            mhz = None if command.value is None else int(command.value)
            self._tell(Changed(gpus=numbers, mhz=mhz, time_s=ended_s))

    def _set(self, command: Command) -> None:
        """In the driver's thread: note the change, then make it on every GPU of the group."""
        devices = [gpu.device for gpu in command.gpus]
        group = DeviceGroup(devices)
        match command.setting, command.value:
            case "clock", None:
                group.reset_clock()
            case "clock", mhz:
                self._changes.before_clock(devices)
                group.lock_clock(int(mhz or 0))
            case "power", None:
                group.each(self._restore_power)
            case _, watts:
                self._changes.before_power(devices)
                group.set_power_limit(watts or 0.0)

    def _restore_power(self, device: GpuDevice) -> None:
        change = self._changes.of(device)
        if change is not None and change.power_limit_w is not None:
            device.set_power_limit(change.power_limit_w)

    async def _call(self, what: str, work: Callable[[], Value]) -> Value:
        """Call the driver, and report a call that takes long while it does."""
        loop = asyncio.get_running_loop()
        started_s = self._calling_since_s = time.monotonic()
        watchdog = loop.call_later(self._limits.slow_s, self._report_slow, what)
        try:
            return await loop.run_in_executor(self._thread, work)
        finally:
            watchdog.cancel()
            self._calling_since_s = None
            seconds = time.monotonic() - started_s
            if seconds > self._limits.slow_s:
                log.warning("%s took %.3f s in the driver", what, seconds)

    def _report_slow(self, what: str) -> None:
        log.warning("%s takes more than %g s in the driver", what, self._limits.slow_s)
        self._tell(Slow(what=what, seconds=self._limits.slow_s))


def _applied(command: Command, wait_s: float, driver_s: float) -> Applied:
    return Applied(
        id=command.id,
        group=command.group,
        setting=command.setting,
        value=command.value,
        wait_ms=wait_s * 1e3,
        driver_ms=driver_s * 1e3,
    )


def _failed(command: Command, code: Fault, message: str) -> Refused:
    return Refused(id=command.id, code=code, message=message, group=command.group, setting=command.setting)
