"""The parts of HTTP/1.1 that a pass-through router needs: heads are parsed and written, bodies only measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from http import HTTPStatus
from typing import NamedTuple

import httptools

Headers = Sequence[tuple[bytes, bytes]]
"""Names in lower case, in the order received."""

HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Headers that speak of one connection and are never passed on (RFC 9110, section 7.6.1)."""

_MAX_LINE = 4096
"""Longest chunk-size or trailer line; real ones have a few bytes."""
_MAX_TRAILERS = 16 * 1024
"""Bytes of all trailers together; they are read and dropped."""


class ProtocolError(Exception):
    """The other side does not speak HTTP/1.1."""


@lru_cache(maxsize=4096)
def chunk_size(line: bytes) -> int:
    """Size told by a chunk's first line (without its CRLF), or -1 if it is not one.

    Sizes repeat from chunk to chunk, so looking one up is cheaper than parsing it.
    """
    digits = line.partition(b";")[0].rstrip(b" \t")
    if not digits or len(digits) > 15 or digits.strip(b"0123456789abcdefABCDEF"):
        return -1
    return int(digits, 16)


class Framing:
    """Where a response's body ends, found from its bytes as they pass.

    Attributes:
        left: bytes still to come of the chunk or body under way; 0 exactly between two chunks, -1 within a line.
        chunked: whether the body is in chunks.
    """

    def __init__(self, chunked: bool, length: int | None) -> None:
        self.chunked = chunked
        self.left = 0 if chunked else (1 << 62 if length is None else length)
        self._until_close = not chunked and length is None
        self._line = b""
        self._trailer_bytes = -1
        self._trailer_at = -1

    @property
    def empty(self) -> bool:
        """Whether there is no body at all."""
        return not self.chunked and self.left == 0

    @property
    def until_close(self) -> bool:
        """Whether the body ends where the connection does."""
        return self._until_close

    def scan(self, data: bytes, payload: list[bytes] | None = None) -> int:
        """Take the next bytes.

        Args:
            data: as received.
            payload: collects the body without its framing, if given.

        Returns: how many of the bytes belong to the body if it ends among them, else -1.

        Raises:
            ProtocolError: a line that is no chunk size.
        """
        if self.chunked:
            return self._scan_chunks(data, payload)
        mine = min(self.left, len(data))
        self.left -= mine
        if payload is not None:
            payload.append(data[:mine])
        return mine if self.left == 0 else -1

    def without_trailers(self, data: bytes, end: int) -> bytes:
        """What may be passed on of the bytes scanned last, with what `scan` returned for them."""
        if self._trailer_at < 0:
            return data if end < 0 else data[:end]
        return data[: self._trailer_at] + (b"\r\n" if end >= 0 else b"")

    def _scan_chunks(self, data: bytes, payload: list[bytes] | None) -> int:
        at = 0
        self._trailer_at = -1 if self._trailer_bytes < 0 else 0
        while at < len(data):
            if self.left > 0:
                at = self._inside(data, at, payload)
                continue
            end = data.find(b"\n", at) + 1
            if not end:
                self._hold(data[at:])
                return -1
            line = self._line + data[at:end]
            self._line, at = b"", end
            if self._trailer_bytes >= 0:
                if self._ends(line):
                    return at
            elif self._size(line) == 0:
                self._trailer_at = at
        return -1

    def _inside(self, data: bytes, at: int, payload: list[bytes] | None) -> int:
        step = min(self.left, len(data) - at)
        if payload is not None and self.left > 2:
            payload.append(data[at : at + min(step, self.left - 2)])
        self.left -= step
        return at + step

    def _hold(self, part: bytes) -> None:
        self._line += part
        self.left = -1
        if len(self._line) > _MAX_LINE:
            raise ProtocolError("a line of a chunked body is too long")

    def _ends(self, line: bytes) -> bool:
        """Take a whole trailer line; true if it ends the body."""
        self.left = -1
        self._trailer_bytes += len(line)
        if self._trailer_bytes > _MAX_TRAILERS:
            raise ProtocolError("the trailers of a chunked body are too long")
        return line == b"\r\n"

    def _size(self, line: bytes) -> int:
        """Take a whole line that tells the size of a chunk."""
        size = chunk_size(line[:-2]) if line.endswith(b"\r\n") else -1
        if size < 0:
            raise ProtocolError(f"no chunk size: {line[:40]!r}")
        self._trailer_bytes = -1 if size else 0
        self.left = size + 2 if size else -1
        return size


class ResponseHead(NamedTuple):
    """Status line and headers of an upstream response."""

    status: int
    headers: Headers
    framing: Framing
    keep_alive: bool


class _HeadReader:
    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def parse_response_head(raw: bytes, bodiless: bool = False) -> ResponseHead:
    """Parse a response up to and including its empty line.

    Args:
        raw: the bytes.
        bodiless: whether the request was a HEAD.

    Raises:
        ProtocolError: it is not HTTP/1.x.
    """
    reader = _HeadReader()
    parser = httptools.HttpResponseParser(reader)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserError as error:
        raise ProtocolError(str(error)) from error
    status = parser.get_status_code()
    chunked, length = _body_of(reader.headers)
    if bodiless or status in (204, 304) or status < 200:
        chunked, length = False, 0
    framing = Framing(chunked, length)
    keep_alive = parser.get_http_version() == "1.1" and not framing.until_close
    closes = any(name == b"connection" and b"close" in value.lower() for name, value in reader.headers)
    return ResponseHead(status, reader.headers, framing, keep_alive and not closes)


def _body_of(headers: Headers) -> tuple[bool, int | None]:
    found = dict(headers)
    if b"transfer-encoding" in found:
        if found[b"transfer-encoding"].strip().lower() != b"chunked":
            raise ProtocolError("a transfer coding other than chunked")
        return True, None
    length = found.get(b"content-length")
    if length is None:
        return False, None
    if not length.isdigit():
        raise ProtocolError(f"content-length {length[:40]!r}")
    return False, int(length)


def reason_of(status: int) -> str:
    """The standard phrase for a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def response_head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write a response head."""
    lines = [f"HTTP/1.1 {status} {reason_of(status)}\r\n".encode()]
    lines += [b"%s: %s\r\n" % header for header in headers]
    return b"".join(lines) + b"\r\n"


def end_to_end(headers: Headers, also_without: frozenset[bytes] = frozenset()) -> list[tuple[bytes, bytes]]:
    """The headers that may be passed on: all but those of one connection, those it names, and some."""
    named = {token.strip().lower() for name, value in headers if name == b"connection" for token in value.split(b",")}
    dropped = HOP_BY_HOP | also_without | named
    return [header for header in headers if header[0] not in dropped]


def error_body(status: int, message: str, code: str) -> bytes:
    """An error as OpenAI's API and SGLang word it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    return json.dumps({"error": error}, separators=(",", ":")).encode()
