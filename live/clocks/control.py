"""How a harness gets at the GPUs of its host: the choices of `control` (conf/control/), all ending in a `ClockClient`.

nvml        an owner that runs already, as root
simulated   an owner of simulated GPUs, started and stopped with the harness
observe     an owner without privilege that only reads
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Protocol

from voltana.errors import UserError
from voltana.live.clocks import access
from voltana.live.clocks.client import ClockClient
from voltana.live.clocks.protocol import Event
from voltana.live.clocks.simulated import BLOCK_S, SETTLE_S

OWNER = (sys.executable, "-P", "-m", "voltana.live.clocks.command")
"""The command of an owner of clocks."""
_START_S = 30.0
_STOP_S = 20.0
OnEvent = Callable[[Event], None]


class Control(Protocol):
    """One way to the GPUs."""

    def open(
        self, gpus: Sequence[int | str], name: str, on_event: OnEvent | None = None
    ) -> AbstractContextManager[ClockClient]:
        """Connect to an owner of these GPUs, for the time of a `with` statement.

        Args:
            gpus: UUIDs, or indices of the owner's; nothing is owned or changed yet. Simulated ones have indices.
            name: of the client, for the owner's messages.
            on_event: see `ClockClient`.

        Raises:
            UserError: there is no owner, it does not have these GPUs, or it cannot be started.
        """
        ...


class NvmlControl:
    """Ask an owner that runs already: `sudo voltana-clocks --gpus ... --group ...`.

    Args:
        socket: its socket; None for the standard one.
    """

    def __init__(self, *, socket: str | None = None) -> None:
        self.path = access.standard_socket() if socket is None else Path(socket)

    @contextmanager
    def open(self, gpus: Sequence[int | str], name: str, on_event: OnEvent | None = None) -> Iterator[ClockClient]:
        """Connect; see `Control`."""
        with ClockClient(self.path, name, on_event) as client:
            client.indices(gpus)
            yield client


class SimulatedControl:
    """Start an owner of simulated GPUs; tell it their load with `ClockClient.feed`.

    Args:
        gpu: the `gpu` section of the configuration.
        model: the `model` section.
        engine: the `serving.engine` section.
        seed: of the sensors' errors.
        block_s: a clock command blocks for so long.
        settle_s: from its end until the clock is in force.
        changes_per_s: the owner's rate limit, commands per GPU and second.
    """

    def __init__(
        self,
        *,
        gpu: Mapping[str, Any],
        model: Mapping[str, Any],
        engine: Mapping[str, Any],
        seed: int = 0,
        block_s: float = BLOCK_S,
        settle_s: float = SETTLE_S,
        changes_per_s: float = 50.0,
    ) -> None:
        delays = {"seed": seed, "block_s": block_s, "settle_s": settle_s}
        self._settings = {"gpu": gpu, "model": model, "engine": engine, **delays}
        self._changes_per_s = changes_per_s

    @contextmanager
    def open(self, gpus: Sequence[int | str], name: str, on_event: OnEvent | None = None) -> Iterator[ClockClient]:
        """Start the owner and connect; see `Control`."""
        with tempfile.TemporaryFile("w", encoding="utf-8") as settings:
            json.dump({**self._settings, "gpus": max(map(int, gpus)) + 1}, settings)
            settings.flush()
            options = ["--simulate", f"/dev/fd/{settings.fileno()}", "--changes-per-s", str(self._changes_per_s)]
            with (
                started_owner(gpus, options, [settings.fileno()]) as socket,
                ClockClient(socket, name, on_event) as client,
            ):
                yield client


class ObserveControl:
    """Start an owner that only reads: needs no privilege. Without a driver every reading is None."""

    @contextmanager
    def open(self, gpus: Sequence[int | str], name: str, on_event: OnEvent | None = None) -> Iterator[ClockClient]:
        """Start the owner and connect; nothing can be owned or set. See `Control`."""
        with started_owner(gpus, ["--observe"]) as socket, ClockClient(socket, name, on_event) as client:
            yield client


@contextmanager
def started_owner(gpus: Sequence[int | str], options: Sequence[str], files: Sequence[int] = ()) -> Iterator[Path]:
    """Run an owner in a folder of its own for the time of a `with` statement; gives its socket.

    It ends with this process however that ends, since its standard input then does, and leaves nothing behind.

    Args:
        gpus: what it owns.
        options: of its command line.
        files: open files that it inherits.

    Raises:
        UserError: it refuses to start; its own words.
    """
    with (
        tempfile.TemporaryDirectory(prefix="voltana-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile("w+", encoding="utf-8") as words,
    ):
        listed = ",".join(map(str, gpus))
        process = subprocess.Popen(
            [*OWNER, "--gpus", listed, "--folder", folder, "--stop-on-eof", *options],
            stdin=subprocess.PIPE,
            stdout=words,
            stderr=words,
            pass_fds=files,
            start_new_session=True,  # Ctrl-C is for the harness, which lets the owner go in its own time
        )
        path = Path(folder) / access.SOCKET_NAME
        try:
            _await_socket(path, process, words)
            yield path
        finally:
            _stop(process)


def _await_socket(path: Path, process: subprocess.Popen[bytes], words: IO[str]) -> None:
    until_s = time.monotonic() + _START_S
    while not path.exists():
        if process.poll() is not None:
            words.seek(0)
            lines = words.read().strip().splitlines() or ["it ended at once"]
            raise UserError(lines[-1].rpartition("error: ")[2])
        if time.monotonic() > until_s:
            raise UserError(f"voltana-clocks: it was not ready after {_START_S:g} s")
        time.sleep(0.01)


def _stop(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.send_signal(signal.SIGCONT)  # or one that was stopped could not end by itself
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_S)
        return
    process.kill()
    process.wait()
