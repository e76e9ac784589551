"""Requests to servers that are profiled: one connection each, answers read whole or thrown away."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit

from voltana.errors import UserError

TIMEOUT_S = 30.0
SHOWN = 200
"""Characters of an answer that is an error."""


class Call:
    """A POST request under way, or a GET without a body.

    Args:
        url: of the server.
        path: on it.
        body: what to send as JSON.
    """

    def __init__(self, url: str, path: str, body: object = None) -> None:
        self._where = f"{url}{path}"
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        payload = b"" if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        head = f"{method} {path} HTTP/1.1\r\nhost: {parts.netloc}\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
        self._request = head.encode() + payload
        self._writer: asyncio.StreamWriter | None = None

    async def whole(self) -> bytes:
        """The body of the answer.

        Raises:
            UserError: the server cannot be reached, or answers with an error.
        """
        reader = await self._open()
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.read()
        except (OSError, asyncio.IncompleteReadError) as error:
            raise UserError(f"{self._where}: the server hung up") from error
        finally:
            self.close()
        status = int(head.split(None, 2)[1])
        if status != 200:
            raise UserError(f"{self._where}: found status {status}, {body[:SHOWN].decode(errors='replace').strip()}")
        return body

    async def discard(self) -> None:
        """Read to the end and keep nothing but an error; see `whole`."""
        reader = await self._open()
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if int(head.split(None, 2)[1]) != 200:
                text = (await reader.read(SHOWN)).decode(errors="replace").strip()
                raise UserError(f"{self._where}: found {head.split(maxsplit=2)[1].decode()}, {text}")
            while await reader.read(65536):
                pass
        except (OSError, asyncio.IncompleteReadError) as error:
            raise UserError(f"{self._where}: the server hung up") from error
        finally:
            self.close()

    async def _open(self) -> asyncio.StreamReader:
        try:
            reader, self._writer = await asyncio.open_connection(self._host, self._port)
        except OSError as error:
            raise UserError(f"{self._where}: cannot be reached ({error.strerror})") from error
        self._writer.write(self._request)
        return reader

    def close(self) -> None:
        """Hang up, which ends the request at the server."""
        if self._writer is not None:
            self._writer.transport.abort()


async def ask_json(url: str, path: str, body: object = None, timeout_s: float = TIMEOUT_S) -> Any:
    """The JSON that a server answers with.

    Raises:
        UserError: it cannot be reached, answers with an error or something else, or not in time.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return json.loads(await Call(url, path, body).whole())
    except TimeoutError as error:
        raise UserError(f"{url}{path}: found no answer within {timeout_s:g} s") from error
    except ValueError as error:
        raise UserError(f"{url}{path}: found an answer that is not JSON") from error
