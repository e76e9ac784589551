"""The order of driver calls: one at a time in a thread of its own, restores first, newest command wins, reads last.

Here is kept, for each group of GPUs that is set together, what its clock and its power cap are to be and what is in
force. What was commanded is brought into force: a call that failed is made again, after a pause that doubles up to
`RETRY_MOST_S`, and what something else has changed meanwhile (`nvidia-smi`, another owner) is set again. That is seen
by looking at the GPUs every `CHECK_S`, as far as a driver can be asked: a power limit can be read, a lock of the clock
cannot, so that a clock above the one set is taken for a lost lock, and one below for the work of power and heat.
"Applied" is told of a command only when such a look, after the GPUs had time to settle, has found what was set.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from types import EllipsisType
from typing import TypeVar

from voltana.live.clocks.changes import Change, Changes
from voltana.live.clocks.device import DeviceError, DeviceGroup, Fault, GpuDevice, Reading
from voltana.live.clocks.limits import Limits
from voltana.live.clocks.protocol import Applied, Changed, Refused, Reply, Setting, Slow, Superseded

Value = TypeVar("Value")
_PATIENCE_S = 0.1
"""A read that has waited for so long goes before the next command, or a busy driver would never be metered."""
RETRY_S, RETRY_MOST_S = 0.5, 8.0
"""From a call that failed until it is made again: at first, and at most."""
CHECK_S = 0.5
"""Between two looks at whether what was set is still in force."""
SETTLE_S = 0.05
"""From the end of a clock command until the clock is in force, where the GPU does not tell: twice an A100's."""
HIGHER_CLOCK, OTHER_CAP_W = 0.02, 1.0
"""A clock may be read higher than it was set by this share, a power limit off by so many watts."""
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
    """One listed GPU."""

    device: GpuDevice
    bucket: TokenBucket


@dataclass(eq=False)
class Command:
    """One command for one group."""

    id: int
    group: str
    gpus: tuple[OwnedGpu, ...]
    setting: Setting
    value: float | None
    reply: Callable[[Reply], None]
    received_s: float = field(default_factory=time.monotonic)
    answered: bool = False

    @property
    def slot(self) -> Slot:
        """What a newer command takes the place of."""
        return self.setting, self.gpus

    def applied(self, wait_s: float, driver_s: float, settle_s: float, found: float | None) -> None:
        """Tell that it is in force, whatever was told before."""
        self.answered = True
        self.reply(
            Applied(
                id=self.id,
                group=self.group,
                setting=self.setting,
                value=self.value,
                found=found,
                wait_ms=wait_s * 1e3,
                driver_ms=driver_s * 1e3,
                settle_ms=settle_s * 1e3,
            )
        )

    def superseded(self) -> None:
        """Tell that a newer one took its place."""
        self._answer(Superseded(id=self.id, group=self.group, setting=self.setting))

    def refused(self, code: Fault, message: str) -> None:
        """Tell that it is not done, or not yet."""
        self._answer(Refused(id=self.id, code=code, message=message, group=self.group, setting=self.setting))

    def _answer(self, reply: Reply) -> None:
        if not self.answered:
            self.answered = True
            self.reply(reply)


Slot = tuple[Setting, tuple[OwnedGpu, ...]]


@dataclass(eq=False)
class State:
    """One setting of one group: what it is to be, and what it is."""

    desired: Command
    in_force: float | EllipsisType | None = ...
    """What the driver accepted last and nothing has changed since; None: the default, `...`: unknown."""
    in_driver: Command | None = None
    """What the driver is called for at this moment."""
    unseen: dict[Command, tuple[float, float]] = field(default_factory=dict)
    """Commands of what is in force that are not answered before it was seen on the GPUs: how long they waited, and the
    time in the driver."""
    failures: int = 0
    """Calls in a row that failed, or did not last."""
    not_before_s: float = 0.0
    """No call until then."""
    set_s: float = 0.0
    """When the driver accepted it."""

    @property
    def settled_s(self) -> float:
        """When the GPUs show it."""
        if self.desired.setting == "power" or self.in_force is None:
            return self.set_s
        infos = [gpu.device.info for gpu in self.desired.gpus]
        return self.set_s + max(SETTLE_S if info.settle_s is None else info.settle_s for info in infos)

    @property
    def settled(self) -> bool:
        """Whether there is nothing to do."""
        return self.in_force == self.desired.value

    def lost(self) -> None:
        """It is not in force after all: try again, later each time."""
        self.in_force = ...
        self.not_before_s = time.monotonic() + min(RETRY_S * 2 ** min(self.failures, 10), RETRY_MOST_S)
        self.failures += 1


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
        self._states: dict[Slot, State] = {}
        """In the order in which those that are not settled have their turn."""
        self._checked_s = time.monotonic()
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
        """Bring a command into force as soon as may be, unless a newer one for the same group comes first."""
        state = self._states.setdefault(command.slot, State(command))
        older, state.desired = state.desired, command
        if older not in (command, state.in_driver, *state.unseen):
            older.superseded()
        if state.settled:  # when last looked at: look again
            state.unseen[command] = (0.0, 0.0)
        if (stuck_s := self.stuck_for_s) is not None:
            command.refused("driver", f"the driver has not answered for {stuck_s:.0f} s")
            state.lost()
        self._news.set()

    async def read(self, device: GpuDevice) -> Reading:
        """Read the meters of one GPU once nothing more urgent waits."""
        reading = await self._enqueue(self._reads, f"reading GPU {device.info.gpu}", device.read)
        assert isinstance(reading, Reading)
        return reading

    async def restore(self, gpus: Sequence[OwnedGpu]) -> list[str]:
        """Drop the commands that wait for these GPUs and undo their changes; returns what could not be undone."""
        for slot in [slot for slot in self._states if set(slot[1]) & set(gpus)]:
            state = self._states.pop(slot)
            for command in {state.desired, *state.unseen} - {state.in_driver}:
                command.superseded()
            state.unseen.clear()
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
        if time.monotonic() - self._due_s() > _PATIENCE_S:
            await self._look()
        state, wait_s = self._ready()
        if state is not None:
            await self._execute(state)
            return 0.0
        if self._reads:
            await self._answer(self._reads.popleft())
            return 0.0
        due_s = self._due_s() - time.monotonic()
        if due_s <= 0.0:
            await self._look()
            return 0.0
        if due_s == math.inf:
            return wait_s
        return due_s if wait_s is None else min(wait_s, due_s)

    def _ready(self) -> tuple[State | None, float | None]:
        """The first that is to be set and may be, or how long until one may."""
        now_s = time.monotonic()
        least_s = None
        for state in self._states.values():
            if state.settled:
                continue
            wait_s = max(state.not_before_s - now_s, *(gpu.bucket.wait_s(now_s) for gpu in state.desired.gpus))
            if wait_s <= 0.0:
                return state, None
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

    async def _execute(self, state: State) -> None:
        command = state.desired
        self._states[command.slot] = self._states.pop(command.slot)  # others have their turn first, next time
        started_s = time.monotonic()
        for gpu in command.gpus:
            gpu.bucket.take()
        state.in_force, state.in_driver = ..., command
        for each in state.unseen.keys() - {command}:
            each.superseded()
        state.unseen.clear()
        numbers = [gpu.device.info.gpu for gpu in command.gpus]
        try:
            await self._call(f"setting the {command.setting} of GPUs {numbers}", lambda: self._set(command))
        except DeviceError as error:
            self._failed(state, command, error.fault, str(error))
            return
        except Exception as error:
            log.exception("GPUs %s: %s", numbers, error)
            self._failed(state, command, "driver", f"{type(error).__name__}: {error}")
            return
        finally:
            state.in_driver = None
        ended_s = state.set_s = time.monotonic()
        state.in_force = command.value
        for each in {command, state.desired} if state.settled else {command}:
            state.unseen[each] = (max(0.0, started_s - each.received_s), ended_s - started_s)
        if command.setting == "clock":
            mhz = None if command.value is None else int(command.value)
            self._tell(Changed(gpus=numbers, mhz=mhz, time_s=ended_s))

    def _failed(self, state: State, command: Command, fault: Fault, message: str) -> None:
        state.lost()
        if fault == "unsupported" and self._states.get(command.slot) is state and state.desired is command:
            del self._states[command.slot]  # it will not be supported later either
        elif state.failures > 1:
            log.warning("%s; tried again in %.1f s", message, state.not_before_s - time.monotonic())
        command.refused(fault, message)

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

    # What is in force

    def _due_s(self) -> float:
        """When to look at the GPUs next; infinity: not at all."""
        in_force = [state for state in self._states.values() if state.in_force is not ...]
        unseen = [state.settled_s for state in in_force if state.unseen]
        return min([*unseen, *([self._checked_s + CHECK_S] if in_force else [])], default=math.inf)

    async def _look(self) -> None:
        """See whether what was set is in force: tell it, or set it again."""
        now_s = time.monotonic()
        states = [state for state in self._states.values() if state.in_force is not ... and state.settled_s <= now_s]
        if now_s < self._checked_s + CHECK_S:
            states = [state for state in states if state.unseen]
        else:
            self._checked_s = now_s
        asked = [dict(state.unseen) for state in states]
        if not states:
            return
        found = await self._call("looking at what is in force", lambda: list(map(self._found, states)))
        for state, commands, (values, changed) in zip(states, asked, found, strict=True):
            if self._states.get(state.desired.slot) is not state:
                continue  # given back meanwhile
            if changed:
                self._changed(state, "; ".join(changed))
                continue
            state.failures = 0
            for command in commands.keys() & state.unseen.keys():
                wait_s, driver_s = state.unseen.pop(command)
                settle_s = time.monotonic() - max(state.set_s, command.received_s)
                command.applied(wait_s, driver_s, settle_s, max(values, default=None))

    def _changed(self, state: State, message: str) -> None:
        """What was set is not there any more, or never was."""
        log.warning("%s; it is set again", message)
        if state.failures:
            for command in state.unseen:
                command.refused("driver", message)
            state.unseen.clear()
        state.lost()
        if state.failures == 1:
            state.not_before_s = 0.0  # the first time at once

    def _found(self, state: State) -> tuple[list[float], list[str]]:
        """In the driver's thread: what the GPUs of a group show, and what of it is not as it was set, in words."""
        values, changed = [], []
        for gpu in state.desired.gpus:
            value = _value(gpu.device, state.desired.setting)
            if value is not None:
                values.append(value)
                wrong = _wrong(gpu.device, state, self._wanted(gpu.device, state), value)
                changed += [wrong] if wrong else []
        return values, changed

    def _wanted(self, device: GpuDevice, state: State) -> float | None:
        """What a GPU is to show; None: that is not known."""
        if state.in_force is None and state.desired.setting == "power":
            change = self._changes.of(device)
            return None if change is None else change.power_limit_w
        return state.in_force if isinstance(state.in_force, int | float) else None

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


def _value(device: GpuDevice, setting: Setting) -> float | None:
    """The clock or the power limit that a GPU shows; None where it does not tell."""
    try:
        return float(device.clock_mhz() if setting == "clock" else device.power_limit_w())
    except Exception:  # whatever it is, the GPU does not tell
        return None


def _wrong(device: GpuDevice, state: State, wanted: float | None, found: float) -> str | None:
    """What is not as it was set on a GPU, as far as that can be read."""
    if wanted is None:
        return None
    setting = state.desired.setting
    if setting == "clock":
        wrong, unit = found > wanted * (1 + HIGHER_CLOCK), "MHz"
    else:
        wrong, unit = abs(found - wanted) > OTHER_CAP_W, "W"
    return f"GPU {device.info.gpu}: found {setting} {found:g} {unit}, set was {wanted:g}" if wrong else None
