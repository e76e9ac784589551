"""What has been changed on the machine, on disk before it is changed: the next owner undoes what this one could not."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from voltana.errors import UserError
from voltana.live.clocks.device import Driver, GpuDevice
from voltana.live.clocks.hold import GpuHolds


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """What was changed on one GPU."""

    gpu: int
    uuid: str
    clock: bool = False
    """Its clock was locked."""
    power_limit_w: float | None = None
    """The power limit that was found, if it was changed."""

    def undo(self, device: GpuDevice) -> None:
        """Restore the GPU: the governor's own clock, and the power limit that was found."""
        try:
            if self.clock:
                device.reset_clock()
        finally:
            if self.power_limit_w is not None:
                device.set_power_limit(self.power_limit_w)


class Changes:
    """The file `changed.json`: present exactly while a GPU is not as it was found.

    Written by the thread that calls the driver, before the first change of a GPU and after its restore.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "changed.json"
        self._by_uuid: dict[str, Change] = {}

    def load(self) -> str | None:
        """Take over what a previous owner left; returns what is wrong with the file, which is then put aside."""
        try:
            left = msgspec.json.decode(self._path.read_bytes(), type=list[Change])
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            self._path.replace(self._path.with_suffix(".unreadable"))
            return f"{self._path}: not readable ({error}), put aside as {self._path.with_suffix('.unreadable').name}"
        self._by_uuid = {change.uuid: change for change in left}
        return None

    def all(self) -> tuple[Change, ...]:
        """What is changed now."""
        return tuple(self._by_uuid.values())

    def of(self, device: GpuDevice) -> Change | None:
        """What is changed on this GPU."""
        return self._by_uuid.get(device.info.uuid)

    def before_clock(self, devices: Iterable[GpuDevice]) -> None:
        """Note that the clocks of these GPUs are about to be locked."""
        self._note({device.info.uuid: self._change(device, clock=True) for device in devices})

    def before_power(self, devices: Iterable[GpuDevice]) -> None:
        """Note the power limits that these GPUs have, which are about to be changed."""
        self._note({device.info.uuid: self._change(device, power=True) for device in devices})

    def suspect(self, device: GpuDevice) -> None:
        """Note that the clock of this GPU may have been locked by somebody of whom nothing is known."""
        self._note({device.info.uuid: self._change(device, clock=True)})

    def undone(self, change: Change) -> None:
        """Forget a GPU that is as it was found."""
        self._write({uuid: each for uuid, each in self._by_uuid.items() if uuid != change.uuid})

    def _change(self, device: GpuDevice, *, clock: bool = False, power: bool = False) -> Change:
        info = device.info
        known = self._by_uuid.get(info.uuid, Change(info.gpu, info.uuid))
        limit_w = known.power_limit_w
        if power and limit_w is None:
            limit_w = device.power_limit_w()
        return Change(info.gpu, info.uuid, known.clock or clock, limit_w)

    def _note(self, changes: dict[str, Change]) -> None:
        if any(self._by_uuid.get(uuid) != change for uuid, change in changes.items()):
            self._write(self._by_uuid | changes)

    def _write(self, changes: dict[str, Change]) -> None:
        if changes:
            self._write_file(list(changes.values()))
        else:
            self._path.unlink(missing_ok=True)
        self._by_uuid = changes

    def _write_file(self, changes: list[Change]) -> None:
        draft = self._path.with_suffix(".draft")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(changes))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)


def undo_left_behind(driver: Driver, changes: Changes, holds: GpuHolds) -> list[str]:
    """Restore what a previous owner left changed; returns a line for each GPU: restored, or why not.

    Args:
        driver: of the GPUs.
        changes: loaded.
        holds: of this process; a GPU that somebody else holds meanwhile is left to that.
    """
    lines = []
    for change in changes.all():
        try:
            with holds.borrowed(change.gpu, change.uuid):
                change.undo(driver.find(change.uuid))
        except Exception as error:  # whatever one GPU does, the others are to be restored
            lines.append(f"GPU {change.gpu}: a previous owner left it changed; not restored: {error}")
        else:
            changes.undone(change)
            lines.append(f"GPU {change.gpu}: a previous owner left it changed; restored")
    return lines


class OwnerLock:
    """Held for the life of an owner: one per folder. That a GPU has one owner is kept by `GpuHolds`.

    Raises:
        UserError: another owner holds it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = path = folder / "owner.lock"
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(self._handle, 32).decode(errors="replace").strip()
            os.close(self._handle)
            raise UserError(f"{path}: another owner is running (process {pid}); stop it first") from None
        os.truncate(self._handle, 0)
        os.pwrite(self._handle, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another owner start."""
        os.close(self._handle)
