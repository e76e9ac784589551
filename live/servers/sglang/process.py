"""One server as a process: started behind a guard, its output in a file, and gone with whoever started it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from voltana.live.servers.sglang import guard

START_S = 60.0
KILL_AFTER_S = 5.0
"""A guard that has not ended this long after it should have is killed."""


class ServerProcess:
    """A guarded process.

    Args:
        name: of the server.
        command: what to run.
        environment: its environment variables, all of them.
        folder: where it runs.
        log: file for what it says; an old one is replaced.
        socket: a file that it makes and that is removed when it has ended.
        stop_s: time between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        log: Path,
        socket: Path | None = None,
        stop_s: float = 20.0,
    ) -> None:
        self.name = name
        self.log = log
        self.pid = 0
        """Process id of the server itself, not of the guard; also of its process group."""
        self._command = command
        self._environment = environment
        self._folder = folder
        self._socket = socket
        self._stop_s = stop_s
        self._guard: Process | None = None
        self._started_s = 0.0
        self.stopping = False
        """A stop was asked for, so that its end is no surprise."""

    async def start(self) -> None:
        """Start it.

        Raises:
            OSError: it cannot be started.
        """
        remove = ["--remove", str(self._socket)] if self._socket is not None else []
        with self.log.open("wb") as log:
            self._guard = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", guard.__file__, "--grace-s", str(self._stop_s), *remove, "--"),
                *self._command,
                stdin=PIPE,
                stdout=PIPE,
                stderr=log,
                cwd=self._folder,
                env=dict(self._environment),
                start_new_session=True,
            )
        self._started_s = time.monotonic()
        assert self._guard.stdout is not None
        try:
            async with asyncio.timeout(START_S):
                line = await self._guard.stdout.readline()
        except TimeoutError:
            self._guard.kill()
            raise OSError(f"the guard of {self.name} did not start within {START_S:g} s") from None
        if not line:
            raise OSError(self.ended_how(await self._guard.wait()))
        self.pid = int(line)

    @property
    def age_s(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._started_s

    @property
    def status(self) -> int | None:
        """Exit status as a shell gives it (128 and more: killed by a signal); None while it runs."""
        return None if self._guard is None else self._guard.returncode

    async def wait(self) -> int:
        """Wait for its end; return its exit status."""
        assert self._guard is not None
        status = await self._guard.wait()
        if status < 0:  # The guard was killed, and the kernel kills the server; its children may be slower to notice.
            self.kill()
        return status

    def kill(self) -> None:
        """Kill it and all its children."""
        if self.pid:  # 0 would be this process's own group
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    async def stop(self) -> None:
        """Stop it and all its children, at once if it does not stop by itself; safe to call more than once."""
        if self._guard is None:
            return
        self.stopping = True
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        try:
            async with asyncio.timeout(self._stop_s + KILL_AFTER_S):
                await self.wait()
        except TimeoutError:
            self._guard.kill()
            await self.wait()

    def last_lines(self, count: int) -> list[str]:
        """The last lines of the log that are not empty."""
        try:
            with self.log.open(errors="replace") as log:
                return list(deque((line.rstrip() for line in log if line.strip()), count))
        except OSError:
            return []

    def ended_how(self, status: int, lines: int = 12) -> str:
        """A message on its end, with the last lines of its log."""
        how = (
            f"was killed by signal {abs(status) % 128}" if status < 0 or status > 128 else f"ended with status {status}"
        )
        said = "".join(f"\n    {line}" for line in self.last_lines(lines)) or " nothing"
        return f"{self.name} {how} after {self.age_s:.0f} s; {self.log} says last:{said}"
