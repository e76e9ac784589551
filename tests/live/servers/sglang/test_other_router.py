"""`sglang-router`, SGLang's own, takes our emulated servers for SGLang.

It runs from an environment of its own, without SGLang, which VOLTANA_SGLANG_ROUTER names.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from voltana.live.router.fleet import Backend
from voltana.live.router.server import RouterServer
from voltana.live.servers.emulated.cluster import EmulatedCluster
from voltana.live.servers.sglang.launch import free_ports
from voltana.policies.balancers import RoundRobin
from voltana.sim.run.compose import compose_sim

FOLDER = os.environ.get("VOLTANA_SGLANG_ROUTER")
START_S = 60.0

pytestmark = pytest.mark.skipif(not FOLDER, reason="VOLTANA_SGLANG_ROUTER names no environment with sglang-router")

WORDS = {"model": "emulated", "prompt": "the quick brown fox", "max_tokens": 12, "ignore_eos": True}
CHAT = {"model": "emulated", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 12}
IDS = {"input_ids": list(range(40)), "sampling_params": {"max_new_tokens": 12, "ignore_eos": True}}


@asynccontextmanager
async def cluster() -> AsyncIterator[EmulatedCluster]:
    """2P2D with the plant of the default configuration."""
    values = compose_sim()
    sections = {"gpu": values["gpu"], "model": values["model"], "engine": values["serving"]["engine"]}
    async with EmulatedCluster(2, 2, sections) as servers:
        yield servers


@asynccontextmanager
async def other_router(servers: EmulatedCluster, ask: Any, log: Path) -> AsyncIterator[str]:
    """sglang-router in front of the servers, once it answers; gives its URL."""
    port, metrics_port = free_ports("127.0.0.1", 2)
    python = Path(FOLDER or "").absolute() / "bin" / "python"
    command = [python, "-m", "sglang_router.launch_router", "--pd-disaggregation", "--policy", "round_robin"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics_port)]
    for each in servers.of("prefill"):
        command += ["--prefill", each.url, str(each.bootstrap_port)]
    for each in servers.of("decode"):
        command += ["--decode", each.url]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *map(str, command), stdout=output, stderr=output, cwd=log.parent, env={"HOME": str(log.parent)}
        )
    url = f"http://127.0.0.1:{port}"
    try:
        async with asyncio.timeout(START_S):
            while not await ready(ask, url):
                assert process.returncode is None, log.read_text()
                await asyncio.sleep(0.2)
        yield url
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def ready(ask: Any, url: str) -> bool:
    """Whether the router has found its servers: before that it refuses requests."""
    try:
        return (await ask(url, "/generate", IDS)).status == 200
    except (OSError, asyncio.IncompleteReadError):
        return False


@pytest.mark.parametrize(
    ("path", "body", "text_of"),
    [
        ("/generate", IDS, lambda answer: answer["text"]),
        ("/v1/completions", WORDS, lambda answer: answer["choices"][0]["text"]),
        ("/v1/chat/completions", CHAT, lambda answer: answer["choices"][0]["message"]["content"]),
    ],
)
async def test_both_routers_give_the_same_answers(
    ask: Any, tmp_path: Path, path: str, body: dict[str, Any], text_of: Callable[[Any], str]
) -> None:
    async with cluster() as servers, other_router(servers, ask, tmp_path / "router.log") as theirs:
        prefill = [Backend(each.url, each.bootstrap_port) for each in servers.of("prefill")]
        decode = [Backend(each.url) for each in servers.of("decode")]
        async with RouterServer(prefill, decode, RoundRobin(), RoundRobin()) as ours:
            answers = [await ask(url, path, body) for url in (ours.url, theirs)]
            stream = await ask(theirs, path, body | {"stream": True})
    assert [answer.status for answer in answers] == [200, 200]
    first, second = (text_of(answer.json) for answer in answers)
    assert first and first == second
    assert stream.is_done and len(stream.events) >= 12


async def test_it_uses_all_four_servers(ask: Any, tmp_path: Path) -> None:
    async with cluster() as servers, other_router(servers, ask, tmp_path / "router.log") as theirs:
        answers = await asyncio.gather(*(ask(theirs, "/generate", IDS) for _ in range(8)))
        assert [answer.status for answer in answers] == [200] * 8
        work = [(await ask(each.url, "/emulated/energy")).json for each in servers.endpoints.values()]
    assert all(each["iterations"] > 0 for each in work), work
