"""The servers of a live run, by the choices of `conf/servers/`: emulated, sglang, attach."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from voltana import checks
from voltana.errors import UserError
from voltana.live.gpus.visible import (
    VARIABLE,
    Card,
    Gpu,
    Groups,
    check_idle,
    choose,
    gpu_groups,
    host_cards,
    told_by_uuid,
)
from voltana.live.http import ask, is_healthy
from voltana.live.run.config import LiveConfig, of_section
from voltana.live.servers import Endpoint, Role, Servers
from voltana.live.servers.emulated.cluster import EmulatedCluster
from voltana.live.servers.sglang.environment import Environment
from voltana.live.servers.sglang.flags import Device
from voltana.live.servers.sglang.launch import SglangServers
from voltana.live.telemetry.sglang_versions import untested
from voltana.sim.plant.build import build_plant, decode_limits

OnExit = Callable[[str, str], None]
WATCH_EVERY_S = 1.0
CONNECT_S = 10.0


class Fleet(Protocol):
    """One way to have servers.

    Attributes:
        emulated: whether the servers are simulated GPUs themselves.
        owners: by instance, the socket of the owner of its GPUs' clocks, where that is not the owner of `control`.
    """

    emulated: bool
    owners: Mapping[str, str]

    def servers(self, config: LiveConfig, folder: Path, on_exit: OnExit, *, look: bool = False) -> Servers:
        """The servers, not started yet.

        Args:
            config: of the run.
            folder: of its record; logs go there.
            on_exit: called with name and message when a server ends that should not.
            look: they are only looked at, and get no GPUs.

        Raises:
            UserError: a bad setting.
        """
        ...

    def gpus(self, config: LiveConfig, real: bool) -> Groups:
        """The GPUs of each instance, prefill first.

        Args:
            config: of the run.
            real: whether they are GPUs of this host; they are then told by UUID where NVML shows them.

        Raises:
            UserError: a bad setting, or GPUs that cannot be had.
        """
        ...


class EmulatedFleet:
    """Emulated servers, started with the run.

    Args:
        stream_interval: tokens per chunk of a stream, after the first.
    """

    emulated = True
    owners: Mapping[str, str] = {}

    def __init__(self, *, stream_interval: int = 1) -> None:
        self._settings = {"stream_interval": stream_interval}

    def servers(self, config: LiveConfig, folder: Path, on_exit: OnExit, *, look: bool = False) -> EmulatedCluster:
        """See `Fleet`."""
        serving, cluster = config.serving, config.cluster
        plant = {"gpu": config.gpu, "model": config.model, "engine": serving.engine}
        settings = {
            **self._settings,
            "settle_s": config.actuation.settle_s,
            "prefill": serving.prefill,
            "decode": serving.decode,
            "link": cluster.link,
        }
        decode_limits(serving.decode, build_plant(config))
        servers = EmulatedCluster(cluster.prefill_instances, cluster.decode_instances, plant, settings, on_exit)
        with of_section("servers"):
            servers.check()
        return servers

    def gpus(self, config: LiveConfig, real: bool) -> Groups:
        """See `Fleet`."""
        return gpu_groups(None, names_of(config), _tp(config))


class SglangFleet:
    """Stock SGLang servers, started with the run.

    Args:
        environment: a folder made by `python -m voltana.live.servers.sglang.environment`: its interpreter and its tiny
            model.
        python: or the interpreter of another environment with SGLang and this project.
        model: folder or name of the model; None: the tiny one of the environment.
        device: cpu or cuda.
        transfer: how the KV cache gets from prefill to decode servers (`live/servers/sglang/flags.py`).
        gpus: indices or UUIDs of the GPUs of each server, prefill first; None: in order, those of CUDA_VISIBLE_DEVICES
            if it is set.
        shared_gpus: whether GPUs may be taken on which other processes compute.
        flags, role_flags: changes to the servers' flags.
        variables: further environment variables.
        any_version: take a release of SGLang that is not tested.
        logs: folder for the servers' logs; None: the run's own.
        start_timeout_s, stop_timeout_s: see `SglangServers`.
    """

    emulated = False
    owners: Mapping[str, str] = {}

    def __init__(
        self,
        *,
        environment: str | None = None,
        python: str | None = None,
        model: str | None = None,
        device: Device = "cpu",
        transfer: str | None = None,
        gpus: list[list[Gpu]] | None = None,
        shared_gpus: bool = False,
        flags: Mapping[str, Any] | None = None,
        role_flags: Mapping[Role, Mapping[str, Any]] | None = None,
        variables: Mapping[str, str] | None = None,
        any_version: bool = False,
        logs: str | None = None,
        start_timeout_s: float = 900.0,
        stop_timeout_s: float = 20.0,
    ) -> None:
        made = None if environment is None else Environment(Path(environment).absolute())
        if python is None and made is None:
            raise UserError(
                "servers.environment: found null, allowed: a folder made by "
                "python -m voltana.live.servers.sglang.environment, or give servers.python and servers.model"
            )
        if model is None and made is None:
            raise UserError("servers.model: found null, allowed: folder or name of a model")
        self._python = made.python if python is None and made is not None else Path(str(python))
        self._model = str(made.model if model is None and made is not None else model)
        self.device: Device = device
        self._gpus = gpus
        self.shared_gpus = shared_gpus
        if VARIABLE in (variables or {}) and device == "cuda":
            raise UserError(
                f"servers.variables: found {VARIABLE}, allowed: servers.gpus, which also says whose clock it is"
            )
        self._options = {
            "transfer": transfer,
            "flags": flags or {},
            "role_flags": role_flags or {},
            "environment": variables or {},
            "any_version": checks.flag("servers.any_version", any_version),
            "start_timeout_s": checks.number("servers.start_timeout_s", start_timeout_s, above=0),
            "stop_timeout_s": checks.number("servers.stop_timeout_s", stop_timeout_s, above=0),
        }
        self._logs = logs

    def servers(self, config: LiveConfig, folder: Path, on_exit: OnExit, *, look: bool = False) -> SglangServers:
        """See `Fleet`."""
        groups = self.groups(config) if self.device == "cuda" and not look else {}
        if not self.shared_gpus:
            check_idle(groups)
        with of_section("servers"):
            servers = SglangServers(
                self._python,
                self._model,
                prefill=config.cluster.prefill_instances,
                decode=config.cluster.decode_instances,
                device=self.device,
                gpus=[[card.uuid for card in group] for group in groups.values()],
                folder=folder / "logs" if self._logs is None else Path(self._logs),
                on_exit=on_exit,
                **self._options,  # type: ignore[arg-type]
            )
            servers.check()
        return servers

    def groups(self, config: LiveConfig) -> dict[str, list[Card]]:
        """The GPUs of each server of device `cuda`.

        Raises:
            UserError: there is no NVML here, or the GPUs cannot be had.
        """
        return choose(self._gpus, names_of(config), _tp(config), host_cards())

    def gpus(self, config: LiveConfig, real: bool) -> Groups:
        """See `Fleet`."""
        if real and self.device == "cuda":
            return {name: [card.uuid for card in group] for name, group in self.groups(config).items()}
        return told_by_uuid(self._gpus, names_of(config), _tp(config), real)


class AttachedFleet:
    """Servers that run already, neither started nor stopped.

    Args:
        prefill: a mapping each: url, bootstrap_port, telemetry; on another host also owner, see `attached_endpoint`.
        decode: the same without bootstrap_port.
        gpus: indices or UUIDs of the GPUs of each server, prefill first; None: in order on each host, here those of
            CUDA_VISIBLE_DEVICES if it is set.
        wait_s: time they get to be healthy.
        any_version: take a release of SGLang that is not tested.
    """

    emulated = False

    def __init__(
        self,
        *,
        prefill: Sequence[Mapping[str, Any]],
        decode: Sequence[Mapping[str, Any]],
        gpus: list[list[Gpu]] | None = None,
        wait_s: float = 60.0,
        any_version: bool = False,
    ) -> None:
        self._endpoints = [
            *(attached_endpoint("prefill", place, each) for place, each in enumerate(prefill)),
            *(attached_endpoint("decode", place, each) for place, each in enumerate(decode)),
        ]
        self.owners = {each.name: each.owner for each in self._endpoints if each.owner}
        self._gpus = gpus
        self._wait_s = checks.number("servers.wait_s", wait_s, low=0)
        self._any_version = checks.flag("servers.any_version", any_version)

    def servers(self, config: LiveConfig, folder: Path, on_exit: OnExit, *, look: bool = False) -> AttachedServers:
        """See `Fleet`."""
        found = {role: sum(each.role == role for each in self._endpoints) for role in ("prefill", "decode")}
        for role, wanted in (
            ("prefill", config.cluster.prefill_instances),
            ("decode", config.cluster.decode_instances),
        ):
            if found[role] != wanted:
                asked = f"cluster.{role}_instances = {wanted}"
                raise UserError(f"servers.{role}: found {found[role]} servers, allowed: {wanted}, since {asked}")
        return AttachedServers(self._endpoints, self._wait_s, on_exit, any_version=self._any_version)

    def gpus(self, config: LiveConfig, real: bool) -> Groups:
        """See `Fleet`."""
        return told_by_uuid(self._gpus, names_of(config), _tp(config), real, self.owners)


class AttachedServers:
    """Servers of somebody else."""

    def __init__(
        self, endpoints: Sequence[Endpoint], wait_s: float, on_exit: OnExit, *, any_version: bool = False
    ) -> None:
        self.endpoints: dict[str, Endpoint] = {each.name: each for each in endpoints}
        self._wait_s = wait_s
        self._on_exit = on_exit
        self._any_version = any_version
        self._watches: list[asyncio.Task[None]] = []

    def of(self, role: Role) -> list[Endpoint]:
        """The servers of a role."""
        return [each for each in self.endpoints.values() if each.role == role]

    async def start(self) -> None:
        """Wait until all are healthy, and ask what they are; see `Servers`."""
        await asyncio.gather(*map(self._healthy, self.endpoints.values()))
        await asyncio.gather(*map(self._check, self.endpoints.values()))
        self._watches = [asyncio.create_task(self._watch(each)) for each in self.endpoints.values()]

    async def _watch(self, endpoint: Endpoint) -> None:
        """A server that takes no connection any more is gone; one that is slow to answer is not."""
        while True:
            await asyncio.sleep(WATCH_EVERY_S)
            try:
                async with asyncio.timeout(CONNECT_S):
                    _, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
                writer.close()
            except OSError as error:
                why = error.strerror or "no answer"
                self._on_exit(endpoint.name, f"it takes no connection at {endpoint.url} any more ({why})")
                return

    async def _healthy(self, endpoint: Endpoint) -> None:
        until_s = time.monotonic() + self._wait_s
        while not await is_healthy(endpoint.url):
            if time.monotonic() > until_s:
                raise UserError(f"{endpoint.name}: {endpoint.url} is not healthy after {self._wait_s:g} s")
            await asyncio.sleep(0.2)

    async def _check(self, endpoint: Endpoint) -> None:
        """See that it is a release that is tested and one instance, if it tells."""
        try:
            answer = await ask(endpoint.url, "/server_info")
            info = json.loads(answer.body) if answer.status == HTTPStatus.OK else {}
        except (OSError, ValueError):
            return
        wrong = untested(str(info["version"])) if "version" in info else None
        if wrong is not None and not self._any_version:
            raise UserError(f"{endpoint.name}: {endpoint.url}: {wrong}; servers.any_version=true tries others")
        ranks = int(info.get("dp_size") or 1) * int(info.get("attn_dp_size") or 1)
        if ranks > 1:
            raise UserError(f"{endpoint.name}: {endpoint.url}: found {ranks} data-parallel ranks, allowed: 1")

    def kill(self, name: str) -> None:
        """Nothing: it is not ours to end; see `Servers`."""

    async def stop(self) -> None:
        """Look after them no longer; they are not ours to stop."""
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)


def attached_endpoint(
    role: Literal["prefill", "decode"], place: int, found: object, key: str | None = None
) -> Endpoint:
    """A server that runs already.

    Args:
        role: what it does.
        place: its number among those.
        found: a mapping: url, telemetry, and bootstrap_port of a prefill server; may have owner, the socket by which
            the owner of its GPUs' clocks is reached, where that is another than that of `control`.
        key: where the mapping stands in the configuration; None: where `AttachedFleet` has it.

    Raises:
        UserError: the mapping or a value in it is not that.
    """
    key = key or f"servers.{role}.{place}"
    known = {"url", "telemetry"} | ({"bootstrap_port"} if role == "prefill" else set())
    if not isinstance(found, Mapping) or not known <= set(found) <= known | {"owner"}:
        allowed = f"a mapping with {', '.join(sorted(known))}, and owner for a server on another host"
        raise UserError(f"{key}: found {found!r}, allowed: {allowed}")
    try:
        url = urlsplit(str(found["url"]))
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    if host is None or port is None:
        raise UserError(f"{key}.url: found {found['url']!r}, allowed: http://HOST:PORT")
    bootstrap = int(checks.number(f"{key}.bootstrap_port", found["bootstrap_port"], low=1)) if role == "prefill" else 0
    telemetry = str(found["telemetry"])
    if not telemetry.startswith(("ipc://", "tcp://")):
        raise UserError(f"{key}.telemetry: found {telemetry!r}, allowed: ipc:///PATH or tcp://HOST:PORT")
    owner = found.get("owner", "")
    if not isinstance(owner, str) or (owner and not owner.startswith("/")):
        raise UserError(f"{key}.owner: found {owner!r}, allowed: the path of a socket, from / on")
    return Endpoint(f"{role}-{place}", role, host, port, bootstrap, telemetry, owner=owner)


def names_of(config: LiveConfig) -> list[str]:
    """The names of the instances, prefill first."""
    counts = (("prefill", config.cluster.prefill_instances), ("decode", config.cluster.decode_instances))
    return [f"{role}-{number}" for role, count in counts for number in range(count)]


def _tp(config: LiveConfig) -> int:
    return int(checks.number("model.tp", config.model.get("tp", 1), low=1))
