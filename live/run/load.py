"""The load client, a process of its own: sends requests at their times and tells how each one went.

``python -m voltana.live.run.load`` reads JSON lines: an `Order`, then a request each, ``[id, arrival_s, input,
output]``, then ``null``. It writes a `Result` per request as a JSON line, and one now and then on how far it is. It is
open-loop: a request goes out at its time whatever became of those before it, and its times count from when it should
have gone. When standard input ends before ``null``, or a line says ``false``, it stops at once and tells what is not
done; so it does not outlive whoever started it.

Answers are not read by `voltana.live.http`: what is wanted of a stream is when its events came, and how many. They are
counted in the bytes as these arrive, which at thousands of chunks per second is most of what this process does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import sys
import time
from collections.abc import Coroutine
from typing import Any, NamedTuple, cast

import msgspec
import uvloop

from voltana.live import http

EVENT = b"data: {"
USAGE_EVENT = b'"choices":[]'
END = b"\n\n"
"""Of an event."""
STATUS_LINE = 64
"""Bytes kept of the beginning."""
KEPT = 4096
"""Bytes kept of the end of an answer, where its token counts are."""
PATH = "/v1/completions"
TELL_EVERY_S = 1.0
PROGRESS = -1
"""Stands for a request in a `Result` that tells no more than the last token of all so far."""


class Order(msgspec.Struct, frozen=True):
    """What all requests share."""

    host: str
    port: int
    start_s: float
    """Monotonic clock at second 0 of the run."""
    itl_s: float
    """Gaps up to this meet the objective."""
    token_ids: tuple[int, int]
    seed: int


class Result(msgspec.Struct, array_like=True, frozen=True):
    """How a request went. Times are seconds of the run, None where they did not come."""

    request_id: int
    status: str
    """completed, failed, unfinished; unsent: its time had not come."""
    first_s: float | None = None
    last_s: float | None = None
    tokens: int = 0
    """Output tokens that came."""
    max_gap_s: float | None = None
    gaps: int = 0
    gaps_in_slo: int = 0
    lag_s: float | None = None
    """How much later than its time it was sent; None: that is not known."""
    reason: str = ""
    """Why it failed."""


class Timed(NamedTuple):
    """A request to send."""

    request_id: int
    arrival_s: float
    input_tokens: int
    output_tokens: int


class Stream(asyncio.Protocol):
    """One request on a connection of its own. Events are counted, not read; only the end of the answer is."""

    def __init__(self, request: Timed, payload: bytes, order: Order, lag_s: float) -> None:
        self._request = request
        self._payload = payload
        self._order = order
        self._lag_s = lag_s
        self._head = b""
        self._tail = b""
        self._rest = b""
        self._first_s: float | None = None
        self.last_s: float | None = None
        """When the last token came."""
        self._max_gap_s: float | None = None
        self._events = self._gaps = self._gaps_in_slo = 0
        self.ended: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._payload)
        self._payload = b""

    def data_received(self, data: bytes) -> None:
        """Count and time the events."""
        now_s = time.monotonic() - self._order.start_s
        if len(self._head) < STATUS_LINE:
            self._head = (self._head + data)[:STATUS_LINE]
        whole, _, self._rest = (self._rest + data).rpartition(END)
        events = whole.count(EVENT) - whole.count(USAGE_EVENT)
        if events > 0:
            self._count(events, now_s)
        self._tail = (self._tail + data)[-KEPT:]

    def _count(self, events: int, now_s: float) -> None:
        self._events += events
        if self.last_s is None:
            self._first_s = now_s
            self._within(events - 1)
        else:
            gap_s = now_s - self.last_s
            self._gaps += 1
            self._gaps_in_slo += gap_s <= self._order.itl_s
            if self._max_gap_s is None or gap_s > self._max_gap_s:
                self._max_gap_s = gap_s
            self._within(events - 1)
        self.last_s = now_s

    def _within(self, events: int) -> None:
        """Events that came with another: no time between."""
        self._gaps += events
        self._gaps_in_slo += events

    def connection_lost(self, exc: Exception | None) -> None:
        """The answer is over, or broken off."""
        if self.ended.done():
            return
        if self._head[9:12] == b"200" and b"data: [DONE]" in self._tail and b'data: {"error"' not in self._tail:
            self.ended.set_result(self._result("completed", self._tokens()))
        else:
            self.ended.set_result(self._result("failed", self._events, self._reason(exc)))

    def stop(self) -> Result:
        """Break off."""
        if not self.ended.done():
            self.ended.set_result(self._result("unfinished", self._events))
        if self.transport is not None:
            self.transport.abort()
        return self.ended.result()

    def _result(self, status: str, tokens: int, reason: str = "") -> Result:
        return Result(
            self._request.request_id,
            status,
            self._first_s,
            self.last_s,
            tokens,
            self._max_gap_s,
            self._gaps,
            self._gaps_in_slo,
            self._lag_s,
            reason,
        )

    def _tokens(self) -> int:
        """Output tokens, as the server counts them; as events came if it does not tell."""
        _, found, number = self._tail.rpartition(b'"completion_tokens":')
        digits = number.lstrip()[:12].split(b",")[0].split(b"}")[0]
        return int(digits) if found and digits.isdigit() else self._events

    def _reason(self, exc: Exception | None) -> str:
        status = self._head[9:12].decode("latin-1")
        _, found, message = self._tail.rpartition(b'"message":"')
        said = message.partition(b'"')[0].decode("utf-8", "replace")[:200] if found else ""
        if status != "200":
            return f"HTTP {status}: {said}" if status else f"no answer ({exc or 'the connection was closed'})"
        return said or f"the answer broke off{f' ({exc})' if exc else ''}"


def payload(request: Timed, order: Order) -> bytes:
    """The bytes of a request: a random prompt, the same for the same seed and number."""
    draw = random.Random(f"{order.seed}/{request.request_id}")
    low, high = order.token_ids
    body = msgspec.json.encode(
        {
            "prompt": draw.choices(range(low, high), k=request.input_tokens),
            "max_tokens": request.output_tokens,
            "ignore_eos": True,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    headers = ((b"connection", b"close"), (b"x-request-id", b"%d" % request.request_id))
    return http.request(f"{order.host}:{order.port}", "POST", PATH, body, headers)


class Client:
    """Sends what comes in, tells what becomes of it."""

    def __init__(self, order: Order, tell: asyncio.StreamWriter) -> None:
        self._order = order
        self._tell_to = tell
        self._loop = asyncio.get_running_loop()
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._open: dict[int, asyncio.Task[None]] = {}
        self._streams: dict[int, Stream] = {}
        self.idle = asyncio.Event()
        self.idle.set()

    def plan(self, request: Timed) -> None:
        """Send a request at its time."""
        bytes_to_send = payload(request, self._order)
        wait_s = self._order.start_s + request.arrival_s - time.monotonic()
        self.idle.clear()
        self._timers[request.request_id] = self._loop.call_later(max(0.0, wait_s), self._send, request, bytes_to_send)

    def _send(self, request: Timed, bytes_to_send: bytes) -> None:
        del self._timers[request.request_id]
        lag_s = max(0.0, time.monotonic() - self._order.start_s - request.arrival_s)
        stream = self._streams[request.request_id] = Stream(request, bytes_to_send, self._order, lag_s)
        self._open[request.request_id] = self._loop.create_task(self._follow(request, stream, lag_s))

    async def tell_progress(self) -> None:
        """Tell now and then when the last token came, and that this process goes on, for ever."""
        while True:
            await asyncio.sleep(TELL_EVERY_S)
            times_s = [stream.last_s for stream in self._streams.values() if stream.last_s is not None]
            self.tell(Result(PROGRESS, "unfinished", last_s=max(times_s, default=None)))

    async def _follow(self, request: Timed, stream: Stream, lag_s: float) -> None:
        try:
            await self._loop.create_connection(lambda: stream, self._order.host, self._order.port)
            result = await stream.ended
        except OSError as error:
            reason = f"cannot connect to the router ({error.strerror or error})"
            result = Result(request.request_id, "failed", lag_s=lag_s, reason=reason)
        self._end(result)

    def _end(self, result: Result) -> None:
        self._streams.pop(result.request_id, None)
        self._open.pop(result.request_id, None)
        self.tell(result)
        if not self._open and not self._timers:
            self.idle.set()

    def tell(self, result: Result) -> None:
        """Write a result, if anybody is there to read it."""
        if not self._tell_to.is_closing():
            self._tell_to.write(msgspec.json.encode(result) + b"\n")

    def stop(self) -> None:
        """Send nothing more, break off what is under way, and tell."""
        for request_id, timer in self._timers.items():
            timer.cancel()
            self.tell(Result(request_id, "unsent"))
        self._timers.clear()
        for stream in list(self._streams.values()):
            self.tell(stream.stop())
        for task in self._open.values():
            task.cancel()
        self._streams.clear()
        self._open.clear()


async def serve() -> None:
    """Work through standard input."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, sys.stdout)
    tell = asyncio.StreamWriter(transport, protocol, None, loop)
    order = msgspec.json.decode(await lines.readline(), type=Order)
    client = Client(order, tell)
    telling = loop.create_task(client.tell_progress())
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    whole = False
    while line := await lines.readline():
        said = msgspec.json.decode(line)
        if said is None:
            whole = True
            break
        if said is False:
            break
        client.plan(Timed(*said))
    if whole:
        await _either(client.idle.wait(), lines.readline())
    telling.cancel()
    client.stop()
    with contextlib.suppress(ConnectionError):
        await tell.drain()


async def _either(idle: Coroutine[Any, Any, object], more: Coroutine[Any, Any, object]) -> None:
    """Wait until all is done, or whoever started this says stop or is gone."""
    tasks = [asyncio.create_task(each) for each in (idle, more)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


if __name__ == "__main__":
    uvloop.run(serve())
