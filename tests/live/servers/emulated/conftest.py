"""Emulated servers for tests, and a client that knows no more than HTTP."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any, NamedTuple

import pytest

from voltana.live.servers import Endpoint
from voltana.live.servers.emulated.cluster import EmulatedCluster
from voltana.sim.run.compose import compose_sim

rooms = count(1)
Body = dict[str, Any]


@pytest.fixture(scope="session")
def sections() -> Body:
    """The plant's sections of the default configuration."""
    values = compose_sim()
    return {"gpu": values["gpu"], "model": values["model"], "engine": values["serving"]["engine"]}


class Got(NamedTuple):
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The server-sent events of a stream, which must end as one."""
        lines = [line for line in self.body.decode().split("\n\n") if line]
        assert lines[-1] == "data: [DONE]"
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


class Client:
    """Requests as a router sends them."""

    @staticmethod
    def packed(method: str, path: str, body: Any = None) -> bytes:
        payload = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload

    async def ask(self, endpoint: Endpoint, method: str, path: str, body: Any = None) -> Got:
        """One request on a connection of its own."""
        reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        writer.write(self.packed(method, path, body))
        async with asyncio.timeout(20):
            answer = await reader.read()
        writer.close()
        head, _, rest = answer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        whole = unchunked(rest) if headers.get("transfer-encoding") == "chunked" else rest
        return Got(int(first.split()[1]), headers, whole)

    @staticmethod
    def paired(cluster: EmulatedCluster, body: Body, prompts: int | None = None) -> Body:
        """A body with the fields that a router adds."""
        prefill = cluster.of("prefill")[0]
        fields = {"bootstrap_host": prefill.host, "bootstrap_port": prefill.bootstrap_port}
        if prompts is None:
            return body | fields | {"bootstrap_room": next(rooms)}
        lists: Body = {name: [value] * prompts for name, value in fields.items()}
        return body | lists | {"bootstrap_room": [next(rooms) for _ in range(prompts)]}

    async def both(
        self, cluster: EmulatedCluster, path: str, body: Body, prompts: int | None = None
    ) -> tuple[Got, Got]:
        """Send a request to prefill and decode server; return both answers."""
        whole = self.paired(cluster, body, prompts)
        servers = (cluster.of("prefill")[0], cluster.of("decode")[0])
        first, second = await asyncio.gather(*(self.ask(server, "POST", path, whole) for server in servers))
        return first, second

    @staticmethod
    async def eventually(condition: Callable[[], Coroutine[Any, Any, bool]]) -> None:
        """Wait until a condition holds."""
        async with asyncio.timeout(10):
            while not await condition():
                await asyncio.sleep(0.01)


def unchunked(data: bytes) -> bytes:
    whole = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return whole
        whole, data = whole + data[:length], data[length + 2 :]


@pytest.fixture(scope="session")
def client() -> Client:
    return Client()


Test = Callable[[EmulatedCluster], Coroutine[Any, Any, None]]


@pytest.fixture
def run(sections: Body) -> Callable[..., None]:
    """Run a test on one prefill and one decode server of its own: ``run(test, **settings)``."""

    def go(test: Test, **settings: Any) -> None:
        async def main() -> None:
            async with asyncio.timeout(60), EmulatedCluster(1, 1, sections, settings) as cluster:
                await test(cluster)

        asyncio.run(main())

    return go
