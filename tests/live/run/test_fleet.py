"""Servers of somebody else are looked after too."""

import asyncio

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
