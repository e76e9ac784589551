"""HTTP/1.1 for an emulated server: requests in, answers out, one write per chunk, disconnects told."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import NamedTuple, cast
from urllib.parse import unquote

import httptools
import msgspec

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 32 * 2**20
MAX_UNREAD_BYTES = 8 * 2**20
"""A client that lets so much of its answer pile up is cut off."""

encode_json = msgspec.json.Encoder().encode


class Request(NamedTuple):
    """A whole request."""

    method: str
    path: str
    query: dict[str, str]
    body: bytes
    content_type: str = ""


class Reply:
    """The answer to one request.

    Either one call of `send`, or `begin_stream`, any number of `write` and `end_stream`. After the client has left all
    of them do nothing, and `on_disconnect` has been called.
    """

    def __init__(self, connection: Connection, keep_alive: bool) -> None:
        self._connection = connection
        self._keep_alive = keep_alive
        self.streaming = False
        self.done = False
        self.on_disconnect: Callable[[], None] = lambda: None

    def send(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        """Answer at once."""
        if self.done:
            return
        head = (
            f"{_status_line(status)}content-type: {content_type}\r\ncontent-length: {len(body)}\r\n{self._close()}\r\n"
        )
        self._connection.write(head.encode() + body)
        self._finish()

    def json(self, status: int, value: object) -> None:
        """Answer with a value as JSON."""
        self.send(status, encode_json(value))

    def begin_stream(self) -> None:
        """Begin a stream of server-sent events, unless that is done."""
        if not (self.streaming or self.done):
            self.streaming = True
            head = "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n"
            self._connection.write(f"{_status_line(200)}{head}{self._close()}\r\n".encode())

    def write(self, data: bytes) -> None:
        """Send a chunk."""
        if not self.done:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def end_stream(self) -> None:
        """End the stream."""
        if not self.done:
            self._connection.write(b"0\r\n\r\n")
            self._finish()

    def disconnected(self) -> None:
        """The client has left."""
        if not self.done:
            self.done = True
            self.on_disconnect()

    def _close(self) -> str:
        return "" if self._keep_alive else "connection: close\r\n"

    def _finish(self) -> None:
        self.done = True
        self._connection.answered(self._keep_alive)


def _status_line(status: int) -> str:
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nserver: voltana-emulated\r\n"


class Connection(asyncio.Protocol):
    """One client. Requests that it pipelines are answered in turn."""

    def __init__(self, handle: Callable[[Request, Reply], None], connections: set[Connection]) -> None:
        self._handle = handle
        self._connections = connections
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._body = bytearray()
        self._expects = False
        self._content_type = b""
        self._queue: deque[tuple[Request, Reply]] = deque()

    # The transport calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has come."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not derived from it
        self._transport.set_write_buffer_limits(high=MAX_UNREAD_BYTES)
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left, and does not want what it asked for."""
        self._transport = None
        self._connections.discard(self)
        while self._queue:
            self._queue.popleft()[1].disconnected()

    def pause_writing(self) -> None:
        """The client does not read."""
        self.abort()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(HTTPStatus.BAD_REQUEST)
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST)

    # The parser calls these

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url = b""
        self._body = bytearray()
        self._expects = False
        self._content_type = b""

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        if name.lower() == b"expect" and value.lower() == b"100-continue":
            self._expects = True
        elif name.lower() == b"content-type":
            self._content_type = value

    def on_headers_complete(self) -> None:
        """The body is next."""
        if self._expects:
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body += body
        if len(self._body) > MAX_BODY_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._transport is None:
            return
        url = httptools.parse_url(self._url)
        path = unquote((url.path or b"/").decode("latin-1"))
        pairs = (pair.partition("=") for pair in (url.query or b"").decode("latin-1").split("&") if pair)
        query = {unquote(name): unquote(value) for name, _, value in pairs}
        request = Request(
            self._parser.get_method().decode(), path, query, bytes(self._body), self._content_type.decode("latin-1")
        )
        self._queue.append((request, Reply(self, self._parser.should_keep_alive())))
        if len(self._queue) == 1:
            self._handle(*self._queue[0])

    # Replies call these

    def write(self, data: bytes) -> None:
        """Send bytes."""
        if self._transport is not None:
            self._transport.write(data)

    def answered(self, keep_alive: bool) -> None:
        """The oldest request is answered."""
        self._queue.popleft()
        if not keep_alive and self._transport is not None:
            self._transport.close()
        elif self._queue:
            self._handle(*self._queue[0])

    def abort(self) -> None:
        """Cut the client off."""
        if self._transport is not None:
            self._transport.abort()

    def _refuse(self, status: HTTPStatus) -> None:
        if self._transport is not None:
            self.write(f"{_status_line(status)}content-length: 0\r\nconnection: close\r\n\r\n".encode())
            self._transport.close()
            self._transport = None
