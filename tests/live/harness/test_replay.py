"""What is replayed live: said before, and an error in the middle of it ends the run."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from live.harness.command import _arriving
from live.harness.config import LiveConfig
from live.harness.load import Order
from live.harness.recorder import LiveRecorder
from live.harness.replay import Replay
from sim.compose import compose_sim
from traces import Request
from voltana.config import RunConfig, parse
from voltana.errors import UserError
from voltana.record import RecordWriter
from voltana.state import Slo


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


def test_an_error_among_the_requests_ends_the_replay(tmp_path: Path) -> None:
    def requests() -> Iterator[Request]:
        yield Request(0, 60.0, 10, 20)
        raise UserError("trace.csv:9000: found nonsense")

    async def replay() -> None:
        with RecordWriter(tmp_path, {}) as writer:
            recorder = LiveRecorder(writer, Slo(0.6, 0.06), {}, ["prefill-0"], ["decode-0"])
            order = Order("127.0.0.1", 1, time.monotonic() - 60, 0.06, (100, 200), 1)
            async with asyncio.timeout(20), Replay(order, recorder) as client:
                await client.run(requests(), 60.0, asyncio.Event())

    with pytest.raises(UserError, match=r"^trace.csv:9000: found nonsense$"):
        asyncio.run(replay())
