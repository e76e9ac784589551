"""A set of emulated servers, started together and gone together."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Self

from voltana.errors import UserError
from voltana.live.servers import Endpoint, Role
from voltana.live.servers.emulated.config import ServerConfig, build_plant
from voltana.section import parse
from voltana.state import Phase

START_S = 30.0
"""A server that does not listen by then has failed."""

STOP_S = 3.0
"""A server that has not stopped by then is killed."""


class EmulatedCluster:
    """Starts prefill and decode servers and stops them; an asynchronous context manager.

    The servers hold on to a pipe from this process, so they end with it even when it is killed.

    Args:
        prefill, decode: how many of each.
        plant: the keys `gpu`, `model` and `engine` of `voltana.live.servers.emulated.config.ServerConfig`.
        settings: other keys of it, for all servers.
        on_exit: called with name and message when a server ends that should not.
    """

    def __init__(
        self,
        prefill: int,
        decode: int,
        plant: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
        on_exit: Callable[[str, str], None] | None = None,
    ) -> None:
        self._counts: list[tuple[Phase, int]] = [("prefill", prefill), ("decode", decode)]
        self._keys = {**plant, **(settings or {})}
        self._folder: Path | None = None
        self._processes: list[Process] = []
        self._by_name: dict[str, Process] = {}
        self._words: dict[str, IO[bytes]] = {}
        """Files without a name: what each server says on standard error."""
        self._on_exit = on_exit
        self._watches: list[asyncio.Task[None]] = []
        self.endpoints: dict[str, Endpoint] = {}
        """The servers by name: prefill-0, prefill-1, ..., decode-0, ..."""

    def _config(self, folder: Path, phase: Phase, number: int) -> ServerConfig:
        name = f"{phase}-{number}"
        own = {"name": name, "phase": phase, "telemetry": f"ipc://{folder / name}.sock"}
        return parse(ServerConfig, {**self._keys, **own})

    def check(self) -> None:
        """Look at all settings before a server starts.

        Raises:
            UserError: a bad one; names the key.
        """
        for phase, _ in self._counts:
            build_plant(self._config(Path(), phase, 0))

    def of(self, role: Role) -> list[Endpoint]:
        """The servers of a role."""
        return [endpoint for endpoint in self.endpoints.values() if endpoint.role == role]

    async def start(self) -> None:
        """Start all servers and wait until they listen.

        Raises:
            UserError: a bad setting, or a server did not start; what it said last. The others are stopped.
        """
        self._folder = folder = Path(tempfile.mkdtemp(prefix="voltana-emulated-"))
        try:
            configs = [self._config(folder, phase, number) for phase, many in self._counts for number in range(many)]
            async with asyncio.timeout(START_S):
                for config in configs:
                    await self._spawn(folder / f"{config.name}.json", config)
                for config, process in zip(configs, self._processes, strict=True):
                    self.endpoints[config.name] = await self._endpoint(config, process)
            self._watches = [
                asyncio.create_task(self._watch(config.name, process))
                for config, process in zip(configs, self._processes, strict=True)
            ]
        except TimeoutError as error:
            await self.stop()
            raise UserError(f"emulated servers did not start within {START_S:g} s") from error
        except BaseException:
            await self.stop()
            raise

    async def _watch(self, name: str, process: Process) -> None:
        how = self._ended_how(name, await process.wait())
        if self._on_exit is not None:
            self._on_exit(name, how)

    def _ended_how(self, name: str, status: int) -> str:
        how = f"it ended by signal {-status}" if status < 0 else f"it ended with exit status {status}"
        words = self._words[name]
        words.seek(0)
        said = words.read().decode(errors="replace").strip().splitlines()
        return f"{how}, having said: {said[-1]}" if said else how

    async def _spawn(self, path: Path, config: ServerConfig) -> None:
        path.write_bytes(config.model_dump_json().encode())
        command = (sys.executable, "-P", "-m", "voltana.live.servers.emulated", "--config", str(path), "--owned")
        words = self._words[config.name] = tempfile.TemporaryFile()  # noqa: SIM115, as it is read later
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=words, start_new_session=True
        )
        self._processes.append(process)
        self._by_name[config.name] = process

    async def _endpoint(self, config: ServerConfig, process: Process) -> Endpoint:
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line:
            raise UserError(f"{config.name} did not start: {self._ended_how(config.name, await process.wait())}")
        ports = json.loads(line)
        telemetry = config.telemetry or ""
        return Endpoint(
            config.name, config.phase, config.host, ports["port"], ports["bootstrap_port"], telemetry, process.pid
        )

    def kill(self, name: str) -> None:
        """End a server that hangs; see `Servers`."""
        _kill(self._by_name[name])

    async def stop(self) -> None:
        """Stop all servers and remove their files; safe to call more than once."""
        processes, self._processes = self._processes, []
        watches, self._watches = self._watches, []
        for watch in watches:
            watch.cancel()
        await asyncio.gather(*watches, return_exceptions=True)
        await asyncio.gather(*map(_stop, processes))
        for words in self._words.values():
            words.close()
        self.endpoints.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        _kill(process)
        await process.wait()


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
