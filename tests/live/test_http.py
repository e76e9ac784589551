"""The client of cold paths takes whole answers, and says in a line why there is none."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from voltana.errors import UserError
from voltana.live import http
from voltana.live.gpus import Setpoint
from voltana.live.gpus.emulated import EmulatedGpus
from voltana.live.http import Answer, Connection, ask, demand_json, is_healthy
from voltana.live.servers import Endpoint

OK = b"HTTP/1.1 200 OK\r\n"


class Last(bytes):
    """What a server says before it hangs up."""


class Double:
    """A server that gives scripted answers: bytes, None to hang up, or nothing more to stay silent."""

    def __init__(self, *answers: bytes | None) -> None:
        self.answers = list(answers)
        self.requests: list[bytes] = []
        self.connections = 0
        self.gone = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next((int(x[16:]) for x in head.split(b"\r\n") if x.startswith(b"content-length:")), 0)
                self.requests.append(head + await reader.readexactly(length))
                if not self.answers:
                    continue
                answer = self.answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
                if isinstance(answer, Last):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        finally:
            writer.close()


def against(double: Callable[[], Double], work: Callable[[Double], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        server = double()
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.port = listening.sockets[0].getsockname()[1]
        async with asyncio.timeout(20):
            found = await work(server)
        listening.close()
        return found

    return asyncio.run(main())


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (OK + b"content-length: 5\r\n\r\nhello", Answer(200, b"hello")),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n", Answer(200, b"hello")),
        (Last(OK + b"connection: close\r\n\r\nhello"), Answer(200, b"hello")),
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", Answer(503, b"")),
    ],
)
def test_an_answer_is_whole(raw: bytes, expected: Answer) -> None:
    assert against(lambda: Double(raw), lambda server: ask(server.url, "/x")) == expected


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (None, "hung up before it answered"),
        (Last(OK + b"content-length: 5\r\n\r\nhel"), "hung up within its answer"),
        (b"220 smtp.example\r\ncontent-length\r\n", "answered with bad HTTP"),
    ],
)
def test_no_answer_is_told_with_its_reason(raw: bytes | None, says: str) -> None:
    async def broken(server: Double) -> None:
        with pytest.raises(OSError, match=says):
            await ask(server.url, "/x")

    against(lambda: Double(raw), broken)


def test_a_connection_is_kept_and_renewed() -> None:
    whole = OK + b"content-length: 2\r\n\r\n{}"

    async def three(server: Double) -> None:
        connection = Connection(server.url)
        assert await demand_json(connection, "/a", {"n": 1}) == {}
        assert await demand_json(connection, "/b") == {}
        assert server.connections == 1
        server.answers = [None, whole]  # it dropped the connection while it was idle: asked again on another
        assert await demand_json(connection, "/c") == {}
        assert server.connections == 2
        connection.close()
        await server.gone.wait()

    server: list[Double] = []
    against(lambda: server.append(Double(whole, whole)) or server[0], three)  # type: ignore[func-returns-value]
    first, second, third, again = server[0].requests
    assert first.startswith(b"POST /a HTTP/1.1\r\n") and first.endswith(b'\r\ncontent-length: 8\r\n\r\n{"n": 1}')
    assert second.startswith(b"GET /b HTTP/1.1\r\n") and third == again


def test_a_silent_server_is_given_up_and_hung_up_on() -> None:
    async def silent(server: Double) -> None:
        with pytest.raises(TimeoutError):
            await ask(server.url, "/x", timeout_s=0.05)
        await server.gone.wait()
        connection = Connection(server.url)
        with pytest.raises(UserError, match=r"/x: found no answer within 0\.05 s"):
            await http.demand(connection, "/x", timeout_s=0.05)

    against(Double, silent)


def test_errors_in_one_line() -> None:
    async def wrong(server: Double) -> None:
        connection = Connection(server.url)
        with pytest.raises(UserError, match=r"/x: found status 400, no such clock$"):
            await demand_json(connection, "/x")
        with pytest.raises(UserError, match="/x: found an answer that is not JSON"):
            await demand_json(connection, "/x")
        connection.close()
        assert not await is_healthy("http://127.0.0.1:1")
        with pytest.raises(UserError, match=r"http://127\.0\.0\.1:1/x: the server refused the connection \("):
            await demand_json(Connection("http://127.0.0.1:1"), "/x")

    refused = b"HTTP/1.1 400 Bad\r\ncontent-length: 14\r\n\r\nno such clock\n"
    against(lambda: Double(refused, OK + b"content-length: 1\r\n\r\n?"), wrong)


def test_a_stream_is_thrown_away_but_not_an_error() -> None:
    async def discard(server: Double) -> tuple[Answer, Answer]:
        connection = Connection(server.url)
        return await connection.ask("/s", {}, discard=True), await connection.ask("/s", {}, discard=True)

    stream = OK + b"transfer-encoding: chunked\r\n\r\n" + b"3\r\nabc\r\n" * 1000 + b"0\r\n\r\n"
    error = b"HTTP/1.1 500 Bad\r\ncontent-length: 4\r\n\r\nwhy?"
    assert against(lambda: Double(stream, error), discard) == (Answer(200, b""), Answer(500, b"why?"))


def test_a_clock_that_an_emulated_server_refused_is_sent_again() -> None:
    empty, refused = (head + b"content-length: 2\r\n\r\n{}" for head in (OK, b"HTTP/1.1 500 Bad\r\n"))

    async def command(server: Double) -> None:
        gpus = EmulatedGpus(["d"], (1005, 1410))
        await gpus.attach([Endpoint("d", "decode", "127.0.0.1", server.port, 0, "")])
        gpus.set_clock("d", 1005)
        assert gpus.setpoint("d") == Setpoint(1005, None), "what is desired, refused or not"
        while len(server.requests) < 3:
            await asyncio.sleep(0.01)
        assert server.requests[1] == server.requests[2] and b'{"mhz": 1005' in server.requests[1]
        await gpus.close()

    against(lambda: Double(empty, refused, empty), command)
