"""HTTP/1.1 for cold paths: a question to a server, its whole answer.

Two hot paths have their own: the router's streams (`voltana.live.router`), the load client (`voltana.live.run.load`).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httptools

from voltana.errors import UserError

TIMEOUT_S = 30.0
HEALTH_TIMEOUT_S = 5.0
MAX_BODY_BYTES = 64 * 2**20
SHOWN = 200
"""Bytes of an answer that is an error."""
Headers = Sequence[tuple[bytes, bytes]]


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes


def request(host: str, method: str, path: str, body: bytes = b"", headers: Headers = ()) -> bytes:
    """The bytes of a request.

    Args:
        host: HOST:PORT of the server.
        method, path: what is asked.
        body: JSON, or nothing.
        headers: further ones.
    """
    lines = [f"{method} {path} HTTP/1.1".encode(), b"host: " + host.encode()]
    if body:
        lines.append(b"content-type: application/json")
    if body or method == "POST":
        lines.append(b"content-length: %d" % len(body))
    lines += [b"%b: %b" % header for header in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Connection:
    """Questions to one server, one after another, on a connection that is kept.

    Args:
        url: http://HOST:PORT.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        parts = urlsplit(url)
        self._host, self._port, self._name = parts.hostname or "", parts.port or 80, parts.netloc
        self._turn = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self,
        path: str,
        body: object = None,
        *,
        method: str | None = None,
        headers: Headers = (),
        timeout_s: float | None = TIMEOUT_S,
        discard: bool = False,
    ) -> Answer:
        """Ask, and take the whole answer.

        Args:
            path: on the server.
            body: sent as JSON.
            method: by default POST with a body, GET without one.
            headers: further ones.
            timeout_s: for all of it; None: for ever.
            discard: throw the body away, unless it is an error's.

        Raises:
            OSError: there is no answer, for the reason it says (TimeoutError: not in time).
        """
        payload = b"" if body is None else json.dumps(body).encode()
        data = request(self._name, method or ("GET" if body is None else "POST"), path, payload, headers)
        async with asyncio.timeout(timeout_s), self._turn:
            try:
                return await self._exchange(data, discard)
            except BaseException:
                self.close()  # what comes of an answer given up is not the next one's
                raise

    async def _exchange(self, data: bytes, discard: bool) -> Answer:
        kept, streams = self._streams is not None, self._streams or await self._connect()
        self._streams = streams
        streams[1].write(data)
        reader = _AnswerReader(discard)
        try:
            await reader.read(streams[0])
        except ConnectionError:
            if not kept or reader.begun:
                raise
            self.close()  # the server has dropped it while it was idle
            return await self._exchange(data, discard)
        if not reader.keep_alive:
            self.close()
        return Answer(reader.status, bytes(reader.body))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_connection(self._host, self._port)
        except OSError as error:
            raise ConnectionError(f"refused the connection ({error.strerror or error})") from error

    def close(self) -> None:
        """Hang up, which ends at the server whatever is under way."""
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].transport.abort()


class _AnswerReader:
    """Reads one answer."""

    def __init__(self, discard: bool) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._discard = discard
        self._whole = self._framed = False
        self.begun = False
        self.keep_alive = False
        self.status = 0
        self.body = bytearray()

    async def read(self, stream: asyncio.StreamReader) -> None:
        """Read to the end of the answer.

        Raises:
            ConnectionError: it does not come, or not whole, or is too long or no HTTP.
        """
        while not self._whole:
            data = await stream.read(1 << 16)
            if not data:
                if self.status and not self._framed:
                    return  # it ends with the connection
                raise ConnectionError(f"hung up {'within its answer' if self.begun else 'before it answered'}")
            self.begun = True
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError as error:
                raise ConnectionError(f"answered with bad HTTP: {error}") from error
            if len(self.body) > MAX_BODY_BYTES:
                raise ConnectionError("answered with too long a body")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note whether the answer tells where its body ends (parser)."""
        self._framed = self._framed or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        """Note the status (parser)."""
        self.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """Keep a part of the body (parser)."""
        if not self._discard or (self.status != 200 and len(self.body) < SHOWN):
            self.body += data

    def on_message_complete(self) -> None:
        """The answer is whole (parser)."""
        self._whole = True
        self.keep_alive = self._parser.should_keep_alive()


async def ask(url: str, path: str, **options: Any) -> Answer:
    """Ask a server once; arguments and errors as `Connection.ask`."""
    with closing(Connection(url)) as connection:
        return await connection.ask(path, **options)


async def is_healthy(url: str) -> bool:
    """Whether a server answers GET /health with 200."""
    try:
        return (await ask(url, "/health", timeout_s=HEALTH_TIMEOUT_S)).status == 200
    except OSError:
        return False


async def demand(connection: Connection, path: str, body: object = None, **options: Any) -> bytes:
    """The body of an answer that has to come; arguments as `Connection.ask`.

    Raises:
        UserError: the server does not answer, or with an error.
    """
    where = f"{connection.url}{path}"
    try:
        answer = await connection.ask(path, body, **options)
    except TimeoutError as error:
        raise UserError(f"{where}: found no answer within {options.get('timeout_s', TIMEOUT_S):g} s") from error
    except OSError as error:
        raise UserError(f"{where}: the server {error}") from error
    if answer.status != 200:
        shown = answer.body[:SHOWN].decode(errors="replace").strip()
        raise UserError(f"{where}: found status {answer.status}, {shown}")
    return answer.body


async def demand_json(connection: Connection, path: str, body: object = None) -> Any:
    """The JSON of an answer that has to come.

    Raises:
        UserError: the server does not answer, or with an error or something else.
    """
    try:
        return json.loads(await demand(connection, path, body))
    except ValueError as error:
        raise UserError(f"{connection.url}{path}: found an answer that is not JSON") from error
