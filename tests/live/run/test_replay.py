"""Requests are sent at their times; what goes wrong meanwhile is told."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from voltana.app.config import RunConfig
from voltana.errors import UserError
from voltana.live.run.command import _arriving
from voltana.live.run.config import LiveConfig
from voltana.live.run.load import Order
from voltana.live.run.recorder import LiveRecorder
from voltana.live.run.replay import SILENT_S, ClientLostError, Replay
from voltana.section import parse
from voltana.sim.run.compose import compose_sim
from voltana.state import Slo
from voltana.traces.stream import Request

pytestmark = pytest.mark.slow


class Nowhere:
    """A writer of a record that nobody keeps."""

    def request(self, row: object) -> None:
        return

    instance = request


def replay(
    requests: Iterator[Request],
    stop_after_s: float,
    silent_s: float = SILENT_S,
    meanwhile: Callable[[Replay], None] = lambda sending: None,
) -> list[str]:
    said: list[str] = []

    async def run() -> None:
        recorder = LiveRecorder(Nowhere(), Slo(0.6, 0.06), {}, ["prefill-0"], ["decode-0"])  # type: ignore[arg-type]
        order = Order("127.0.0.1", 9, time.monotonic(), 0.06, (100, 200), 13)
        stop = asyncio.Event()
        asyncio.get_running_loop().call_later(stop_after_s, stop.set)
        async with asyncio.timeout(20), Replay(order, recorder, said.append, silent_s) as sending:
            meanwhile(sending)
            await sending.run(requests, 1.0, stop)

    asyncio.run(run())
    return said


def test_it_never_waits_silently() -> None:
    requests = [Request(0, 3600.0, 10, 5), Request(1, 3601.0, 10, 5)]
    assert replay(iter(requests), 0.2) == ["the next request comes in 3600 s, at second 3600 of the run"]
    assert replay(iter([Request(0, 9.0, 10, 5), Request(1, 18.0, 10, 5)]), 0.2) == []


def test_a_request_that_cannot_be_read_ends_it() -> None:
    def requests() -> Iterator[Request]:
        yield Request(0, 5.0, 10, 5)
        raise UserError("trace.csv:3: found nothing, allowed: a number")

    with pytest.raises(UserError, match=r"trace.csv:3"):
        replay(requests(), 10.0)


def test_a_frozen_client_is_given_up() -> None:
    """While requests are still to come, when its pipe is full, and when only answers are waited for."""

    def freeze(sending: Replay) -> None:
        os.kill(sending.pid, signal.SIGSTOP)

    for requests in (
        iter([Request(0, 0.1, 10, 5), Request(1, 3600.0, 10, 5)]),
        (Request(number, 0.01, 10, 5) for number in range(5000)),
        iter([Request(0, 0.1, 10, 5)]),
    ):
        with pytest.raises(ClientLostError, match=r"the load client told nothing for 0\.5 s"):
            replay(requests, 60.0, 0.5, freeze)


def test_a_record_that_cannot_be_written_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Nowhere, row: object) -> None:
        raise UserError("requests.parquet: no space left on device")

    monkeypatch.setattr(Nowhere, "request", full)
    with pytest.raises(UserError, match="no space left"):
        replay(iter([Request(0, 0.1, 10, 5), Request(1, 8.0, 10, 5)]), 15.0)


def configuration(*overrides: str) -> Any:
    values = compose_sim(*overrides)
    return parse(RunConfig, {key: value for key, value in values.items() if key in RunConfig.model_fields})


def arriving(*overrides: str) -> tuple[str, float | None]:
    config: LiveConfig = configuration(*overrides)
    return _arriving(config)


def test_a_trace_with_its_own_times_is_known_before_it_is_replayed(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("input_tokens,output_tokens,arrival_s\n10,20,1\n10,20,2\n10,20,4\n10,20,50\n")
    replay = ("trace=file", f"trace.path={trace}", "arrival=timestamps")
    assert arriving(*replay, "duration_s=20") == ("3 requests in 3.0 s, the trace's 0.667 requests/s", 4.0)
    assert arriving(*replay, "duration_s=null")[1] == 50.0
    assert arriving("rps=30", "duration_s=20") == ("30 requests/s", 20)
    with pytest.raises(UserError, match=r"no request arrives within it \(the first at 1 s\)"):
        arriving(*replay, "duration_s=0.5")
    with trace.open("a") as file:
        file.write("1_0,20,60\n")
    with pytest.raises(UserError, match=r"trace.csv:6: input_tokens: found '1_0'"):
        arriving(*replay, "duration_s=null")
