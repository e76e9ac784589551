"""Servers of somebody else are looked after too."""

import asyncio
import json
from typing import Any

import pytest

from voltana.errors import UserError
from voltana.live.run.fleet import AttachedServers
from voltana.live.servers import Endpoint

HEALTHY = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def test_an_attached_server_that_is_gone_is_told() -> None:
    told: list[tuple[str, str]] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(HEALTHY)
        writer.close()

    async def run() -> None:
        servers = [await asyncio.start_server(answer, "127.0.0.1", 0) for _ in range(2)]
        ports = [server.sockets[0].getsockname()[1] for server in servers]
        endpoints = [Endpoint(f"decode-{n}", "decode", "127.0.0.1", port, 0, "") for n, port in enumerate(ports)]
        attached = AttachedServers(endpoints, 5.0, lambda name, how: told.append((name, how)))
        await attached.start()
        servers[1].close()
        async with asyncio.timeout(10):
            while not told:
                await asyncio.sleep(0.05)
        await attached.stop()
        (name, how), *others = told
        assert (name, others) == ("decode-1", [])
        assert how.startswith(f"it takes no connection at http://127.0.0.1:{ports[1]} any more")
        servers[0].close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("info", "any_version", "refused"),
    [
        ({"version": "0.5.23", "dp_size": 1}, False, None),
        ({}, False, None),
        ({"version": "0.4.9"}, False, "found SGLang 0.4.9, allowed: "),
        ({"version": "0.4.9"}, True, None),
        ({"version": "0.5.23", "dp_size": 2}, False, "found 2 data-parallel ranks, allowed: 1"),
        ({"version": "0.5.23", "dp_size": 1, "attn_dp_size": 4}, True, "found 4 data-parallel ranks, allowed: 1"),
    ],
)
def test_an_attached_server_is_asked_what_it_is(info: dict[str, Any], any_version: bool, refused: str | None) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = json.dumps(info).encode() if b"/server_info" in await reader.readline() else b""
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        endpoint = Endpoint("decode-0", "decode", "127.0.0.1", server.sockets[0].getsockname()[1], 0, "")
        attached = AttachedServers([endpoint], 5.0, lambda name, how: None, any_version=any_version)
        try:
            await attached.start()
        finally:
            await attached.stop()
            server.close()

    if refused is None:
        asyncio.run(run())
    else:
        with pytest.raises(UserError, match=f"decode-0: .*{refused}"):
            asyncio.run(run())
