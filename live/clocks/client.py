"""The client's side of the socket: commands that do not block, answers in a thread, a heartbeat.

    with ClockClient(standard_socket(), name="decode0") as clocks:
        clocks.own("decode0", [2, 3])
        clocks.set_clock("decode0", 1005)          # returns at once
        before, after = ...                        # clocks.read([2, 3]), twice

Every method may be called from any thread, and from an event loop those that are said not to block. In asyncio, wait
for readings with ``await asyncio.wrap_future(clocks.request_readings([2, 3]))``.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import msgspec

from voltana.errors import UserError
from voltana.live.clocks import protocol
from voltana.live.clocks.device import GpuInfo, Reading
from voltana.live.clocks.protocol import AnyReply, Event, Request, Setting
from voltana.live.clocks.simulated import Load

Answer = TypeVar("Answer", protocol.Done, protocol.Welcome, protocol.Readings)
log = logging.getLogger(__name__)


class ClockError(Exception):
    """The owner refused something, or is gone.

    Args:
        message: one line.
        code: the owner's reason (`voltana.live.clocks.protocol.Code`), "lost" if it is gone, "timeout" if it does not
            answer.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class ClockClient:
    """A connection to the owner. Close it, or use it in a `with` statement: the owner then restores what it owned.

    A thread of its own receives answers and keeps the heartbeat, so the owner takes the GPUs back when this process
    dies or is stopped, not when another of its threads hangs.

    Args:
        path: the owner's socket.
        name: of this client, for the owner's messages.
        on_event: called in the receiving thread with what happened to commands, and with "changed", "slow" and "lost";
            it must not block.
        timeout_s: how long the blocking methods wait for an answer. An owner from whom nothing is heard for so long,
            not even an answer to heartbeats, is lost: it was stopped, or its machine is not to be had.

    Raises:
        UserError: nobody listens there, or this user may not connect.
        ClockError: whoever listens hung up or does not answer.
    """

    def __init__(
        self, path: Path, name: str, on_event: Callable[[Event], None] | None = None, timeout_s: float = 10.0
    ) -> None:
        self.path = path
        self._timeout_s = timeout_s
        self._on_event = on_event or (lambda event: None)
        self._ids = itertools.count()
        self._waiting: dict[int, Future[AnyReply]] = {}
        self._desired: dict[tuple[str, Setting], _Desired] = {}
        self._outgoing = _Outgoing(_connect(path, timeout_s), timeout_s)
        self._lost: str | None = None
        self._heartbeat_s = 1.0
        self._thread = threading.Thread(target=self._receive, name="clocks", daemon=True)
        self._thread.start()
        try:
            welcome = self._ask(
                protocol.Hello(id=self._next(), protocol=protocol.PROTOCOL, name=name), protocol.Welcome
            )
        except ClockError:
            self.close()
            raise
        self._heartbeat_s = welcome.heartbeat_s
        self._outgoing.wake()
        self.observe = welcome.observe
        """Whether the owner only reads."""
        self.owner_pid = welcome.pid
        self.gpus: dict[int, GpuInfo] = {info.gpu: info for info in welcome.gpus}
        """The GPUs that the owner was given."""

    def indices(self, gpus: Sequence[int | str]) -> list[int]:
        """The owner's indices of GPUs that are given by index or UUID.

        Raises:
            UserError: the owner was not given one.
        """
        known: dict[int | str, int] = {info.uuid: gpu for gpu, info in self.gpus.items()} | {
            gpu: gpu for gpu in self.gpus
        }
        unlisted = [gpu for gpu in gpus if gpu not in known]
        if unlisted:
            listed = ", ".join(f"{gpu} ({info.uuid})" for gpu, info in self.gpus.items())
            raise UserError(f"{self.path}: the owner was not given GPU {unlisted[0]}; it has {listed}")
        return [known[gpu] for gpu in gpus]

    # Owning

    def own(self, group: str, gpus: Sequence[int]) -> None:
        """Make GPUs mine, to be commanded together under a name. Blocks."""
        self._ask(protocol.Own(id=self._next(), group=group, gpus=list(gpus)), protocol.Done)

    def release(self, group: str) -> None:
        """Have the GPUs of a group restored and give them up. Blocks."""
        self._ask(protocol.Release(id=self._next(), group=group), protocol.Done)
        for command in [command for command in list(self._desired) if command[0] == group]:
            self._desired.pop(command, None)

    # Commanding: fire and forget

    def set_clock(self, group: str, mhz: int | None) -> int | None:
        """Lock the clock of a group; None: back to the default. Does not block.

        What comes of it is told to `on_event`, under the number returned (except where a newer command took its place
        before it was sent). None is returned if this is what was commanded last and not refused: nothing is sent, as
        the owner brings what was commanded into force, however often that takes.

        Raises:
            ClockError: the owner is gone.
        """
        return self._command(group, "clock", mhz, lambda number: protocol.SetClock(id=number, group=group, mhz=mhz))

    def set_power_cap(self, group: str, watts: float | None) -> int | None:
        """Cap the power of each GPU of a group, W; None: back to what was found. Otherwise as `set_clock`."""
        return self._command(
            group, "power", watts, lambda number: protocol.SetPower(id=number, group=group, watts=watts)
        )

    def _command(
        self, group: str, setting: Setting, value: float | None, build: Callable[[int], Request]
    ) -> int | None:
        last = self._desired.get((group, setting))
        if last is not None and last.value == value and not last.refused:
            return None
        self._check_connected()
        number = self._next()
        self._desired[group, setting] = _Desired(number, value)
        self._outgoing.send(protocol.encode(build(number)), replaces=(group, setting))
        return number

    def desired(self, group: str, setting: Setting) -> float | None:
        """What was commanded last, MHz or W, which the owner brings into force; None: nothing, or the default."""
        last = self._desired.get((group, setting))
        return None if last is None else last.value

    # Reading

    def read(self, gpus: Sequence[int] | None = None) -> list[Reading]:
        """Read the meters of GPUs, of all by default. Blocks for the driver calls, and for commands before them."""
        return self._result(self.request_readings(gpus)).readings

    def request_readings(self, gpus: Sequence[int] | None = None) -> Future[protocol.Readings]:
        """Ask for the meters. Does not block; the future fails with `ClockError`."""
        wanted = list(self.gpus if gpus is None else gpus)
        return self._request(protocol.Read(id=self._next(), gpus=wanted), protocol.Readings)

    def watch(self, gpus: Sequence[int]) -> None:
        """Have `on_event` told of every change of these GPUs' clocks, whoever commands it. Blocks."""
        self._ask(protocol.Watch(id=self._next(), gpus=list(gpus)), protocol.Done)

    def feed(self, gpus: Sequence[int], load: Load) -> None:
        """Tell simulated GPUs what their instance runs from now on. Does not block."""
        self._check_connected()
        request = protocol.Feed(
            id=self._next(),
            gpus=list(gpus),
            phase=load.phase,
            requests=load.requests,
            tokens=load.tokens,
            token_pairs=load.token_pairs,
        )
        self._outgoing.send(protocol.encode(request), replaces=("feed", tuple(gpus)))

    def close(self) -> None:
        """Hang up; the owner restores what this client owned."""
        self._lost = self._lost or "this client was closed"
        self._outgoing.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=self._timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Requests and their answers

    def _next(self) -> int:
        return next(self._ids)

    def _check_connected(self) -> None:
        if self._lost is not None:
            raise ClockError(f"no connection to the owner: {self._lost}", "lost")

    def _ask(self, request: Request, kind: type[Answer]) -> Answer:
        return self._result(self._request(request, kind))

    def _request(self, request: Request, kind: type[Answer]) -> Future[Answer]:
        future: Future[Answer] = Future()
        self._check_connected()
        self._waiting[request.id] = future  # type: ignore[assignment]
        self._outgoing.send(protocol.encode(request))
        if self._lost is not None:  # it may have been lost before the future was there to be told
            self._fail_waiting()
        return future

    def _result(self, future: Future[Answer]) -> Answer:
        try:
            return future.result(self._timeout_s)
        except TimeoutError:
            raise ClockError(f"the owner has not answered for {self._timeout_s:g} s", "timeout") from None

    # The receiving thread

    def _receive(self) -> None:
        reason = "it hung up"
        received = b""
        try:
            while chunk := self._outgoing.receive(self._heartbeat_s / 4, self._ping):
                *lines, received = (received + chunk).split(b"\n")
                for line in lines:
                    reply = protocol.decode_reply(line)
                    reason = reply.message if isinstance(reply, protocol.Lost) else reason
                    self._deliver(reply)
        except OSError as error:
            reason = str(error) if self._lost is None else self._lost
        except msgspec.MsgspecError as error:
            reason = f"it does not speak the protocol ({error})"
        finally:
            self._outgoing.dispose()
        expected, self._lost = self._lost is not None, self._lost or reason
        self._fail_waiting()
        if not expected:
            self._tell(protocol.Lost(message=reason))

    def _tell(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:  # whatever the application does, the heartbeat goes on
            log.exception("on_event failed for %s", event)

    def _ping(self) -> bytes:
        return protocol.encode(protocol.Ping(id=self._next()))

    def _deliver(self, reply: AnyReply) -> None:
        future = None if reply.id is None else self._waiting.pop(reply.id, None)
        if isinstance(reply, protocol.Refused) and reply.group is not None and reply.setting is not None:
            last = self._desired.get((reply.group, reply.setting))
            if last is not None and last.number == reply.id:
                last.refused = True
        if future is not None and isinstance(reply, protocol.Refused):
            _settle(future, ClockError(reply.message, reply.code))
        elif future is not None:
            _settle(future, reply)
        elif isinstance(reply, Event) and not isinstance(reply, protocol.Lost):
            self._tell(reply)

    def _fail_waiting(self) -> None:
        while self._waiting:
            with contextlib.suppress(KeyError):
                _, future = self._waiting.popitem()
                _settle(future, ClockError(f"no connection to the owner: {self._lost}", "lost"))


@dataclass
class _Desired:
    """A command that was given, newest of its kind."""

    number: int
    value: float | None
    refused: bool = False
    """It may be given again."""


def _settle(future: Future[AnyReply], outcome: AnyReply | ClockError) -> None:
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, ClockError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _connect(path: Path, timeout_s: float) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(timeout_s)
    try:
        connection.connect(os.fspath(path))
    except PermissionError:
        connection.close()
        raise UserError(f"{path}: this user may not connect; ask to be added to the group of that socket") from None
    except (BlockingIOError, TimeoutError):
        connection.close()
        raise UserError(f"{path}: the owner of GPU clocks takes no connection; is it stopped?") from None
    except OSError as error:
        connection.close()
        raise UserError(
            f"{path}: no owner of GPU clocks is listening ({error.strerror}); start voltana-clocks"
        ) from None
    connection.setblocking(False)
    return connection


class _Outgoing:
    """A socket that is written without blocking: what does not fit now goes later, commands only in their newest form.

    `receive` is for one thread, `send` for any.
    """

    def __init__(self, connection: socket.socket, silent_s: float) -> None:
        self._socket = connection
        self._silent_s = silent_s
        self._heard_s = self._looked_s = time.monotonic()
        self._guard = threading.Lock()
        self._rest = b""
        self._later: dict[object, bytes] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._beat_s = time.monotonic()
        self._closed = False

    def send(self, line: bytes, replaces: object = None) -> None:
        """Send a line, or keep it for later; a kept line is replaced by a newer one with the same `replaces`."""
        with self._guard:
            if self._closed:
                return
            if self._rest or self._later:
                self._later.pop(replaces, None)
                self._later[replaces if replaces is not None else object()] = line
            else:
                self._write(line)
                if not self._rest:
                    return
        self.wake()

    def wake(self) -> None:
        """Have `receive` look again: there is something to write, or the heartbeat has changed."""
        with self._guard:
            if not self._closed:
                self._write_wake()

    def _write_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full: there is enough to wake up for
            os.write(self._wake_write, b"!")

    def _write(self, data: bytes) -> None:
        try:
            sent = self._socket.send(data, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            sent = 0
        except OSError:  # the receiver will learn it too
            sent = len(data)
        self._rest = data[sent:]

    def _flush(self) -> bool:
        """Write what was kept; returns whether some is left."""
        with self._guard:
            if self._rest:
                self._write(self._rest)
            if not self._rest and self._later:
                lines = b"".join(self._later.values())
                self._later.clear()
                self._write(lines)
            return bool(self._rest)

    def receive(self, pause_s: float, beat: Callable[[], bytes]) -> bytes:
        """Wait for bytes, and meanwhile write what was kept and send a heartbeat after every pause.

        Returns nothing at the end of the connection.

        Raises:
            OSError: the connection broke, or nothing was heard for `silent_s`.
        """
        while not self._closed:
            unsent = self._flush()
            poll = select.poll()
            poll.register(self._wake_read, select.POLLIN)
            poll.register(self._socket, select.POLLIN | (select.POLLOUT if unsent else 0))
            wait_s = max(0.0, self._beat_s + pause_s - time.monotonic())
            ready = dict(poll.poll(wait_s * 1e3))
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            if time.monotonic() >= self._beat_s + pause_s:
                self.send(beat(), replaces="heartbeat")
                self._beat_s = time.monotonic()
            if ready.get(self._socket.fileno(), 0) & ~select.POLLOUT:
                self._heard_s = time.monotonic()
                return self._socket.recv(1 << 16)
            self._check_heard(pause_s)
        return b""

    def _check_heard(self, pause_s: float) -> None:
        now_s = time.monotonic()
        if now_s > self._looked_s + pause_s + 1.0:  # it was this process that stood still
            self._heard_s = now_s
        self._looked_s = now_s
        if now_s > self._heard_s + self._silent_s:
            raise OSError(f"it has not answered for {self._silent_s:g} s")

    def close(self) -> None:
        """End the connection for both sides."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._write_wake()

    def dispose(self) -> None:
        """Free everything, once nobody receives any more."""
        with self._guard:
            self._closed = True
            self._socket.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
