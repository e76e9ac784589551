"""The owner: the one process of a host that holds the privilege to change GPUs (`voltana-clocks`).

    sudo voltana-clocks --gpus 0,1,2,3 --group voltana

Unprivileged clients ask it over a Unix-domain socket. It changes only the GPUs it was given, only to what they support,
and restores them when a client leaves, when it ends itself, and at its next start if it was killed. See docs/clocks.md.

Exit status: 0 done, 2 bad input or no privilege, 3 a GPU could not be restored.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from live.clocks import access
from live.clocks.absent import AbsentDriver
from live.clocks.changes import Changes, OwnerLock, undo_left_behind
from live.clocks.device import DeviceError, Driver, GpuDevice
from live.clocks.nvml import NvmlDriver
from live.clocks.replay import ReplayDriver
from live.clocks.schedule import Limits, OwnedGpu, Scheduler, TokenBucket
from live.clocks.server import Server
from live.clocks.simulated import SimulatedDriver
from voltana.errors import UserError

PROGRAM = "voltana-clocks"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
log = logging.getLogger(PROGRAM)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script: run until a signal, or do what `--restore` asks, and exit."""
    logging.basicConfig(format=f"{PROGRAM}: %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        options = _parser().parse_args(arguments)
        status = restore(options) if options.restore else own(options)
    except UserError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        status = 2
    sys.stderr.flush()
    os._exit(status)  # a driver call that never returns would keep the interpreter from ending


def restore(options: argparse.Namespace) -> int:
    """Undo what an owner that was killed has left, and nothing else."""
    folder = access.prepare_folder(options.folder or access.standard_folder())
    lock = OwnerLock(folder)
    changes = Changes(folder)
    problem = changes.load()
    if problem:
        raise UserError(f"{problem}; restore by hand: nvidia-smi --reset-gpu-clocks")
    if changes.all():
        driver = _driver(options)
        _log_each(undo_left_behind(driver, changes))
        driver.close()
    lock.release()
    return 3 if changes.all() else 0


def own(options: argparse.Namespace) -> int:
    """Own the listed GPUs until a signal comes."""
    if not options.gpus:
        raise UserError("--gpus: nothing found; allowed: the indices of the GPUs to own, such as 0,1,2,3")
    gid = None if options.group is None else access.group_id(options.group)
    folder = access.prepare_folder(options.folder or access.standard_folder())
    lock = OwnerLock(folder)
    driver = _driver(options)
    devices = [_open(driver, gpu) for gpu in options.gpus]
    changes = Changes(folder)
    if not options.observe:
        _undo_previous(driver, devices, changes)
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


def _driver(options: argparse.Namespace) -> Driver:
    if options.simulate:
        return SimulatedDriver.from_mapping(_read_settings(options.simulate))
    if options.replay:
        return ReplayDriver(options.replay)
    try:
        return NvmlDriver()
    except UserError as error:
        if not options.observe:
            raise
        log.warning("%s: power and energy will be unknown", error)
        return AbsentDriver()


def _read_settings(path: Path) -> dict[str, object]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); allowed: JSON with gpu, model, engine, gpus") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: found a {type(settings).__name__}; allowed: an object with gpu, model, engine, gpus")
    return settings


def _open(driver: Driver, gpu: int) -> GpuDevice:
    try:
        return driver.open(gpu)
    except DeviceError as error:
        raise UserError(f"--gpus: {error}") from error


def _undo_previous(driver: Driver, devices: Sequence[GpuDevice], changes: Changes) -> None:
    """Restore what an owner that was killed has left; all listed GPUs if its note cannot be read."""
    problem = changes.load()
    if problem:
        log.warning("%s; restoring the clocks of all listed GPUs", problem)
        for device in devices:
            changes.suspect(device)
    _log_each(undo_left_behind(driver, changes))


def _check_privilege(device: GpuDevice) -> None:
    try:
        device.check_privilege()
    except DeviceError as error:
        if error.fault == "permission":
            raise UserError(
                f"{error}; run {PROGRAM} as root (sudo {PROGRAM} ...), or with --observe, which changes nothing"
            ) from error
        raise UserError(f"--gpus: {error}") from error


def _log_each(lines: Sequence[str]) -> None:
    for line in lines:
        log.warning("%s", line)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(PROGRAM, description="Own the clocks and power caps of GPUs on behalf of unprivileged clients.")
    add = parser.add_argument
    add("--gpus", type=_indices, help="indices of the GPUs to own, such as 0,1,2,3; no other is ever changed")
    add("--group", help="members of this group may connect, beside root and the user who starts it")
    add("--folder", type=Path, help=f"for socket, lock and note of changes; root's standard is {access.ROOT_FOLDER}")
    add("--observe", action="store_true", help="only read: needs no privilege")
    add("--restore", action="store_true", help="undo what an owner that was killed has left, and exit")
    add(
        "--stop-on-eof",
        action="store_true",
        help="stop when standard input ends, that is with the process that started it, and remove an empty --folder",
    )
    add("--changes-per-s", type=_number(1, 1000), default=Limits.changes_per_s, help="per GPU; default %(default)s")
    add("--heartbeat-s", type=_number(0.1, 3600), default=Limits.heartbeat_s, help="default %(default)s")
    add("--restore-s", type=_number(0.1, 600), default=Limits.restore_s, help="at exit, at most; default %(default)s")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--simulate", type=Path, metavar="JSON", help="simulated GPUs: their settings")
    kind.add_argument("--replay", type=Path, metavar="CSV", help="recorded GPUs: a recording")
    return parser


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def _indices(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() for word in words) or len({int(word) for word in words}) < len(words):
        raise argparse.ArgumentTypeError(f"found {text!r}; allowed: indices such as 0,1,2,3, each once")
    return [int(word) for word in words]


def _number(low: float, high: float) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"found {text}; allowed: {low:g} to {high:g}")
        return value

    return number


if __name__ == "__main__":
    main()
