"""Connections to one instance: a pool of idle ones, and the leg that a request takes over one of them."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Protocol, cast

from voltana.live.router.body import SLICE_BYTES, Payload
from voltana.live.router.http1 import Framing, ProtocolError, ResponseHead, chunk_size, parse_response_head

MAX_HEAD_BYTES = 64 * 1024
"""Of an instance's response."""
MAX_INTERIM = 16
"""Interim (1xx) responses before the real one."""


_OURS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
_OURS_OF_NAMES = frozenset({socket.EAI_MEMORY, socket.EAI_SYSTEM})


class Shortage(str):
    """Why there is no connection, where that is no fault of the instance: this process or host has no more to give."""

    __slots__ = ()


def told(error: OSError) -> str:
    """Why there is no connection, or no answer."""
    for each in (error, error.__cause__):
        ours = _OURS_OF_NAMES if isinstance(each, socket.gaierror) else _OURS
        if isinstance(each, OSError) and each.errno in ours:
            return Shortage(f"the router is short of something: {each.strerror or each}")
    return str(error)


class LegOwner(Protocol):
    """Whoever sent a request over a leg. After `on_complete` or `on_failure` nothing more comes."""

    def on_head(self, leg: Leg, head: ResponseHead) -> None:
        """The answer's head has come."""

    def on_body(self, leg: Leg, data: bytes) -> None:
        """A part of its body has come, never empty."""

    def on_complete(self, leg: Leg) -> None:
        """The answer has come whole."""

    def on_failure(self, leg: Leg, reason: str) -> None:
        """The answer will not come, or not whole."""


class Leg:
    """One request on its way to an instance and its answer's way back.

    Args:
        connection: a connection that nobody else uses.
        owner: is told of the answer.
        decoded: whether the owner wants the body without its chunk framing.
        bodiless: whether it is a HEAD request.
    """

    def __init__(
        self, connection: Connection, owner: LegOwner, *, decoded: bool = False, bodiless: bool = False
    ) -> None:
        self.connection: Connection | None = connection
        self.owner: LegOwner | None = owner
        self.head: ResponseHead | None = None
        self.sent_s = monotonic()
        self._pool = connection.pool
        self.decoded = decoded
        self._bodiless = bodiless
        self._head = b""
        self._payload: Payload | None = None
        self._unsent: Iterator[bytes | memoryview] | None = None
        self._next_slice: asyncio.Handle | None = None
        self._resendable = False
        self._interim = 0
        self._raw_head = b""
        self._reading = True
        connection.leg = self

    def send(self, head: bytes, payload: Payload | None = None) -> None:
        """Send the request: its head and the body, which is let go of once it will not be sent again."""
        assert self.connection is not None
        self._head, self._payload = head, payload
        self._resendable = self.connection.used
        self._transmit(self.connection)

    def _transmit(self, connection: Connection) -> None:
        connection.used = True
        payload = self._payload
        if payload is None:
            connection.transport.write(self._head)
        elif payload.size <= SLICE_BYTES:
            connection.transport.write(b"".join((self._head, *payload.slices())))
            self._sent()
        else:
            connection.transport.write(self._head)
            self._unsent = payload.slices()
            self._go_on()

    def _go_on(self) -> None:
        """Send the next slice of the body, if there is room for it; then let others have their turn."""
        self._next_slice = None
        connection = self.connection
        if connection is None or self._unsent is None or connection.full:
            return
        part = next(self._unsent, None)
        if part is None:
            self._unsent = None
            self._sent()
        else:
            connection.transport.write(part)
            self._next_slice = asyncio.get_running_loop().call_soon(self._go_on)

    def room(self) -> None:
        """The connection has sent what it held (called by it)."""
        if self._next_slice is None:
            self._go_on()

    def _sent(self) -> None:
        if not self._resendable:
            self._let_go()

    def _let_go(self) -> None:
        """Need the body no more."""
        self._resendable = False
        payload, self._payload, self._unsent = self._payload, None, None
        if payload is not None:
            payload.drop()

    @property
    def live(self) -> bool:
        """Whether more of the answer may come."""
        return self.owner is not None

    def pass_to(self, write: Callable[[bytes], None]) -> None:
        """From now on hand whole chunks straight to `write`; the owner sees the rest."""
        connection = self.connection
        if connection is not None and self.head is not None and self.head.framing.chunked and not self.decoded:
            connection.framing = self.head.framing
            connection.write_through = write

    def pause(self) -> None:
        """Read no more for now."""
        if self.connection is not None and self._reading:
            self._reading = False
            self.connection.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self.connection is not None and not self._reading:
            self._reading = True
            self.connection.transport.resume_reading()

    def abort(self) -> None:
        """Give the answer up: the connection closes, which tells the instance to stop."""
        self.owner = None
        self._let_go()
        if self.connection is not None:
            self.connection.abort()
            self.connection = None

    def fail(self, reason: str) -> None:
        """Give the answer up and tell the owner why."""
        owner, self.owner = self.owner, None
        self.abort()
        if owner is not None:
            owner.on_failure(self, reason)

    def lost(self) -> None:
        """The connection is gone (called by it)."""
        connection, self.connection = self.connection, None
        if self.owner is None:
            return
        if self.head is not None and self.head.framing.until_close:
            self._complete(reusable=False)
        elif self._resendable and connection is not None and not self._raw_head:
            self._pool.acquire(self._send_again, self._give_up, fresh=True)
        else:
            self.fail("closed the connection " + ("before it answered" if self.head is None else "within its answer"))

    def _send_again(self, connection: Connection) -> None:
        """A kept connection closed before it answered: the instance dropped it as idle and never saw the request."""
        if self.owner is None:
            self._pool.release(connection)
            return
        self.connection = connection
        connection.leg = self
        self._resendable = False
        self._transmit(connection)

    def _give_up(self, reason: str) -> None:
        self.fail(reason)

    def receive(self, data: bytes) -> None:
        """Take bytes of the answer (called by the connection)."""
        try:
            if self.head is None:
                data = self._take_head(data)
            if data and self.head is not None and self.owner is not None:
                self._take_body(self.head.framing, data)
        except ProtocolError as error:
            self.fail(f"answered with bad HTTP: {error}")

    def _take_head(self, data: bytes) -> bytes:
        """Take bytes of the head and of interim answers before it; return those behind it."""
        self._raw_head += data
        while (end := self._raw_head.find(b"\r\n\r\n") + 4) >= 4:
            raw, rest = self._raw_head[:end], self._raw_head[end:]
            head = parse_response_head(raw, self._bodiless)
            if head.status >= 200:
                return self._begin(head, rest)
            self._raw_head = rest
            self._interim += 1
            if head.status == 101 or self._interim > MAX_INTERIM:
                raise ProtocolError("an upgrade nobody asked for" if head.status == 101 else "too many interim answers")
        if len(self._raw_head) > MAX_HEAD_BYTES:
            raise ProtocolError("the head is too long")
        return b""

    def _begin(self, head: ResponseHead, rest: bytes) -> bytes:
        self.head, self._resendable = head, False
        if self._unsent is None:
            self._let_go()
        cast(LegOwner, self.owner).on_head(self, head)
        if head.framing.empty:
            self._complete(reusable=not rest)
        return rest

    def _take_body(self, framing: Framing, data: bytes) -> None:
        payload: list[bytes] | None = [] if self.decoded else None
        end = framing.scan(data, payload)
        mine = framing.without_trailers(data, end)
        if payload is not None:
            mine = b"".join(payload)
        if mine:
            cast(LegOwner, self.owner).on_body(self, mine)
        if end >= 0 and self.owner is not None:
            self._complete(reusable=end == len(data))

    def _complete(self, reusable: bool) -> None:
        connection, self.connection = self.connection, None
        owner, self.owner = self.owner, None
        if connection is not None:
            if not self._reading:
                connection.transport.resume_reading()
            unsent = self._unsent is not None or connection.transport.get_write_buffer_size()
            if reusable and not unsent and self.head is not None and self.head.keep_alive:
                self._pool.release(connection)
            else:
                connection.abort()
        self._let_go()
        if owner is not None:
            owner.on_complete(self)


class Connection(asyncio.Protocol):
    """One TCP connection to an instance.

    `data_received` is where the router spends its life: a whole chunk goes to the client as it came, and nothing else
    is done about it.
    """

    __slots__ = (
        "active",
        "closed",
        "framing",
        "full",
        "idle_since_s",
        "leg",
        "pool",
        "transport",
        "used",
        "write_through",
    )

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.leg: Leg | None = None
        self.framing = Framing(True, None)
        self.write_through: Callable[[bytes], None] | None = None
        self.active = False
        self.used = False
        self.closed = False
        self.full = False
        """Whether what was written waits to be sent."""
        self.idle_since_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport and send without delay."""
        self.transport = cast(asyncio.Transport, transport)
        set_nodelay(self.transport)

    def pause_writing(self) -> None:
        """Take no more for now."""
        self.full = True

    def resume_writing(self) -> None:
        """There is room again."""
        self.full = False
        if self.leg is not None:
            self.leg.room()

    def data_received(self, data: bytes) -> None:
        """Pass a whole chunk on; let the leg judge everything else."""
        self.active = True
        write = self.write_through
        if write is not None and self.framing.left == 0:
            at = data.find(b"\r\n", 0, 18)
            if at > 0 and 0 < chunk_size(data[:at]) == len(data) - at - 4:
                write(data)
                return
        if self.leg is not None:
            self.leg.receive(data)
        else:
            self.abort()  # an answer nobody asked for

    def eof_received(self) -> None:
        """Close as well."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the leg, or leave the pool."""
        leg = self.leg
        self._end()
        if leg is not None:
            leg.lost()

    def abort(self) -> None:
        """Close at once."""
        self._end()
        self.transport.abort()

    def _end(self) -> None:
        self.closed = True
        self.leg = None
        self.write_through = None
        self.pool.forget(self)


class Pool:
    """The connections to one instance.

    Args:
        loop: the event loop.
        host, port: of the instance.
        connect_timeout_s: for one connection.
        keep_alive_s: age at which an idle connection is dropped.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, host: str, port: int, connect_timeout_s: float, keep_alive_s: float
    ) -> None:
        self._loop = loop
        self._address = (host, port)
        self._connect_timeout_s = connect_timeout_s
        self._keep_alive_s = keep_alive_s
        self._idle: deque[Connection] = deque()
        self._open: set[Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self.make_room: Callable[[], int] = self.drop_idle
        """Called when there are no more file descriptors; tells how many it closed."""

    @property
    def open(self) -> int:
        """Connections, idle ones included."""
        return len(self._open)

    def acquire(
        self, on_ready: Callable[[Connection], None], on_error: Callable[[str], None], *, fresh: bool = False
    ) -> None:
        """Call back with a connection: at once if a kept one is at hand and `fresh` is false, else once connected."""
        now_s = monotonic()
        while self._idle and not fresh:
            connection = self._idle.pop()
            if now_s - connection.idle_since_s < self._keep_alive_s:
                on_ready(connection)
                return
            connection.abort()
        task = self._loop.create_task(self._connect(on_ready, on_error))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, on_ready: Callable[[Connection], None], on_error: Callable[[str], None]) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connection = await self._opened()
        except TimeoutError:
            on_error(f"did not take the connection within {self._connect_timeout_s:g} s")
            return
        except OSError as error:
            reason = told(error)
            short = isinstance(reason, Shortage)
            on_error(reason if short else f"refused the connection ({error.strerror or error})")
            return
        self._open.add(connection)
        on_ready(connection)

    async def _opened(self) -> Connection:
        while True:
            try:
                return (await self._loop.create_connection(lambda: Connection(self), *self._address))[1]
            except OSError as error:
                if error.errno not in _OURS or not self.make_room():
                    raise

    def drop_idle(self) -> int:
        """Drop the connections that are kept for later; return how many there were."""
        idle = list(self._idle)
        for connection in idle:
            connection.abort()
        return len(idle)

    def release(self, connection: Connection) -> None:
        """Keep a connection for the next request."""
        connection.leg = None
        connection.write_through = None
        if not connection.closed:
            connection.idle_since_s = monotonic()
            self._idle.append(connection)

    def forget(self, connection: Connection) -> None:
        """Drop a closed connection (called by it)."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def sweep(self, now_s: float) -> None:
        """Drop connections that idled too long."""
        while self._idle and now_s - self._idle[0].idle_since_s >= self._keep_alive_s:
            self._idle.popleft().abort()

    def close(self) -> list[asyncio.Task[None]]:
        """Drop all connections; return what was about to make more, for the caller to cancel."""
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()
        return list(self._connecting)


def set_nodelay(transport: asyncio.BaseTransport) -> None:
    """Send small writes at once (TCP_NODELAY)."""
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
