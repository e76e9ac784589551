"""`voltana-router` as a process."""

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest


async def start(*arguments: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "voltana.live.router", *arguments, stdout=pipe, stderr=pipe
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_routes_until_it_is_told_to_stop(cluster: Any, number: signal.Signals) -> None:
    async with cluster() as c:
        before_s = time.monotonic()
        process = await start("--prefill", c.prefill[0].url + ",8998", "--decode", c.decode[0].url)
        assert process.stderr is not None
        line = (await process.stderr.readline()).decode()
        assert time.monotonic() - before_s < 5
        assert "listening at http://127.0.0.1:" in line
        c.router.port = int(line.rpartition(":")[2])
        answer = await c.post("/generate", {"text": "a", "stream": True})
        assert answer.body.endswith(b"data: [DONE]\n\n")
        assert c.decode[0].requests[0].json["bootstrap_port"] == 8998
        process.send_signal(number)
        assert await process.wait() == 0
        assert b"Traceback" not in await process.stderr.read()


GOOD = ["--prefill", "http://127.0.0.1:1,2", "--decode", "http://127.0.0.1:3"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--prefill", "http://127.0.0.1:1", "--decode", "http://127.0.0.1:2"], "URL,BOOTSTRAP_PORT"),
        (["--prefill", "http://127.0.0.1:1,2", "--decode", "ftp://a"], "allowed: http://HOST:PORT"),
        ([*GOOD, "--max-in-flight", "0"], "max_in_flight: found 0"),
        ([*GOOD, "--port", "70000"], "port: found 70000"),
        ([*GOOD, "--policy", "ecoroute"], "--predictor: missing"),
        ([*GOOD, "--host", "203.0.113.1"], "cannot listen"),
    ],
)
async def test_bad_input_is_one_line(arguments: list[str], told: str) -> None:
    process = await start(*arguments)
    _, error = await process.communicate()
    assert process.returncode == 2
    assert error.decode().startswith("voltana-router: error: ")
    assert error.decode().count("\n") == 1
    assert told in error.decode()


async def test_ecoroute_routes(cluster: Any, tmp_path: Path) -> None:
    from voltana.prediction.ecopred import BIN_ENDS, EcoPred, Line, Plane

    planes = (Plane(0.005, 1e-4, 1e-8),) * len(BIN_ENDS)
    predictor = EcoPred((1005, 1410), (Line(0.01, 1e-4),) * 2, (planes,) * 2)
    file = tmp_path / "predictor.json"
    predictor.save(file)
    async with cluster(1, 2) as c:
        urls = [each.url for each in c.decode]
        line = ["--prefill", c.prefill[0].url + ",8998", "--decode", *urls, "--policy", "ecoroute"]
        process = await start(*line, "--predictor", str(file), "--itl-ms", "60", "--levels-mhz", "1005", "1410")
        assert process.stderr is not None
        c.router.port = int((await process.stderr.readline()).decode().rpartition(":")[2])
        for _ in range(4):
            assert (await c.post("/generate", {"text": "a"})).status == 200
        assert [len(each.requests) for each in c.decode] == [2, 2]
        process.terminate()
        assert await process.wait() == 0
