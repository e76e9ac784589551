"""A client's connection: requests are parsed and bounded, answers are written, one at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple, Protocol, cast

import httptools

from voltana.live.router.body import Body, BodyError
from voltana.live.router.http1 import end_to_end, error_body, response_head
from voltana.live.router.settings import RouterSettings
from voltana.live.router.upstream import set_nodelay

_LINGER_S = 2.0
"""How long the rest of a refused request is read, so that the client gets to see why."""
_PIECE_BYTES = 32 * 1024
"""Bytes parsed at a time: thousands of requests or chunks may stand in them."""
JSON = (b"content-type", b"application/json")
CLOSE = (b"connection", b"close")
ALLOW_ORIGIN = (b"access-control-allow-origin", b"*")
KEEP_ALIVE = (b"connection", b"keep-alive")


class AnswerSource(Protocol):
    """Whoever is about to answer a client."""

    def pause(self) -> None:
        """The client does not keep up: make no more for now."""

    def resume(self) -> None:
        """It does again."""

    def client_gone(self) -> None:
        """It has left; nothing more can be written."""


class Request:
    """A whole request.

    Attributes:
        method: in capitals.
        target: path and query as received.
        headers: names in lower case.
        modern: whether it is HTTP/1.1.
        keep_alive: whether the client wants to keep the connection.
        body: without framing.
    """

    __slots__ = (
        "body",
        "expects",
        "header_bytes",
        "headers",
        "keep_alive",
        "method",
        "modern",
        "quiet_bytes",
        "route",
        "target",
    )

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.modern = True
        self.keep_alive = True
        self.body = Body()
        self.expects = False
        self.route = "other"
        """What the request is counted as."""
        self.header_bytes = 0
        self.quiet_bytes = 0
        """Received since the last byte of its body: chunk sizes, chunk extensions, trailers."""

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition(b"?")[0].decode("ascii", "replace")

    def header(self, name: bytes) -> bytes | None:
        """The last header of a name."""
        return next((value for key, value in reversed(self.headers) if key == name), None)


class _Refusal(NamedTuple):
    """A request that is answered without being looked at further."""

    status: int
    message: str
    code: str


class Buffered:
    """Bytes of request bodies held, all connections together.

    Args:
        limit: how many may be.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0


class Client(asyncio.Protocol):
    """One client's connection.

    A request that comes while another is under way waits in its bytes (pipelining); answers keep their order.

    Args:
        settings: limits.
        buffered: shared count of body bytes.
        handle: answers a whole request: at once, or by setting `source` and answering later.
        on_made: is called when there is a connection.
        on_gone: is called when there is none any more.
    """

    def __init__(
        self,
        settings: RouterSettings,
        buffered: Buffered,
        handle: Callable[[Client, Request], None],
        on_made: Callable[[Client], None],
        on_gone: Callable[[Client], None],
    ) -> None:
        self._settings = settings
        self._buffered = buffered
        self._handle = handle
        self._on_made = on_made
        self._on_gone = on_gone
        self._parser = httptools.HttpRequestParser(self)
        self._reading: Request | None = None
        self._in_body = False
        self._ready: deque[Request | _Refusal] = deque()
        self._later = bytearray()
        self._plain_head = b""
        self._yielding = False
        self._deaf = False
        self._answering: Request | None = None
        self._closing = False
        self._since_s = monotonic()
        self._stalled_s: float | None = None
        self.source: AnswerSource | None = None
        self.paused = False

    # Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Bound what may wait to be written, and send without delay."""
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=self._settings.write_buffer_bytes)
        set_nodelay(transport)
        self._on_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever answers."""
        self._closing = self._deaf = True
        source, self.source = self.source, None
        if source is not None:
            source.client_gone()
        for request in (self._reading, self._answering, *self._ready):
            if isinstance(request, Request):
                self.release(request)
        self._reading = self._answering = None
        self._ready.clear()
        self._on_gone(self)

    def eof_received(self) -> None:
        """A client that stops sending has left, as SGLang itself sees it; the transport closes."""

    def pause_writing(self) -> None:
        """The write buffer is full."""
        self.paused, self._stalled_s = True, monotonic()
        if self.source is not None:
            self.source.pause()

    def resume_writing(self) -> None:
        """The write buffer has room."""
        self.paused, self._stalled_s = False, None
        if self.source is not None:
            self.source.resume()

    def sweep(self, now_s: float) -> None:
        """Close what took too long."""
        limits, waited_s = self._settings, now_s - self._since_s
        if self._stalled_s is not None and now_s - self._stalled_s > limits.stall_timeout_s:
            self.transport.abort()
        elif self._closing:
            if waited_s > _LINGER_S and self.transport.get_write_buffer_size() == 0:
                self.transport.abort()
        elif self._answering is not None:
            return
        elif self._reading is None:
            if waited_s > limits.keep_alive_s:
                self.transport.close()
        elif waited_s > (limits.body_timeout_s if self._in_body else limits.header_timeout_s):
            self._refuse(408, "the request did not come whole in time", "request_timeout")

    def stop(self) -> None:
        """Close if idle, else after the answer under way."""
        if self._answering is not None:
            self._answering.keep_alive = False
        else:
            self.transport.close()

    def close(self) -> None:
        """Take no more requests, and close once all that was written is sent."""
        self._closing = self._deaf = True
        self.transport.close()

    def cut(self) -> None:
        """Close at once."""
        self.transport.abort()

    # Reading

    def data_received(self, data: bytes) -> None:
        """Parse, unless an answer is under way; much at a time only in pieces, others' turns between them."""
        if self._deaf:
            return
        if self._answering is None and not self._ready and not self._later and len(data) <= _PIECE_BYTES:
            self._feed(data)
            return
        self._later += data
        if self._answering is None and not self._ready:
            self._feed_on()
        elif len(self._later) > self._settings.max_header_bytes:
            self.transport.pause_reading()

    def _feed_on(self) -> None:
        """Parse the next piece of what has come, unless an answer is under way; read on when there is none."""
        if self.transport.is_closing() or self._yielding:
            return
        if self._deaf:
            self._later.clear()
        if not self._later:
            self.transport.resume_reading()
        elif self._answering is None and not self._ready:
            piece = bytes(self._later[:_PIECE_BYTES])
            del self._later[:_PIECE_BYTES]
            self._feed(piece)
            self._yield()

    def _yield(self) -> None:
        """Go on in the event loop's next turn."""
        if not self._yielding:
            self._yielding = True
            self.transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._yielding = False
        self._feed_on()

    def _feed(self, data: bytes) -> None:
        if self._reading is None:
            self._begin()
        request, taken = self._reading, self._buffered.held
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._parser = httptools.HttpRequestParser(self)
            self._later[:0] = self._plain_head + data[upgrade.args[0] :]
            self._yield()
        except httptools.HttpParserError as error:
            self._refuse(400, f"not HTTP: {error}", "bad_request")
        reading = self._reading
        if reading is not None and reading is request:
            self._check(reading, len(data), self._buffered.held - taken)
        self._next()

    def _check(self, request: Request, received: int, of_body: int) -> None:
        """Bound what is not body, look at what is."""
        if not self._in_body:
            request.header_bytes += received
            self._check_header_size(request)
            return
        request.quiet_bytes = 0 if of_body else request.quiet_bytes + received
        if request.quiet_bytes > self._settings.max_header_bytes:
            self._refuse(431, f"trailers above {self._settings.max_header_bytes} bytes", "headers_too_large")
        elif request.body.is_long:
            try:
                request.body.look()
            except BodyError as error:
                self._refuse(400, str(error), error.code)
            else:
                self._yield()

    def _begin(self) -> None:
        self._reading, self._in_body, self._since_s = Request(), False, monotonic()

    def on_message_begin(self) -> None:
        """Start a request (parser)."""
        if self._reading is None:
            self._begin()

    def on_url(self, url: bytes) -> None:
        """Take a part of the target (parser)."""
        if self._reading is not None:
            self._reading.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; those behind the body are dropped (parser)."""
        if self._reading is not None and not self._in_body:
            self._reading.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Judge what is known of the request before its body (parser)."""
        request = self._reading
        if request is None or self._deaf:
            return
        request.method = self._parser.get_method()
        request.modern = self._parser.get_http_version() == "1.1"
        request.keep_alive = self._parser.should_keep_alive()
        request.header_bytes = len(request.target) + sum(len(n) + len(v) + 4 for n, v in request.headers)
        self._in_body, self._since_s = True, monotonic()
        length = request.header(b"content-length")
        if not self._check_header_size(request):
            return
        if length is not None and int(length) > self._settings.max_body_bytes:
            self._refuse_body(request)
        else:
            self._judge_headers(request)

    def _judge_headers(self, request: Request) -> None:
        expected = request.header(b"expect")
        codings = [value.strip().lower() for name, value in request.headers if name == b"transfer-encoding"]
        hosts = sum(name == b"host" for name, _ in request.headers)
        if request.method == b"CONNECT" or b"websocket" in (request.header(b"upgrade") or b"").lower():
            self._refuse(400, "tunnels and websockets are not supported", "bad_request")
        elif self._parser.should_upgrade():
            self._ignore_upgrade(request)
        elif hosts > 1 or (request.modern and not hosts):
            self._refuse(400, f"found {hosts} Host headers, allowed: one", "bad_request")
        elif codings and (codings != [b"chunked"] or not request.modern):
            self._refuse(400, "a transfer coding other than chunked, or one in HTTP/1.0", "bad_request")
        elif any(b"\r" in value or b"\n" in value for _, value in request.headers):
            self._refuse(400, "a header has a line break", "bad_request")
        elif expected is not None and expected.lower() != b"100-continue":
            self._refuse(417, "an expectation other than 100-continue", "expectation_failed")
        elif expected is not None and request.modern:
            request.expects = True
            self._continue()

    def _ignore_upgrade(self, request: Request) -> None:
        """Begin again without the offer to speak another protocol, after which the parser would look for no body."""
        self._reading = None
        headers = end_to_end(request.headers)
        headers += [header for header in request.headers if header[0] == b"transfer-encoding"]
        if not request.keep_alive:
            headers.append(CLOSE)
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        self._plain_head = b"%b %b HTTP/1.1\r\n%b\r\n" % (request.method, request.target, lines)

    def _continue(self) -> None:
        request = self._reading
        if request is not None and request.expects and self._answering is None and not self._ready:
            request.expects = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        """Take a part of the body (parser)."""
        request = self._reading
        if request is None or self._deaf:
            return
        request.expects = False
        self._buffered.held += len(data)
        request.body.data += data
        if len(request.body) > self._settings.max_body_bytes:
            self._refuse_body(request)
        elif self._buffered.held > self._buffered.limit:
            self._refuse(503, "the router holds too many request bodies", "overloaded")

    def on_message_complete(self) -> None:
        """The request is whole (parser)."""
        request, self._reading = self._reading, None
        if request is not None and not self._deaf:
            self._ready.append(request)

    def _check_header_size(self, request: Request) -> bool:
        fits = request.header_bytes <= self._settings.max_header_bytes
        if not fits:
            self._refuse(431, f"headers above {self._settings.max_header_bytes} bytes", "headers_too_large")
        return fits

    def _refuse_body(self, request: Request) -> None:
        self._refuse(413, f"a body above {self._settings.max_body_bytes} bytes", "body_too_large")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer with an error when its turn comes, and listen no more."""
        if self._deaf:
            return
        self._deaf = True
        reading, self._reading = self._reading, None
        if reading is not None:
            self.release(reading)
        self._ready.append(_Refusal(status, message, code))
        self._next()

    def release(self, request: Request) -> None:
        """Hold a request's body no more."""
        self._buffered.held -= len(request.body)
        request.body = Body()

    # Answering

    def _next(self) -> None:
        if self._answering is not None or self._closing or not self._ready:
            return
        request = self._ready.popleft()
        if isinstance(request, _Refusal):
            self._answering = Request()
            self._answering.keep_alive = False
            self.error(*request)
        else:
            self._answering = request
            self._handle(self, request)

    def head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Write an answer's head; the body follows by `write`, then `finish`."""
        request = self._answering
        if request is None or not request.keep_alive:
            headers = [*headers, CLOSE]
        elif not request.modern:
            headers = [*headers, KEEP_ALIVE]
        self.transport.write(response_head(status, headers))

    def write(self, data: bytes) -> None:
        """Write a part of an answer."""
        self.transport.write(data)

    def close_after_answer(self) -> None:
        """The end of the connection is to tell the end of the answer."""
        if self._answering is not None:
            self._answering.keep_alive = False

    def answer(self, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = (JSON,)) -> None:
        """Write a whole answer, which a page of any origin may see, as SGLang's may be seen."""
        request = self._answering
        if request is not None and request.header(b"origin") and not any(n == ALLOW_ORIGIN[0] for n, _ in headers):
            headers = [*headers, ALLOW_ORIGIN, (b"access-control-allow-credentials", b"true")]
        bodiless = self._answering is not None and self._answering.method == b"HEAD"
        self.head(status, [*headers, (b"content-length", str(len(body)).encode())])
        if body and not bodiless:
            self.write(body)
        self.finish()

    def error(self, status: int, message: str, code: str, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Write an error in OpenAI's form."""
        if status == 503:
            headers = [*headers, (b"retry-after", b"1")]
        self.answer(status, error_body(status, message, code), [JSON, *headers])

    def finish(self) -> None:
        """The answer is written whole: go on with the next request, or close."""
        request, self._answering, self.source = self._answering, None, None
        if request is None or self._closing:
            return
        self.release(request)
        self._since_s = monotonic()
        if request.keep_alive:
            asyncio.get_running_loop().call_soon(self._go_on)
            return
        self._closing = self._deaf = True
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _go_on(self) -> None:
        if self._answering is not None or self._closing or self.transport.is_closing():
            return
        self._next()
        if self._answering is None:
            self._feed_on()
        self._continue()

    def break_off(self) -> None:
        """The answer cannot be completed: close, so that the client sees it is not whole."""
        self._answering = self.source = None
        self._closing = self._deaf = True
        self.transport.close()
