"""Stock SGLang servers, started together and gone together.

By hand: ``python -m voltana.live.servers.sglang.launch --environment FOLDER --prefill 1 --decode 1`` runs them until
Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from voltana import checks
from voltana.errors import UserError
from voltana.live.http import is_healthy
from voltana.live.servers import Endpoint, Role
from voltana.live.servers.sglang.environment import Environment, clean_environment
from voltana.live.servers.sglang.flags import (
    ENVIRONMENT,
    Device,
    KvPath,
    arguments,
    data_parallel,
    kv_path,
    server_flags,
)
from voltana.live.servers.sglang.installed import check_installed
from voltana.live.servers.sglang.process import ServerProcess
from voltana.live.telemetry.sglang_versions import ANY

logger = logging.getLogger(__name__)

PORTS = range(20_000, 32_000)
"""Below those that systems hand out to clients: a server takes its port a minute after it was chosen."""

PORTS_PER_SERVER = 3
"""Where it answers, where prefill and decode servers meet, and where the processes of its GPUs find each other."""
LOOKED_AT = 200
"""Lines at the end of a log that may tell why a server ended."""
POLL_S = 0.5
STARTS = 3
"""How often servers are started in all where one of them finds a port taken meanwhile."""
PORT_TAKEN = re.compile("address already in use|EADDRINUSE", re.IGNORECASE)
TELL_EVERY_S = 15.0
"""While waiting, say for whom."""


class _PortTakenError(UserError):
    """A server ended because somebody else had come to listen at one of its ports."""


class SglangServers:
    """Starts SGLang servers on this machine and stops them; an asynchronous context manager.

    Every server has a guard that ends it with this process even when this is killed.

    Args:
        python: interpreter of the environment that has SGLang and this project.
        model: folder of the model, or its name.
        prefill, decode, unified: how many of each.
        device: cpu or cuda.
        transfer: how the KV cache gets from prefill to decode servers, see `flags.TRANSFERS`; None: the device's first.
        gpus: per server, in the order of names, the UUIDs of the GPUs it may see; its tensor parallelism is their
            number.
        flags: changes to the flags of all servers, see `voltana.live.servers.sglang.flags`.
        role_flags: changes by role.
        environment: further environment variables.
        any_version: start a release of SGLang that is not tested, too.
        folder: where logs go, one file a server; None: a temporary folder, kept only if something failed.
        host: address to listen at, of this machine.
        start_timeout_s: when a server that is not healthy has failed.
        stop_timeout_s: time a server gets to stop before it is killed.
        on_exit: called with name and message when a server ends that should not.

    Raises:
        UserError: a count, device or GPU list that makes no sense.
    """

    def __init__(
        self,
        python: Path | str,
        model: Path | str,
        *,
        prefill: int = 2,
        decode: int = 2,
        unified: int = 0,
        device: Device = "cpu",
        transfer: str | None = None,
        gpus: Sequence[Sequence[str]] = (),
        flags: Mapping[str, Any] | None = None,
        role_flags: Mapping[Role, Mapping[str, Any]] | None = None,
        environment: Mapping[str, str] | None = None,
        any_version: bool = False,
        folder: Path | str | None = None,
        host: str = "127.0.0.1",
        start_timeout_s: float = 900.0,
        stop_timeout_s: float = 20.0,
        on_exit: Callable[[str, str], None] | None = None,
    ) -> None:
        counts: dict[Role, int] = {"prefill": prefill, "decode": decode, "unified": unified}
        for role, count in counts.items():
            checks.number(role, count, low=0)
        self._names: list[tuple[str, Role]] = [(f"{r}-{i}", r) for r, count in counts.items() for i in range(count)]
        if device not in ENVIRONMENT:
            raise UserError(f"device: found {device!r}, allowed: {', '.join(ENVIRONMENT)}")
        if gpus and len(gpus) != len(self._names):
            raise UserError(f"gpus: found {len(gpus)} lists, allowed: one for each of the {len(self._names)} servers")
        self.python = Path(python)
        self.model = str(model)
        self.version = ""
        """Of SGLang, once it was looked at (`check`)."""
        self._device: Device = device
        self._path = kv_path(device, transfer, flags or {}) if prefill or decode else KvPath("", {})
        self._gpus = gpus
        self._flags = flags or {}
        self._role_flags = role_flags or {}
        self._environment = environment or {}
        self._any_version = any_version
        self._logs = None if folder is None else Path(folder).absolute()
        self._host = host
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._on_exit = on_exit
        self._folder: Path | None = None
        self._processes: dict[str, ServerProcess] = {}
        self._watches: list[asyncio.Task[None]] = []
        self.endpoints: dict[str, Endpoint] = {}
        """The servers by name: prefill-0, prefill-1, ..., decode-0, ..., unified-0, ..."""

    def of(self, role: Role) -> list[Endpoint]:
        """The servers of a role."""
        return [endpoint for endpoint in self.endpoints.values() if endpoint.role == role]

    @property
    def prefill(self) -> list[tuple[str, int]]:
        """URL and bootstrap port of the prefill servers."""
        return [(endpoint.url, endpoint.bootstrap_port) for endpoint in self.of("prefill")]

    @property
    def decode(self) -> list[str]:
        """URL of the decode servers."""
        return [endpoint.url for endpoint in self.of("decode")]

    @property
    def transfer_backend(self) -> str:
        """What moves the KV cache from prefill to decode servers, by SGLang's name."""
        return self._path.backend

    def status(self, name: str) -> int | None:
        """Exit status of a server; None while it runs."""
        return self._processes[name].status

    # Start

    def check(self) -> None:
        """Look at all that can be known to be wrong before a server starts.

        Raises:
            UserError: no such interpreter, no SGLang that is tested, no such folder of a model, a flag that telemetry
                does not go with, or logs cannot be written.
        """
        if not self.python.is_file():
            raise UserError(f"python: found no {self.python}, allowed: the interpreter of an environment with SGLang")
        if self.model.startswith(("/", "./", "../")) and not Path(self.model).is_dir():
            raise UserError(f"model: found no {self.model}, allowed: a folder with a model, or the name of one")
        unknown = [role for role in self._role_flags if role not in ("prefill", "decode", "unified")]
        if unknown:
            raise UserError(f"role_flags: found {unknown[0]!r}, allowed: prefill, decode, unified")
        if self._logs is not None:
            try:
                self._logs.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"logs: {self._logs}: {error.strerror}, allowed: a folder to write to") from error
        for role in {role for _, role in self._names}:
            flag = data_parallel({**self._flags, **self._role_flags.get(role, {})})
            if flag is not None:
                raise UserError(
                    f"flags: found {flag} for {role} servers, allowed: none; data-parallel ranks would publish as one "
                    "instance, so run a server for each"
                )
        self.version = check_installed(self.python, self.variables(), any_version=self._any_version)

    async def start(self) -> None:
        """Start all servers and wait until they are healthy; progress goes to the log.

        A server takes its ports up to a minute after they were found free. If another program has taken one meanwhile,
        all are started once more, with other ports.

        Raises:
            UserError: a server could not be started, ended, or was not healthy in time. All others are stopped.
        """
        self.check()
        for again in range(1, STARTS):
            try:
                return await self._start_once()
            except _PortTakenError as error:
                logger.warning("start %d of %d, as a port was taken: %s", again + 1, STARTS, error)
                if self._folder is not None:
                    shutil.rmtree(self._folder, ignore_errors=True)
        return await self._start_once()

    async def _start_once(self) -> None:
        # Short, for the path of a socket may have no more than 107 characters.
        self._folder = folder = Path(tempfile.mkdtemp(prefix="voltana-sglang-"))
        logs = self._logs or folder
        try:
            await self._start_all(folder, logs)
        except BaseException as error:
            keep = isinstance(error, UserError) and self._logs is None
            await self.stop(keep_logs=keep)
            raise

    async def _start_all(self, folder: Path, logs: Path) -> None:
        ports = iter(free_ports(self._host, PORTS_PER_SERVER * len(self._names)))
        for number, (name, role) in enumerate(self._names):
            log = logs / f"{name}.log"
            endpoint = Endpoint(
                name,
                role,
                self._host,
                next(ports),
                next(ports) if role == "prefill" else 0,
                f"ipc://{folder / name}.sock",
                0,
                log,
            )
            process = self._processes[name] = self._process(endpoint, number, next(ports), folder, log)
            try:
                await process.start()
            except OSError as error:
                raise UserError(f"{name}: {error}") from error
            self.endpoints[name] = endpoint._replace(pid=process.pid)
        await self._until_healthy()
        self._watches = [asyncio.create_task(self._watch(process)) for process in self._processes.values()]

    def _process(self, endpoint: Endpoint, number: int, group_port: int, folder: Path, log: Path) -> ServerProcess:
        socket_file = folder / f"{endpoint.name}.sock"
        return ServerProcess(
            endpoint.name,
            [str(self.python), "-m", "sglang.launch_server", *arguments(self._flags_of(endpoint, number, group_port))],
            self._environment_of(endpoint, number),
            folder,
            log,
            socket_file,
            self._stop_timeout_s,
        )

    def _flags_of(self, endpoint: Endpoint, number: int, group_port: int) -> dict[str, Any]:
        own: dict[str, Any] = {"model-path": self.model, "host": endpoint.host, "port": endpoint.port}
        own["nccl-port"] = group_port
        if endpoint.bootstrap_port:
            own["disaggregation-bootstrap-port"] = endpoint.bootstrap_port
        if self._gpus:
            own["tp-size"] = len(self._gpus[number])
        return own | server_flags(
            endpoint.role, self._device, self._path, self._flags, self._role_flags.get(endpoint.role)
        )

    def _environment_of(self, endpoint: Endpoint, number: int) -> dict[str, str]:
        ours = {"VOLTANA_TELEMETRY": endpoint.telemetry, "VOLTANA_INSTANCE": endpoint.name}
        if self._any_version:
            ours[ANY] = "1"
        if self._gpus:
            ours["CUDA_VISIBLE_DEVICES"] = ",".join(self._gpus[number])
        return self.variables(ours)

    def variables(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment variables of the servers, and more."""
        ours = {**ENVIRONMENT[self._device], **self._path.variables, "SGLANG_HOST_IP": self._host, **(more or {})}
        return clean_environment() | ours | dict(self._environment)

    # Health

    async def _until_healthy(self) -> None:
        began_s = time.monotonic()
        waiting = {asyncio.create_task(self._healthy(name)): name for name in self.endpoints}
        try:
            while waiting:
                done, _ = await asyncio.wait(waiting, timeout=TELL_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    name = waiting.pop(task)
                    task.result()
                    ready = len(self.endpoints) - len(waiting)
                    spent_s = time.monotonic() - began_s
                    logger.info("%s is ready after %.0f s (%d of %d)", name, spent_s, ready, len(self.endpoints))
                if not done:
                    self._tell(list(waiting.values()), time.monotonic() - began_s)
        finally:
            for task in waiting:
                task.cancel()

    def _tell(self, names: Sequence[str], spent_s: float) -> None:
        said = self._processes[names[0]].last_lines(1)
        logger.info("%.0f s: waiting for %s: %s", spent_s, ", ".join(names), said[0][:160] if said else "no word yet")

    async def _healthy(self, name: str) -> None:
        endpoint, process = self.endpoints[name], self._processes[name]
        while process.age_s < self._start_timeout_s:
            if process.status is not None:
                taken = any(map(PORT_TAKEN.search, process.last_lines(LOOKED_AT)))
                raise (_PortTakenError if taken else UserError)(process.ended_how(process.status))
            if await is_healthy(endpoint.url):
                return
            await asyncio.sleep(POLL_S)
        last = " / ".join(process.last_lines(1))
        raise UserError(f"{name} is not healthy after {self._start_timeout_s:g} s; {process.log} says last: {last}")

    async def _watch(self, process: ServerProcess) -> None:
        status = await process.wait()
        if not process.stopping:
            message = process.ended_how(status)
            logger.error(message)
            if self._on_exit is not None:
                self._on_exit(process.name, message)

    # End

    def kill(self, name: str) -> None:
        """End a server that hangs; see `voltana.live.servers.Servers`."""
        self._processes[name].kill()

    async def stop(self, keep_logs: bool = False) -> None:
        """Stop all servers, those first that depend on others, and remove their sockets; safe to call more than once.

        Args:
            keep_logs: leave the temporary folder with the logs.
        """
        processes, self._processes = self._processes, {}
        for process in processes.values():
            process.stopping = True
        for roles in (("decode", "unified"), ("prefill",)):
            await asyncio.gather(*(process.stop() for name, process in processes.items() if _role(name) in roles))
        for watch in self._watches:
            watch.cancel()
        self._watches.clear()
        self.endpoints.clear()
        if self._folder is not None and not keep_logs:
            shutil.rmtree(self._folder, ignore_errors=True)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()


def _role(name: str) -> str:
    return name.rpartition("-")[0]


def free_ports(host: str, count: int) -> list[int]:
    """Ports of which nobody listens at one.

    Raises:
        UserError: there are not so many.
    """
    found: list[int] = []
    candidates: Iterable[int] = random.sample(PORTS, len(PORTS))
    for port in candidates:
        if len(found) == count:
            return found
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((host, port))
            found.append(port)
    raise UserError(f"ports: found {len(found)} free from {PORTS[0]} to {PORTS[-1]}, allowed: {count}")


# By hand


async def _serve(servers: SglangServers) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    starting = asyncio.create_task(servers.start())
    stop = asyncio.create_task(stopped.wait())
    await asyncio.wait((starting, stop), return_when=asyncio.FIRST_COMPLETED)
    try:
        if stop.done():
            starting.cancel()
            await asyncio.wait((starting,))
            return
        starting.result()
        for endpoint in servers.endpoints.values():
            print(f"{endpoint.name} {endpoint.url} {endpoint.bootstrap_port or ''} {endpoint.telemetry}", flush=True)
        await stop
    finally:
        stop.cancel()
        await servers.stop()


def main() -> int:
    """Run servers until SIGINT or SIGTERM; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m voltana.live.servers.sglang.launch", description="Run stock SGLang servers."
    )
    parser.add_argument(
        "--environment", type=Path, required=True, help="folder made by voltana.live.servers.sglang.environment"
    )
    parser.add_argument("--model", help="default: the tiny one of the environment")
    parser.add_argument("--device", choices=tuple(ENVIRONMENT), default="cpu")
    for role, default in (("prefill", 1), ("decode", 1), ("unified", 0)):
        parser.add_argument(f"--{role}", type=int, default=default)
    parser.add_argument("--logs", type=Path, help="folder for the servers' logs")
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    environment = Environment(options.environment.absolute())
    try:
        servers = SglangServers(
            environment.python,
            options.model or environment.model,
            prefill=options.prefill,
            decode=options.decode,
            unified=options.unified,
            device=options.device,
            folder=options.logs,
        )
        asyncio.run(_serve(servers))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
