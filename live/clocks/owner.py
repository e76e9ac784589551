"""The owner: the one process of a host that holds the privilege to change GPUs (`voltana-clocks`).

    sudo voltana-clocks --gpus 0,1,2,3 --group voltana

Unprivileged clients ask it over a Unix-domain socket. It changes only the GPUs it was given, only to what they support,
and restores them when a client leaves, when it ends itself, and at its next start if it was killed. See docs/clocks.md.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from voltana.errors import UserError
from voltana.files import read_json_object
from voltana.live.clocks import access
from voltana.live.clocks.absent import AbsentDriver
from voltana.live.clocks.access import PROGRAM
from voltana.live.clocks.changes import Changes, OwnerLock, undo_left_behind
from voltana.live.clocks.device import DeviceError, Driver, GpuDevice
from voltana.live.clocks.hold import GpuHolds
from voltana.live.clocks.limits import Limits
from voltana.live.clocks.nvml import NvmlDriver
from voltana.live.clocks.schedule import OwnedGpu, Scheduler, TokenBucket
from voltana.live.clocks.server import Server
from voltana.live.clocks.simulated import SimulatedDriver

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
log = logging.getLogger(PROGRAM)


def run(options: argparse.Namespace) -> int:
    """Run until a signal, or do what `--restore` asks; return the exit status."""
    return restore(options) if options.restore else own(options)


def restore(options: argparse.Namespace) -> int:
    """Undo what an owner that was killed has left, and nothing else."""
    folder = access.prepare_folder(options.folder or access.standard_folder())
    lock = OwnerLock(folder)
    changes = Changes(folder)
    problem = changes.load()
    if problem:
        raise UserError(f"{problem}; restore by hand: nvidia-smi --reset-gpu-clocks")
    if changes.all():
        driver = _driver(options, folder)
        _log_each(undo_left_behind(driver, changes, GpuHolds()))
        driver.close()
    lock.release()
    return 3 if changes.all() else 0


def own(options: argparse.Namespace) -> int:
    """Own the listed GPUs until a signal comes."""
    if not options.gpus:
        raise UserError("--gpus: nothing found; allowed: the indices or UUIDs of the GPUs to own, such as 0,1,2,3")
    gid = None if options.group is None else access.group_id(options.group)
    folder = access.prepare_folder(options.folder or access.standard_folder())
    lock = OwnerLock(folder)
    driver = _driver(options, folder)
    devices = _open(driver, options.gpus)
    changes, holds = Changes(folder), GpuHolds()
    if not options.observe:
        for device in devices:
            _check_usable(device)
            holds.take(device.info.gpu, device.info.uuid)
        _undo_previous(driver, devices, changes, holds)
        for device in devices:
            _check_privilege(device)
    limits = Limits(changes_per_s=options.changes_per_s, heartbeat_s=options.heartbeat_s, restore_s=options.restore_s)
    path = folder / access.SOCKET_NAME
    listening = access.listen(path, gid)
    try:
        failures = asyncio.run(_serve_until_signal(devices, changes, limits, gid, listening, options))
    finally:
        listening.close()
        path.unlink(missing_ok=True)
    _log_each(failures)
    if failures:
        return 3
    driver.close()
    lock.release()
    if options.stop_on_eof:
        lock.path.unlink(missing_ok=True)
        with suppress(OSError):  # others have put something there
            folder.rmdir()
    return 0


async def _serve_until_signal(
    devices: Sequence[GpuDevice],
    changes: Changes,
    limits: Limits,
    gid: int | None,
    listening: socket.socket,
    options: argparse.Namespace,
) -> list[str]:
    with suppress(OSError):  # without the privilege
        os.nice(-10)  # a few microseconds of work per command, which should not wait for busy servers
    stop = _stop_event(options.stop_on_eof)
    log.info("ready; %s GPU %s", "observing" if options.observe else "owning", _names(devices))
    return await serve(devices, changes, limits, gid, listening, options.observe, stop)


async def serve(
    devices: Sequence[GpuDevice],
    changes: Changes,
    limits: Limits,
    gid: int | None,
    listening: socket.socket,
    observe: bool,
    stop: asyncio.Event,
) -> list[str]:
    """Serve clients until `stop` is set or a task of the owner fails, then restore all GPUs.

    Args:
        devices: the listed GPUs.
        changes: the note on disk of what is changed.
        limits: rates and times.
        gid: members of this group may connect, beside root and this user.
        listening: the socket.
        observe: refuse to change anything.
        stop: ends it.

    Returns:
        A line for each GPU that could not be restored.
    """
    now_s = time.monotonic()
    gpus = {
        device.info.gpu: OwnedGpu(device, TokenBucket(limits.changes_per_s, limits.burst, now_s)) for device in devices
    }
    scheduler = Scheduler(changes, limits, lambda reply: server.tell(reply))
    server = Server(gpus, scheduler, limits, gid, observe)
    loop = asyncio.get_running_loop()
    works = (scheduler.run(), server.serve(listening), server.watch_heartbeats(), stop.wait())
    tasks = [loop.create_task(work) for work in works]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        if task.exception() is not None:
            log.error("a bug; stopping", exc_info=task.exception())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    try:
        await server.hang_up("the owner is stopping")
    finally:
        failures = await scheduler.restore_all(devices)
    return failures


def _names(devices: Sequence[GpuDevice]) -> str:
    return ", ".join(f"{device.info.gpu} ({device.info.name})" for device in devices)


def _stop_event(stop_on_eof: bool) -> asyncio.Event:
    """Set by the first signal; later ones change nothing, so that an impatient user does not stop the restore."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, stop.set)

    def read_on() -> None:
        if not os.read(sys.stdin.fileno(), 4096):
            stop.set()

    if stop_on_eof:
        with suppress(PermissionError):  # a regular file, /dev/null: not to be waited for
            loop.add_reader(sys.stdin.fileno(), read_on)
    return stop


def _driver(options: argparse.Namespace, folder: Path) -> Driver:
    if options.simulate:
        return SimulatedDriver.of(
            read_json_object(options.simulate, "JSON with gpu, model, engine, gpus"), host=str(folder)
        )
    try:
        return NvmlDriver()
    except UserError as error:
        if not options.observe:
            raise
        log.warning("%s: power and energy will be unknown", error)
        return AbsentDriver()


def _open(driver: Driver, gpus: Sequence[int | str]) -> list[GpuDevice]:
    try:
        devices = [driver.find(gpu) if isinstance(gpu, str) else driver.open(gpu) for gpu in gpus]
    except DeviceError as error:
        raise UserError(f"--gpus: {error}") from error
    if len({device.info.gpu for device in devices}) < len(devices):
        raise UserError(f"--gpus: found {','.join(map(str, gpus))}; allowed: each GPU once")
    return devices


def _undo_previous(driver: Driver, devices: Sequence[GpuDevice], changes: Changes, holds: GpuHolds) -> None:
    """Restore what an owner that was killed has left; all listed GPUs if its note cannot be read."""
    problem = changes.load()
    if problem:
        log.warning("%s; restoring the clocks of all listed GPUs", problem)
        for device in devices:
            changes.suspect(device)
    _log_each(undo_left_behind(driver, changes, holds))


def _check_usable(device: GpuDevice) -> None:
    if device.divided():
        raise UserError(f"--gpus: GPU {device.info.gpu}: found it divided (MIG), allowed: whole GPUs, or --observe")
    if not device.info.clocks_mhz:
        raise UserError(
            f"--gpus: GPU {device.info.gpu}: found no clocks that it supports; allowed with --observe alone"
        )


def _check_privilege(device: GpuDevice) -> None:
    capped = device.info.power_limit_range_w is not None
    try:
        device.check_privilege()
    except DeviceError as error:
        if error.fault == "permission":
            raise UserError(
                f"{error}; run {PROGRAM} as root (sudo {PROGRAM} ...), or with --observe, which changes nothing"
            ) from error
        raise UserError(f"--gpus: {error}; its clock cannot be locked; allowed with --observe alone") from error
    if capped and device.info.power_limit_range_w is None:
        log.warning("GPU %d: its power limit may not be set on this host; its clock may", device.info.gpu)


def _log_each(lines: Sequence[str]) -> None:
    for line in lines:
        log.warning("%s", line)
