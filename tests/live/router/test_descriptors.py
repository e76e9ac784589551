"""File descriptors: the router lives within its limit, and its own shortage is nobody else's fault."""

import asyncio
import resource
import sys
from typing import Any

import pytest

from voltana.errors import UserError
from voltana.live.router.descriptors import backlog, fit
from voltana.live.router.settings import RouterSettings

LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
sys.argv[0] = "voltana-router"
runpy.run_module("voltana.live.router", run_name="__main__")
"""


async def start(c: Any, soft: int, hard: int, *arguments: str) -> tuple[asyncio.subprocess.Process, list[str]]:
    """A router as a process with these limits, and what it said until it listened."""
    line = ["--prefill", c.prefill[0].url + ",8998", "--decode", c.decode[0].url, *arguments]
    code = LIMITED.format(soft=soft, hard=hard)
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, *line, stdout=pipe, stderr=pipe)
    assert process.stderr is not None
    said = [(await process.stderr.readline()).decode()]
    while said[-1] and "listening" not in said[-1]:
        said.append((await process.stderr.readline()).decode())
    c.router.port = int(said[-1].rpartition(":")[2])
    return process, said


async def streams(c: Any, number: int) -> list[int]:
    """Statuses of so many streams at a time; each must be whole."""

    async def one() -> int:
        wire = await c.wire()
        wire.post("/generate", {"text": "a", "stream": True})
        answer = await wire.answer()
        wire.cut()
        assert answer.whole, answer
        assert answer.status == 503 or answer.body.endswith(b"[DONE]\n\n")
        return int(answer.status)

    return list(await asyncio.gather(*(one() for _ in range(number))))


async def ups(c: Any) -> list[float]:
    return [await c.metric(f'voltana_router_instance_up{{phase="{phase}"') for phase in ("prefill", "decode")]


@pytest.mark.slow
async def test_more_streams_than_descriptors_are_refused_and_no_server_is_blamed(cluster: Any) -> None:
    async with cluster() as c:
        c.decode[0].gap_s = 0.3
        own = c.router.port
        process, said = await start(c, 256, 256, "--queue-timeout-s", "0.5")
        assert any("max_in_flight and max_connections: found 1024 and 8192, lowered to " in line for line in said)
        statuses = await streams(c, 170)
        assert set(statuses) == {200, 503}
        assert statuses.count(200) >= 30
        assert await ups(c) == [1, 1]
        assert set(await streams(c, 10)) == {200}
        process.terminate()
        await process.wait()
        c.router.port = own


@pytest.mark.slow
async def test_the_soft_limit_is_raised(cluster: Any) -> None:
    async with cluster() as c:
        own = c.router.port
        process, said = await start(c, 128, 4096, "--max-in-flight", "200", "--max-connections", "300")
        assert not any("lowered" in line for line in said)
        assert 700 < resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0] <= 4096
        assert await streams(c, 200) == [200] * 200
        process.terminate()
        await process.wait()
        c.router.port = own


@pytest.mark.slow
async def test_a_shortage_at_work_is_answered_with_503(cluster: Any) -> None:
    async with cluster() as c:
        own = c.router.port
        options = ("--health-interval-s", "0.02", "--upstream-keep-alive-s", "0.000001")
        process, _ = await start(c, 4096, 4096, *options)
        wires = [await c.wire() for _ in range(8)]
        for wire in wires:
            wire.get("/health")
            await wire.answer()
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (5, 4096))
        for _ in range(3):
            for wire in wires:
                wire.post("/generate", {"text": "a"})
            for wire in wires:
                answer = await wire.answer()
                assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                assert "short of" in answer.json["error"]["message"]
            await asyncio.sleep(0.05)
        wires[0].get("/health")
        assert (await wires[0].answer()).json["up"] == {"prefill": 1, "decode": 1}
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (4096, 4096))
        assert await streams(c, 8) == [200] * 8
        assert await c.metric("voltana_router_instance_failures_total") == 0
        process.terminate()
        await process.wait()
        assert process.stderr is not None
        assert (await process.stderr.read()).count(b"no connection to") <= 4
        c.router.port = own


def test_settings_are_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [(1024, 1024)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: now[0])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: now.append(limits))
    fitted = fit(RouterSettings())
    assert 150 < fitted.max_in_flight < 250
    assert fitted.max_connections > fitted.max_in_flight
    assert 2 * fitted.max_in_flight + fitted.max_connections + backlog(1024) < 1024 - 60
    assert fit(RouterSettings(max_in_flight=3, max_connections=9)) == RouterSettings(max_in_flight=3, max_connections=9)
    now[0] = (60, 60)
    with pytest.raises(UserError, match="file descriptors: found a limit of 60"):
        fit(RouterSettings())
    now[0] = (1024, resource.RLIM_INFINITY)
    assert fit(RouterSettings()) == RouterSettings()
    assert now[-1][0] > 10_000
