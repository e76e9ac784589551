"""A stop in the middle of new connections and requests, in both event loops."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from tests.live.router.conftest import Double
from voltana.live.router.fleet import Backend
from voltana.live.router.server import RouterServer
from voltana.live.router.settings import RouterSettings
from voltana.policies.balancers import RoundRobin

BODY = b'{"text": "a", "stream": true}'
REQUEST = b"POST /generate HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
STOPS = 12


class Ends:
    """What became of every request that was given a number."""

    def __init__(self) -> None:
        self.ended: dict[int, str] = {}

    def on_request(self, routed: Any) -> None:
        assert routed.request_id not in self.ended

    def on_first_byte(self, request_id: int, time_s: float) -> None:
        assert request_id not in self.ended

    def on_end(self, request_id: int, time_s: float, outcome: str) -> None:
        assert request_id not in self.ended
        self.ended[request_id] = outcome


async def storm(port: int) -> None:
    """A client that asks as fast as it can, over new connections and kept ones, until there is no router."""
    with contextlib.suppress(OSError):
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for _ in range(3):
                writer.write(REQUEST * 2)
                try:
                    await reader.readuntil(b"\r\n\r\n")
                except (asyncio.IncompleteReadError, OSError):
                    break
            writer.transport.abort()


async def stop_in_a_storm(after_s: float, drain_s: float) -> None:
    rooms: dict[int, asyncio.Event] = {}
    prefill, decode = Double("prefill", rooms), Double("decode", rooms)
    for double in (prefill, decode):
        await double.start()
    decode.gap_s = 0.002
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    ends = Ends()
    settings = RouterSettings(drain_s=drain_s, max_in_flight=8, max_queued=20)
    router = RouterServer(
        [Backend(prefill.url, 1)], [Backend(decode.url)], RoundRobin(), RoundRobin(), settings, observer=ends
    )
    await router.start()
    clients = [asyncio.ensure_future(storm(router.port)) for _ in range(40)]
    await asyncio.sleep(after_s)
    await router.stop()
    told = dict(ends.ended)
    assert sorted(told) == list(range(router.core.next_id())), "every request has an end when the stop is done"
    assert not router.core.active and not router.core.queue and router.core.in_flight == 0
    assert not router._tasks and not router._clients
    await asyncio.sleep(0.02)
    assert ends.ended == told, "and nothing comes after it"
    for client in clients:
        client.cancel()
    await asyncio.gather(*clients, return_exceptions=True)
    for double in (prefill, decode):
        await double.kill()
    of_doubles = ("client_connected_cb", "was never retrieved")
    assert not [each for each in faults if not any(words in each["message"] for words in of_doubles)]


@pytest.mark.slow
@pytest.mark.parametrize("drain_s", [0.001, 0.05])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_stop_in_a_storm_of_requests_leaves_none_without_an_end(run: Callable[..., None], drain_s: float) -> None:
    for turn in range(STOPS):
        run(stop_in_a_storm(0.005 + 0.007 * turn, drain_s))
