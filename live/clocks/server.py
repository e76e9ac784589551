"""The owner's side of the socket: who may do what with which GPU, and what happens when a client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Coroutine, Mapping, Sequence
from typing import assert_never

import msgspec

from voltana.live.clocks import protocol
from voltana.live.clocks.access import Peer, allowed, peer_of
from voltana.live.clocks.device import DeviceError, check_clock, check_power_limit
from voltana.live.clocks.limits import Limits
from voltana.live.clocks.protocol import AnyRequest, Code, Reply, Setting
from voltana.live.clocks.schedule import Command, OwnedGpu, Scheduler, TokenBucket
from voltana.live.clocks.simulated import Load, SimulatedGpu

_UNREAD_BYTES = 1 << 20
"""A client that lets so many bytes of answers pile up is hung up on."""
_GOODBYE_S = 1.0
_RESTORE_TRIES = 5
_RESTORE_PAUSE_S = 1.0
log = logging.getLogger("voltana-clocks")


class RefusedError(Exception):
    """A request that is refused, in one line."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code: Code = code


class Server:
    """Serves clients; everything in it runs in the event loop.

    Args:
        gpus: the listed GPUs by index: no other can be named.
        scheduler: calls the driver.
        limits: rates and times.
        gid: members of this group may connect, beside root and the owner's user.
        observe: nothing can be owned.
    """

    def __init__(
        self, gpus: Mapping[int, OwnedGpu], scheduler: Scheduler, limits: Limits, gid: int | None, observe: bool
    ) -> None:
        self.gpus, self.scheduler, self.limits, self.observe = gpus, scheduler, limits, observe
        self.closing = False
        self.owners: dict[OwnedGpu, Session] = {}
        self._gid = gid
        self._sessions: dict[Session, asyncio.Task[None]] = {}
        self._refusals: set[asyncio.Task[None]] = set()

    async def serve(self, listening: socket.socket) -> None:
        """Accept clients for ever."""
        while True:
            try:
                connection, _ = await asyncio.get_running_loop().sock_accept(listening)
            except OSError as error:  # out of file handles, or a client that left at once
                log.warning("a connection could not be accepted: %s", error)
                await asyncio.sleep(0.1)
            else:
                await self._admit(connection)

    async def _admit(self, connection: socket.socket) -> None:
        try:
            peer = peer_of(connection)
            if not allowed(peer, self._gid):
                log.warning("process %d of user %d may not connect", peer.pid, peer.uid)
                self._refuse(connection, f"user {peer.uid} may not use this socket; ask to be added to its group")
                return
            if len(self._sessions) >= self.limits.clients and not await self._make_place():
                self._refuse(connection, f"{self.limits.clients} clients are connected, no more are allowed")
                return
            reader, writer = await asyncio.open_unix_connection(sock=connection, limit=protocol.MAX_LINE)
        except OSError as error:
            log.warning("a client left at once: %s", error)
            connection.close()
            return
        session = Session(self, reader, writer, peer)
        task = asyncio.get_running_loop().create_task(session.run())
        self._sessions[session] = task
        task.add_done_callback(lambda _: self._sessions.pop(session))

    async def _make_place(self) -> bool:
        """Hang up on the client that has been idle for longest; returns whether there was one."""
        idle_s, session = max(
            ((session.idle_s(), session) for session in self._sessions), key=lambda each: each[0], default=(0.0, None)
        )
        if session is None or idle_s < self.limits.heartbeat_s:
            return False
        task = self._sessions[session]
        session.end(f"it owned nothing and asked nothing for {idle_s:.0f} s, and another client wanted its place")
        await asyncio.wait((task,))
        return True

    def _refuse(self, connection: socket.socket, reason: str) -> None:
        task = asyncio.get_running_loop().create_task(_hang_up(connection, reason))
        self._refusals.add(task)
        task.add_done_callback(self._refusals.discard)

    def tell(self, reply: Reply) -> None:
        """Pass on something that no request asked for: changes to those who watch, slow calls to all."""
        for session in self._sessions:
            if not isinstance(reply, protocol.Changed) or session.watched.intersection(reply.gpus):
                session.send(reply)

    async def hang_up(self, reason: str) -> None:
        """At exit: leave all clients. Their GPUs are left to `Scheduler.restore_all`."""
        self.closing = True
        tasks = list(self._sessions.values())
        for session in list(self._sessions):
            session.end(reason)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def watch_heartbeats(self) -> None:
        """Leave clients that say nothing, for ever."""
        pause_s = self.limits.heartbeat_s / 4
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(pause_s)
            now_s = time.monotonic()
            asleep = now_s - before_s > 2 * pause_s  # it was the owner that stood still: nobody could be heard
            for session in list(self._sessions):
                if asleep:
                    session.heard_s = now_s
                elif session.overdue(now_s):
                    session.end(f"nothing was heard for {self.limits.heartbeat_s:g} s")


async def _hang_up(connection: socket.socket, reason: str) -> None:
    """Say why, and close once the client has: closed with words of the client unread, ours would not arrive."""
    loop = asyncio.get_running_loop()
    with connection, contextlib.suppress(OSError):
        connection.setblocking(False)
        connection.send(protocol.encode(protocol.Lost(message=reason)))
        connection.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(_GOODBYE_S):
            while await loop.sock_recv(connection, 4096):
                pass


class Session:
    """One client."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, peer: Peer) -> None:
        self._server, self._reader, self._writer = server, reader, writer
        self._peer = peer
        self._name = f"process {peer.pid}"
        self._greeted = False
        self._groups: dict[str, tuple[OwnedGpu, ...]] = {}
        self._releasing: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reads = 0
        self._leaving = False
        self.watched: set[int] = set()
        self.heard_s = self._asked_s = time.monotonic()

    def overdue(self, now_s: float) -> bool:
        """Whether the client is silent for too long."""
        return now_s - self.heard_s > self._server.limits.heartbeat_s

    def idle_s(self) -> float:
        """For how long the client has asked nothing; zero while it owns a GPU."""
        return 0.0 if self._groups else time.monotonic() - self._asked_s

    def send(self, reply: Reply) -> None:
        """Send a line, if the client still listens."""
        if self._leaving:
            return
        self._writer.write(protocol.encode(reply))
        if self._writer.transport.get_write_buffer_size() > _UNREAD_BYTES:
            self.end("it does not read its answers")

    def end(self, reason: str) -> None:
        """Hang up: `run` then gives back what the client has."""
        if not self._leaving:
            log.warning("%s: hanging up: %s", self._name, reason)
            self._writer.write(protocol.encode(protocol.Lost(message=reason)))
            self._leaving = True
            self._writer.transport.abort()  # what the kernel has taken is still delivered

    async def run(self) -> None:
        """Serve the client until it leaves, then restore its GPUs."""
        try:
            await self._listen()
        except OSError as error:
            self.end(_one_line(error))
        except Exception:
            log.exception("%s: a bug; hanging up", self._name)
        finally:
            self._leaving = True
            self._writer.transport.abort()
            for task in self._tasks:
                task.cancel()
            for group in () if self._server.closing else list(self._groups):
                log.info("%s left: restoring %s", self._name, _numbers(self._groups[group]))
                await self._give_back(group)

    async def _listen(self) -> None:
        limits = self._server.limits
        bucket = TokenBucket(limits.requests_per_s, limits.requests_per_s / 10, time.monotonic())
        while True:
            try:
                line = await self._reader.readline()
            except ValueError:
                self.end(f"a line is longer than {protocol.MAX_LINE} bytes")
                return
            if self._leaving or not line.endswith(b"\n"):  # a last line that was cut off is not obeyed
                return
            self.heard_s = time.monotonic()
            self._take(line)
            wait_s = bucket.wait_s(self.heard_s)
            bucket.take()
            await asyncio.sleep(wait_s)  # lets the others have their turn, and holds back a flood

    def _take(self, line: bytes) -> None:
        """Do what one line asks."""
        try:
            request = protocol.decode_request(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self.send(protocol.Refused(code="bad_message", message=_one_line(error)))
            return
        if not isinstance(request, protocol.Ping):
            self._asked_s = self.heard_s
        try:
            self._do(request)
        except RefusedError as error:
            self._refuse(request, error.code, str(error))
        except DeviceError as error:
            self._refuse(request, error.fault, str(error))

    def _refuse(self, request: AnyRequest, code: Code, message: str) -> None:
        group: str | None = getattr(request, "group", None)
        setting = _setting(request) if isinstance(request, protocol.SetClock | protocol.SetPower) else None
        self.send(protocol.Refused(id=request.id, code=code, message=message, group=group, setting=setting))

    def _do(self, request: AnyRequest) -> None:
        if isinstance(request, protocol.Hello):
            self._hello(request)
            return
        if not self._greeted:
            raise RefusedError("bad_message", "found another request before hello; allowed: hello first")
        match request:
            case protocol.Ping():
                self.send(protocol.Done(id=request.id))
            case protocol.SetClock() | protocol.SetPower():
                self._command(request)
            case protocol.Feed():
                self._feed(request)
            case protocol.Read():
                self._read(request)
            case protocol.Own():
                self._own(request)
            case protocol.Release():
                self._release(request)
            case protocol.Watch():
                self._listed(request.gpus)
                self.watched.update(request.gpus)
                self.send(protocol.Done(id=request.id))
            case _:
                assert_never(request)

    def _hello(self, request: protocol.Hello) -> None:
        if request.protocol != protocol.PROTOCOL:
            raise RefusedError("bad_message", f"found protocol {request.protocol}; allowed: {protocol.PROTOCOL}")
        self._greeted = True
        self._name = f"{request.name!r} (process {self._peer.pid}, user {self._peer.uid})"
        self.send(
            protocol.Welcome(
                id=request.id,
                protocol=protocol.PROTOCOL,
                pid=os.getpid(),
                observe=self._server.observe,
                heartbeat_s=self._server.limits.heartbeat_s,
                gpus=[gpu.device.info for gpu in self._server.gpus.values()],
            )
        )

    def _listed(self, numbers: Sequence[int]) -> tuple[OwnedGpu, ...]:
        """The GPUs with these indices, if all are listed and each is named once."""
        known = self._server.gpus
        strange = [gpu for gpu in numbers if gpu not in known]
        if strange:
            raise RefusedError("unknown_gpu", f"found GPU {strange[0]}; allowed: {', '.join(map(str, known))}")
        if len(set(numbers)) < len(numbers):
            raise RefusedError("bad_message", f"found GPUs {list(numbers)}; allowed: each once")
        return tuple(known[gpu] for gpu in numbers)

    # Owning

    def _own(self, request: protocol.Own) -> None:
        if self._server.observe:
            raise RefusedError("observe", "this owner only observes: it changes nothing")
        gpus = self._listed(request.gpus)
        if request.group in self._groups:
            raise RefusedError("busy", f"found group {request.group!r} again; allowed: a new name, or release it first")
        for gpu in gpus:
            owner = self._server.owners.get(gpu)
            if owner is not None:
                raise RefusedError("busy", f"GPU {gpu.device.info.gpu} is owned by {owner._name}")
        self._groups[request.group] = gpus
        self._server.owners.update(dict.fromkeys(gpus, self))
        log.info("%s owns %s as %s", self._name, _numbers(gpus), request.group)
        self.send(protocol.Done(id=request.id))

    def _group(self, name: str) -> tuple[OwnedGpu, ...]:
        if name not in self._groups or name in self._releasing:
            mine = [group for group in self._groups if group not in self._releasing]
            raise RefusedError("not_owner", f"found group {name!r}; allowed: {', '.join(mine) or 'own one first'}")
        return self._groups[name]

    def _release(self, request: protocol.Release) -> None:
        self._group(request.group)
        self._releasing.add(request.group)

        async def release() -> None:
            failures = await self._give_back(request.group)
            if failures:
                self._refuse(request, "driver", "; ".join(failures))
            else:
                self.send(protocol.Done(id=request.id))

        self._start(release())

    async def _give_back(self, group: str) -> list[str]:
        """Restore the GPUs of a group, trying again if the driver fails, and only then let others have them."""
        gpus = self._groups[group]
        failures: list[str] = []
        for attempt in range(_RESTORE_TRIES):
            if attempt:
                await asyncio.sleep(_RESTORE_PAUSE_S)
            failures = await self._server.scheduler.restore(gpus)
            if not failures:
                break
            log.warning("%s", "; ".join(failures))
        del self._groups[group]
        self._releasing.discard(group)
        for gpu in gpus:
            del self._server.owners[gpu]
        return failures

    # Commanding and reading

    def _check_driver(self) -> None:
        seconds = self._server.scheduler.stuck_for_s
        if seconds is not None:
            raise RefusedError("driver", f"the driver has not answered for {seconds:.0f} s")

    def _command(self, request: protocol.SetClock | protocol.SetPower) -> None:
        gpus = self._group(request.group)
        for gpu in gpus:
            if isinstance(request, protocol.SetClock) and request.mhz is not None:
                check_clock(gpu.device.info, request.mhz)
            elif isinstance(request, protocol.SetPower) and request.watts is not None:
                check_power_limit(gpu.device.info, request.watts)
        value = request.mhz if isinstance(request, protocol.SetClock) else request.watts
        command = Command(request.id, request.group, gpus, _setting(request), value, self.send)
        self._server.scheduler.submit(command)

    def _read(self, request: protocol.Read) -> None:
        self._check_driver()
        gpus = self._listed(request.gpus)
        if self._reads >= self._server.limits.reads:
            raise RefusedError("overload", f"{self._reads} reads wait already; allowed: await their answers")
        self._reads += 1

        async def read() -> None:
            try:
                readings = [await self._server.scheduler.read(gpu.device) for gpu in gpus]
                self.send(protocol.Readings(id=request.id, readings=readings))
            except DeviceError as error:
                self._refuse(request, error.fault, str(error))
            except Exception as error:
                self._refuse(request, "driver", _one_line(f"{type(error).__name__}: {error}"))
            finally:
                self._reads -= 1

        self._start(read())

    def _feed(self, request: protocol.Feed) -> None:
        load = Load(request.phase, request.requests, request.tokens, request.token_pairs)
        for gpu in self._listed(request.gpus):
            if not isinstance(gpu.device, SimulatedGpu):
                raise RefusedError(
                    "unsupported", f"GPU {gpu.device.info.gpu} is not simulated; it feels its load itself"
                )
            gpu.device.feed(load)

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _setting(request: protocol.SetClock | protocol.SetPower) -> Setting:
    return "clock" if isinstance(request, protocol.SetClock) else "power"


def _numbers(gpus: Sequence[OwnedGpu]) -> str:
    return "GPU " + ", ".join(str(gpu.device.info.gpu) for gpu in gpus)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:200]
