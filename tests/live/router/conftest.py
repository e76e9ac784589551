"""A test double of SGLang's prefill and decode servers at protocol level, and a plain client.

Tests are coroutines, each in an event loop of its own. `async with cluster(...) as c` gives servers, router, client.
"""

import asyncio
import gc
import inspect
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from voltana.live.router.fleet import Backend
from voltana.live.router.server import RouterServer
from voltana.live.router.settings import RouterSettings
from voltana.policies.balancers import RoundRobin

TIMEOUT_S = 20.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    uvloop.run(asyncio.wait_for(pyfuncitem.obj(**arguments), TIMEOUT_S))
    return True


async def until(condition: Callable[[], Any], timeout_s: float = 10.0) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


@dataclass
class Message:
    """A request or a response, read whole; `whole` is false if the connection ended within it."""

    first_line: str
    headers: dict[str, str]
    body: bytes = b""
    parts: list[bytes] = field(default_factory=list)
    whole: bool = True

    @property
    def status(self) -> int:
        return int(self.first_line.split()[1])

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def read_message(reader: asyncio.StreamReader, *, bodiless: bool = False) -> Message:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    message = Message(head[0], headers)
    if bodiless:
        return message
    try:
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await reader.readline(), 16):
                message.parts.append((await reader.readexactly(size + 2))[:-2])
            await reader.readline()
        elif "content-length" in headers:
            message.parts.append(await reader.readexactly(int(headers["content-length"])))
        elif head[0].startswith("HTTP/"):
            message.parts.append(await reader.read())
    except (asyncio.IncompleteReadError, ConnectionError, ValueError):
        message.whole = False
    message.body = b"".join(message.parts)
    return message


Script = Callable[["Double", Message, asyncio.StreamWriter], Awaitable[None]]


class Double:
    """A server that pairs prefill and decode by bootstrap room, or does what a test's script says."""

    def __init__(self, phase: str, rooms: dict[int, asyncio.Event]) -> None:
        self.phase = phase
        self.rooms = rooms
        self.requests: list[Message] = []
        self.connections = 0
        self.open: set[asyncio.StreamWriter] = set()
        self.cancelled = 0
        self.healthy = True
        self.tokens = 3
        self.gap_s = 0.0
        self.script: Script | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self.server.sockets[0].getsockname()[1]

    async def kill(self) -> None:
        """Stop listening and cut every connection."""
        self.server.close()
        for writer in list(self.open):
            writer.transport.abort()
        await until(lambda: not self.open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        try:
            while True:
                request = await read_message(reader)
                path = request.first_line.split()[1]
                if path == "/health":
                    self.answer(writer, b"", 200 if self.healthy else 503)
                    continue
                self.requests.append(request)
                work = asyncio.ensure_future((self.script or Double.generate)(self, request, writer))
                gone = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    gone.exception()
                if not work.done():
                    work.cancel()
                    await asyncio.wait({work})
                if work.cancelled() or isinstance(work.exception(), ConnectionError):
                    self.cancelled += 1
                    break
                work.result()
                if gone.done() or writer.is_closing():
                    break
                gone.cancel()
                await asyncio.gather(gone, return_exceptions=True)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open.discard(writer)
            writer.transport.abort()

    @staticmethod
    def answer(writer: asyncio.StreamWriter, body: bytes, status: int = 200, kind: str = "application/json") -> None:
        head = f"HTTP/1.1 {status} Any\r\nserver: double\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)

    @staticmethod
    def begin_stream(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nserver: double\r\ncontent-type: text/event-stream\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n")

    @staticmethod
    def chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
        if writer.is_closing():
            raise ConnectionResetError("the other side is gone")
        writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def generate(self, request: Message, writer: asyncio.StreamWriter) -> None:
        """As SGLang would: decode answers only after prefill got the same room."""
        if not request.first_line.startswith("POST"):
            self.answer(writer, json.dumps({"phase": self.phase, "loads": [{"num_running_reqs": 1}]}).encode())
            return
        try:
            body = request.json
        except ValueError:
            self.answer(writer, b'{"error":"no JSON"}', 400)
            return
        rooms = body["bootstrap_room"]
        for room in rooms if isinstance(rooms, list) else [rooms]:
            event = self.rooms.setdefault(room, asyncio.Event())
            if self.phase == "prefill":
                event.set()
            await event.wait()
        tokens = 1 if self.phase == "prefill" else self.tokens
        if not body.get("stream"):
            one = self.event(0, tokens, body)
            many = isinstance(rooms, list)
            self.answer(writer, json.dumps([one] * len(rooms) if many else one).encode())
            return
        self.begin_stream(writer)
        for number in range(tokens):
            self.chunk(writer, b"data: " + json.dumps(self.event(number, number + 1, body)).encode() + b"\n\n")
            await writer.drain()
            await asyncio.sleep(self.gap_s)
        self.chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    def event(self, index: int, tokens: int, body: Any) -> dict[str, Any]:
        meta: dict[str, Any] = {"completion_tokens": tokens}
        if body.get("return_logprob"):
            meta["input_token_logprobs"] = [[-0.5, 7, None]] if self.phase == "prefill" else []
        return {"text": f"{self.phase}{index}", "index": 0, "meta_info": meta}


class Wire:
    """A client's connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def post(self, path: str, body: Any, *headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        lines = [f"POST {path} HTTP/1.1", "Host: test", f"Content-Length: {len(raw)}", *headers, "", ""]
        self.send("\r\n".join(lines).encode() + raw)

    def get(self, path: str, *headers: str, method: str = "GET") -> None:
        self.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode())

    async def answer(self, *, bodiless: bool = False) -> Message:
        return await read_message(self.reader, bodiless=bodiless)

    def cut(self) -> None:
        self.writer.transport.abort()


class Cluster(SimpleNamespace):
    """Servers, router and its clients; an observer's log."""

    prefill: list[Double]
    decode: list[Double]
    router: RouterServer

    async def wire(self) -> Wire:
        wire = Wire(*await asyncio.open_connection("127.0.0.1", self.router.port, limit=2**24))
        self.wires.append(wire)
        return wire

    async def post(self, path: str, body: Any, *headers: str) -> Message:
        wire = await self.wire()
        wire.post(path, body, *headers)
        return await wire.answer()

    async def get(self, path: str, *headers: str, method: str = "GET") -> Message:
        wire = await self.wire()
        wire.get(path, *headers, method=method)
        return await wire.answer(bodiless=method == "HEAD")

    async def metric(self, name: str) -> float:
        text = (await self.get("/metrics")).body.decode()
        return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name)), 0.0)

    def on_request(self, routed: Any) -> None:
        self.log.append(("request", routed))

    def on_first_byte(self, request_id: int, time_s: float) -> None:
        self.log.append(("first", request_id))

    def on_end(self, request_id: int, time_s: float, outcome: str) -> None:
        self.log.append(("end", outcome))


@pytest.fixture
def cluster() -> Any:
    @asynccontextmanager
    async def make(prefill: int = 1, decode: int = 1, policies: Any = None, **settings: Any) -> AsyncIterator[Cluster]:
        rooms: dict[int, asyncio.Event] = {}
        made = Cluster(
            prefill=[Double("prefill", rooms) for _ in range(prefill)],
            decode=[Double("decode", rooms) for _ in range(decode)],
            wires=[],
            log=[],
        )
        for double in (*made.prefill, *made.decode):
            await double.start()
        prefill_policy, decode_policy = policies or (RoundRobin(), RoundRobin())
        made.router = RouterServer(
            [Backend(each.url, 8998 + i) for i, each in enumerate(made.prefill)],
            [Backend(each.url) for each in made.decode],
            prefill_policy,
            decode_policy,
            settings=RouterSettings(**({"drain_s": 0.2, "health_interval_s": 0.05} | settings)),
            observer=made,
        )
        async with made.router:
            try:
                yield made
            finally:
                for wire in made.wires:
                    wire.cut()
        for double in (*made.prefill, *made.decode):
            await double.kill()

    return make


@pytest.fixture(name="until")
def until_fixture() -> Any:
    return until


@contextmanager
def beside(make: Callable[[], RouterServer]) -> Iterator[tuple[RouterServer, list[float]]]:
    """A router in a thread of its own, and the processor seconds of its loop's iterations, the longest one last."""
    longest, routers, ready, done = [0.0], list[RouterServer](), threading.Event(), threading.Event()

    async def run() -> None:
        async with make() as router:
            routers.append(router)
            ready.set()
            before_s = time.thread_time()
            while not done.is_set():
                await asyncio.sleep(0)
                now_s = time.thread_time()
                longest.append(max(longest.pop(), now_s - before_s))
                before_s = now_s
                time.sleep(0.0002)

    thread = threading.Thread(target=lambda: uvloop.run(run()))
    thread.start()
    assert ready.wait(10)
    gc.disable()
    try:
        yield routers[0], longest
    finally:
        gc.enable()
        done.set()
        thread.join()
