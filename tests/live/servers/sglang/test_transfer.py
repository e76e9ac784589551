"""KV caches that go another way than Mooncake's."""

from typing import Any

import pytest

from voltana.live.router.fleet import Backend
from voltana.live.router.server import RouterServer
from voltana.live.router.settings import RouterSettings
from voltana.live.servers.sglang.environment import Environment
from voltana.live.servers.sglang.launch import SglangServers
from voltana.policies.balancers import RoundRobin


@pytest.mark.parametrize("transfer", ["nixl"])
async def test_answers_do_not_depend_on_the_way(
    environment: Environment, stack: Any, tmp_path: Any, transfer: str
) -> None:
    """NIXL with UCX over TCP. The caches lie in the host's memory here, which its own checks of GPUs do not see."""
    body = {"input_ids": stack.prompt(700), "sampling_params": stack.greedy(40)}
    expected = (await stack.ask(stack.unified, "/generate", body)).json["output_ids"]
    servers = SglangServers(
        environment.python, environment.model, prefill=1, decode=1, transfer=transfer, folder=tmp_path / "logs"
    )
    async with servers:
        backends = [Backend(url, port) for url, port in servers.prefill], [Backend(url) for url in servers.decode]
        async with RouterServer(*backends, RoundRobin(), RoundRobin(), RouterSettings(drain_s=1.0)) as router:
            answers = [await stack.ask(router.url, "/generate", body) for _ in range(3)]
    assert [answer.json["output_ids"] for answer in answers] == [expected] * 3
    assert "NIXL KVManager initialized with backend: UCX" in (tmp_path / "logs" / "decode-0.log").read_text()
