"""Real SGLang servers, started once for all tests of this folder, and a plain client.

They run only where VOLTANA_SGLANG names a folder made by `python -m voltana.live.servers.sglang.environment`, as `make
test-live` does. Tests are coroutines and share one event loop, that of the servers.
"""

import asyncio
import inspect
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from voltana.live.router.fleet import Backend
from voltana.live.router.server import RouterServer
from voltana.live.router.settings import RouterSettings
from voltana.live.servers import Endpoint
from voltana.live.servers.sglang.environment import Environment
from voltana.live.servers.sglang.launch import SglangServers
from voltana.live.telemetry.message import Telemetry
from voltana.live.telemetry.subscriber import Subscriber
from voltana.policies.balancers import RoundRobin

collect_ignore_glob = [] if os.environ.get("VOLTANA_SGLANG") else ["test_*.py"]

TIMEOUT_S = 600.0
"""Only ends a test that hangs. A server takes 15 s to start on two idle cores, and five times as long on busy ones."""
KV_TOKENS = 60_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test that kills a server comes after all others."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("real_servers")
    items.sort(key=lambda item: item.get_closest_marker("fatal") is not None)


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    runner: asyncio.Runner = pyfuncitem._request.getfixturevalue("runner")
    runner.run(asyncio.wait_for(pyfuncitem.obj(**arguments), TIMEOUT_S))
    return True


async def until(condition: Callable[[], Any], timeout_s: float = 120.0) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


# A client


@dataclass
class Answer:
    """A response as it came: what a stream was cut into, and whether it was whole."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    whole: bool = True

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """What a stream told, its end mark left out."""
        events = [event.removeprefix("data: ") for event in self.body.decode().split("\n\n") if event]
        return [json.loads(event) for event in events if event != "[DONE]"]

    @property
    def is_done(self) -> bool:
        """A stream with an end mark."""
        return self.whole and self.body.endswith(b"data: [DONE]\n\n")


@dataclass
class Call:
    """A request under way."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    answer: Answer = field(init=False)

    async def head(self) -> Answer:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        self.answer = Answer(int(lines[0].split()[1]), headers)
        return self.answer

    async def part(self) -> bytes:
        """The next part of the body; empty at its end."""
        if self.answer.headers.get("transfer-encoding") == "chunked":
            size = int(await self.reader.readline(), 16)
            data = (await self.reader.readexactly(size + 2))[:-2]
        else:
            data = await self.reader.read(65536)
        self.answer.body += data
        return data

    async def rest(self) -> Answer:
        try:
            while await self.part():
                pass
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            self.answer.whole = False
        return self.answer

    def close(self) -> None:
        self.writer.transport.abort()


async def call(url: str, path: str, body: Any = None) -> Call:
    """Send a request; the answer is still to be read."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = b"" if body is None else json.dumps(body).encode()
    method = "GET" if body is None else "POST"
    head = f"{method} {path} HTTP/1.1\r\nhost: {host}:{port}\r\nconnection: close\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)
    return Call(reader, writer)


async def ask(url: str, path: str, body: Any = None) -> Answer:
    """Send a request and read the whole answer."""
    calling = await call(url, path, body)
    try:
        await calling.head()
        return await calling.rest()
    finally:
        calling.close()


@pytest.fixture(name="ask")
def _ask() -> Callable[..., Any]:
    return ask


def greedy(tokens: int, **more: Any) -> dict[str, Any]:
    """Sampling parameters for so many tokens, the most likely ones."""
    return {"temperature": 0, "max_new_tokens": tokens, "ignore_eos": True, **more}


def prompt(tokens: int, seed: int = 1) -> list[int]:
    """Token ids that look like nothing, the same every time."""
    return [3 + (seed * 7919 + place * 104_729 + place * place * 31) % 2000 for place in range(tokens)]


# Servers


@dataclass
class Stack:
    """The servers, what stands before and beside them, and what tests need to speak to them."""

    servers: SglangServers
    exits: list[tuple[str, str]]
    ask = staticmethod(ask)
    call = staticmethod(call)
    until = staticmethod(until)
    greedy = staticmethod(greedy)
    prompt = staticmethod(prompt)

    @property
    def unified(self) -> str:
        return self.servers.of("unified")[0].url

    def endpoint(self, name: str) -> Endpoint:
        return self.servers.endpoints[name]

    @asynccontextmanager
    async def router(self, prefill: int = 2, decode: int = 2, **settings: Any) -> AsyncIterator[RouterServer]:
        """A router in front of some of the servers."""
        async with RouterServer(
            [Backend(url, port) for url, port in self.servers.prefill[:prefill]],
            [Backend(url) for url in self.servers.decode[:decode]],
            RoundRobin(),
            RoundRobin(),
            RouterSettings(drain_s=1.0, **settings),
        ) as router:
            yield router

    @asynccontextmanager
    async def telemetry(
        self, on_telemetry: Callable[[Telemetry], object] = lambda telemetry: None
    ) -> AsyncIterator[Subscriber]:
        """What the servers publish, heard from each of them before a test begins and is told."""
        begun = False

        def heard(telemetry: Telemetry) -> None:
            if begun:
                on_telemetry(telemetry)

        with Subscriber(heard) as subscriber:
            for endpoint in self.servers.endpoints.values():
                subscriber.connect(endpoint.telemetry)
            subscriber.attach(asyncio.get_running_loop())
            await until(lambda: len(subscriber.latest) == len(self.servers.endpoints))
            subscriber.begin()
            begun = True
            yield subscriber


PROBE = """
import os, statistics, time
import voltana.live.telemetry.sglang_plugin as plugin

original, cpu_ns, wall_ns = plugin.SchedulerTap.before_batch, [], []

def before_batch(self, *arguments, **more):
    wall, cpu = time.perf_counter_ns(), time.thread_time_ns()
    original(self, *arguments, **more)
    cpu_ns.append(time.thread_time_ns() - cpu)
    wall_ns.append(time.perf_counter_ns() - wall)
    if len(cpu_ns) == 100:
        numbers = [statistics.mean(cpu_ns), statistics.median(cpu_ns), statistics.median(wall_ns), self.errors]
        with open(f"{os.environ['VOLTANA_PROBE']}/{self._instance}", "a") as file:
            print(*numbers, file=file)
        cpu_ns.clear(), wall_ns.clear()

plugin.SchedulerTap.before_batch = before_batch

def activate():
    pass
"""
"""An SGLang plugin of the tests' own, which measures what the hook takes. SGLang imports all plugins before it
activates the first."""


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that plugin, and of what it measures."""
    folder = tmp_path_factory.mktemp("probe")
    (folder / "voltana_probe.py").write_text(PROBE)
    info = folder / "voltana_probe-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: voltana-probe\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sglang.srt.plugins]\nvoltana_probe = voltana_probe:activate\n")
    return folder


@pytest.fixture(scope="session")
def environment() -> Environment:
    return Environment(Path(os.environ["VOLTANA_SGLANG"]).absolute())


@pytest.fixture(scope="session")
def forward_pass(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the unified server publishes SGLang's own metrics."""
    return f"ipc://{tmp_path_factory.mktemp('fpm') / 'm'}"


@pytest.fixture(scope="session")
def stack(
    runner: asyncio.Runner,
    environment: Environment,
    probe: Path,
    forward_pass: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Stack]:
    """2P2D and a unified server."""
    logging.getLogger("voltana.live.servers.sglang").setLevel(logging.INFO)
    exits: list[tuple[str, str]] = []
    metrics = {"enable-forward-pass-metrics": True, "forward-pass-metrics-ipc-name": forward_pass}
    servers = SglangServers(
        environment.python,
        environment.model,
        prefill=2,
        decode=2,
        unified=1,
        flags={"max-total-tokens": KV_TOKENS},
        role_flags={"unified": metrics},
        environment={"PYTHONPATH": str(probe), "VOLTANA_PROBE": str(probe)},
        folder=tmp_path_factory.mktemp("logs"),
        on_exit=lambda name, message: exits.append((name, message)),
    )
    runner.run(servers.start())
    try:
        yield Stack(servers, exits)
    finally:
        runner.run(servers.stop())
