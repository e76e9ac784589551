"""The path between prefill and decode servers: who waits for which room, and when its KV cache arrives.

A decode server connects to the bootstrap port of the prefill server that a request names, and asks for its room. From
then on the prefill server may compute it, and tells when that is done and when the cache, which has a size but no
content, is across. Lines of JSON: ``["want", room]`` and ``["drop", room]`` one way, ``["ready", room, first_token_s,
arrives_s]`` and ``["fail", room, reason]`` the other; times are on the monotonic clock that both processes share.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable
from typing import NamedTuple, cast

import msgspec

from voltana.app.serving import Link

logger = logging.getLogger(__name__)

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[str | int | float]).decode


class Lines(asyncio.Protocol):
    """One connection. `on_line` takes what came, `on_lost` is called at its end."""

    def __init__(self, on_line: Callable[[Lines, list[str | int | float]], None], on_lost: Callable[[Lines], None]):
        self._on_line = on_line
        self._on_lost = on_lost
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not derived from it

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self._transport = None
        self._on_lost(self)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            try:
                self._on_line(self, _decode(line))
            except (msgspec.DecodeError, ValueError, IndexError):
                logger.error("not a line of the pairing protocol: %r", line[:80])
                self.close()

    def send(self, *parts: str | int | float) -> None:
        """Send a line; nothing happens if the connection is gone."""
        if self._transport is not None:
            self._transport.write(_encode(parts) + b"\n")

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()


class Bootstrap:
    """The prefill side.

    Args:
        link: the path to each decode server.
        kv_bytes_per_token: size of a cache.
        wanted: called when a decode server asks for a room.
        dropped: called when it does not want it any more, with the reason.
    """

    def __init__(
        self,
        link: Link,
        kv_bytes_per_token: float,
        wanted: Callable[[int], None],
        dropped: Callable[[int, str], None],
    ) -> None:
        self._link = link
        self._kv_bytes_per_token = kv_bytes_per_token
        self._wanted = wanted
        self._dropped = dropped
        self._rooms: dict[int, Lines] = {}
        self._streams: dict[Lines, list[float]] = {}

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Accept decode servers."""
        loop = asyncio.get_running_loop()
        return await loop.create_server(lambda: Lines(self._line, self._lost), host, port)

    def knows(self, room: int) -> bool:
        """Whether a decode server waits for this room."""
        return room in self._rooms

    def _line(self, source: Lines, line: list[str | int | float]) -> None:
        kind, room = line[0], int(line[1])
        if kind == "want":
            self._rooms[room] = source
            self._streams.setdefault(source, [0.0] * self._link.streams)
            self._wanted(room)
        elif self._rooms.pop(room, None) is not None:
            self._dropped(room, "the decode server dropped the request")

    def _lost(self, source: Lines) -> None:
        self._streams.pop(source, None)
        for room in [room for room, owner in self._rooms.items() if owner is source]:
            del self._rooms[room]
            self._dropped(room, "the decode server is gone")

    def deliver(self, room: int, tokens: int, first_token_s: float) -> None:
        """Send the cache of a prompt that is computed; a cache waits until one of the link's streams is free."""
        target = self._rooms.pop(room, None)
        if target is None:
            return
        free_s = self._streams[target]
        duration_s = self._link.duration_s(tokens * self._kv_bytes_per_token)
        arrives_s = max(first_token_s, free_s[0]) + duration_s
        heapq.heapreplace(free_s, arrives_s)
        target.send("ready", room, first_token_s, arrives_s)

    def fail(self, room: int, reason: str) -> None:
        """Tell the decode server that a cache will not come."""
        target = self._rooms.pop(room, None)
        if target is not None:
            target.send("fail", room, reason)


class Waiting(NamedTuple):
    """A room that a decode server waits for."""

    address: tuple[str, int]
    on_ready: Callable[[float, float], None]
    """Takes when the first token was made and when the cache arrives, monotonic clock."""
    on_fail: Callable[[str], None]


class Transfers:
    """The decode side: one connection to every prefill server that requests name."""

    def __init__(self) -> None:
        self._waiting: dict[int, Waiting] = {}
        self._links: dict[tuple[str, int], asyncio.Task[Lines]] = {}

    def __len__(self) -> int:
        """Rooms waited for."""
        return len(self._waiting)

    def want(self, room: int, waiting: Waiting) -> bool:
        """Ask for a room; False if it is taken."""
        if room in self._waiting:
            return False
        self._waiting[room] = waiting
        self._ask(waiting.address, "want", room)
        return True

    def drop(self, room: int) -> None:
        """Do not want a room any more."""
        waiting = self._waiting.pop(room, None)
        if waiting is not None:
            self._ask(waiting.address, "drop", room)

    def _ask(self, address: tuple[str, int], kind: str, room: int) -> None:
        task = self._links.get(address)
        if task is None:
            task = self._links[address] = asyncio.get_running_loop().create_task(self._connect(address))
        task.add_done_callback(lambda done: self._connected(done, address, kind, room))

    async def _connect(self, address: tuple[str, int]) -> Lines:
        loop = asyncio.get_running_loop()
        _, lines = await loop.create_connection(lambda: Lines(self._line, lambda _: self._lost(address)), *address)
        return lines

    def _connected(self, task: asyncio.Task[Lines], address: tuple[str, int], kind: str, room: int) -> None:
        if task.cancelled():
            return
        if task.exception() is None:
            task.result().send(kind, room)
        else:
            self._links.pop(address, None)
            self._fail(room, f"no prefill server answers at {address[0]}:{address[1]}")

    def _line(self, _: Lines, line: list[str | int | float]) -> None:
        kind, room = line[0], int(line[1])
        if kind == "fail":
            self._fail(room, str(line[2]))
            return
        waiting = self._waiting.pop(room, None)
        if waiting is not None:
            waiting.on_ready(float(line[2]), float(line[3]))

    def _lost(self, address: tuple[str, int]) -> None:
        self._links.pop(address, None)
        for room in [room for room, waiting in self._waiting.items() if waiting.address == address]:
            self._fail(room, f"the prefill server at {address[0]}:{address[1]} is gone")

    def _fail(self, room: int, reason: str) -> None:
        waiting = self._waiting.pop(room, None)
        if waiting is not None:
            waiting.on_fail(reason)

    def close(self) -> None:
        """Close all connections."""
        for task in self._links.values():
            if task.done() and not task.cancelled() and task.exception() is None:
                task.result().close()
            else:
                task.cancel()
