"""Requests that end early, and servers that do."""

import asyncio
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from voltana.errors import UserError
from voltana.live.clocks.client import ClockClient
from voltana.live.clocks.control import SimulatedControl
from voltana.live.controller import Controller
from voltana.live.gpus import Setpoint
from voltana.live.servers.sglang import launch
from voltana.live.servers.sglang.environment import Environment
from voltana.live.servers.sglang.launch import SglangServers, free_ports
from voltana.live.telemetry.message import Telemetry
from voltana.sim.run.compose import compose_sim
from voltana.state import Decision, LoadSnapshot

IDLE_MHZ, BUSY_MHZ, HIGHEST_MHZ = 705, 1005, 1410
VICTIMS_TOKENS = 7000


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_frees_both_servers(stack: Any, stream: bool) -> None:
    async with stack.telemetry() as subscriber, stack.router(1, 1) as router:
        body = {"input_ids": stack.prompt(50), "sampling_params": stack.greedy(7000), "stream": stream}
        calling = await stack.call(router.url, "/generate", body)
        await stack.until(lambda: subscriber.load("decode-0").batch_size == 1)
        if stream:
            assert (await calling.head()).status == 200
            assert (await calling.part()).startswith(b"data: ")
        calling.close()
        await stack.until(lambda: subscriber.load("decode-0").batch_size == 0, 15)
        assert subscriber.load("decode-0").iterations < 6000, "it was stopped, it did not end"
        await asyncio.sleep(0)
        for name in ("prefill-0", "decode-0"):
            answer = await stack.ask(stack.endpoint(name).url, "/v1/loads?include=core")
            assert answer.json["loads"][0]["num_running_reqs"] == 0
        body = {"input_ids": stack.prompt(50), "sampling_params": stack.greedy(5)}
        assert (await stack.ask(router.url, "/generate", body)).status == 200


async def test_a_server_that_cannot_start_says_why(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "no-model").mkdir()
    servers = SglangServers(
        environment.python, tmp_path / "no-model", prefill=0, decode=0, unified=1, folder=tmp_path / "logs"
    )
    with pytest.raises(UserError, match=r"unified-0 ended with status [1-9]\d* after \d+ s") as caught:
        await servers.start()
    assert "no-model" in str(caught.value) and str(tmp_path / "logs" / "unified-0.log") in str(caught.value)
    assert servers.endpoints == {}


async def test_a_port_that_is_taken_meanwhile_costs_a_start(
    environment: Environment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang binds its ports up to a minute after they were found free."""
    servers = SglangServers(
        environment.python, environment.model, prefill=0, decode=0, unified=1, folder=tmp_path / "logs"
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        first = [*launch.free_ports("127.0.0.1", 1), taken.getsockname()[1]]
        found = iter([first])
        monkeypatch.setattr(launch, "free_ports", lambda host, count: next(found, None) or free_ports(host, count))
        async with servers:
            (endpoint,) = servers.endpoints.values()
            assert endpoint.port != first[0] and servers.status(endpoint.name) is None
    assert next(found, None) is None, "the first start had that port"


class BusyOrIdle:
    """One clock for work, one for none."""

    def decide(self, load: LoadSnapshot) -> Decision:
        return Decision(BUSY_MHZ if load.batch_size else IDLE_MHZ, ask_when_idle_s=0.05)


class Commanded:
    """What a controller asks of GPUs, passed to their owner."""

    def __init__(self, client: ClockClient) -> None:
        self._client = client

    def setpoint(self, instance: str) -> Setpoint:
        clock_mhz = self._client.desired(instance, "clock")
        return Setpoint(int(clock_mhz or 0))

    def set_clock(self, instance: str, clock_mhz: int) -> None:
        self._client.set_clock(instance, clock_mhz)

    def set_power_cap(self, instance: str, power_cap_w: float | None) -> None:
        raise AssertionError("nobody asked for a cap")


def simulated_gpus() -> SimulatedControl:
    values = compose_sim()
    return SimulatedControl(gpu=values["gpu"], model=values["model"], engine=values["serving"]["engine"])


def is_alive(group: int) -> bool:
    """Whether a process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.fatal
async def test_a_server_killed_in_mid_run_takes_only_its_own_requests_with_it(stack: Any) -> None:
    """And its GPU gets its own clock back, as all do in the end."""
    victim = stack.endpoint("decode-1")
    names = [name for name in stack.servers.endpoints if not name.startswith("unified")]
    gpus = dict(zip(names, range(4), strict=True))
    tokens = 400
    controllers: list[Controller] = []

    def hear(telemetry: Telemetry) -> None:
        for each in controllers:
            each.on_telemetry(telemetry)

    async with stack.telemetry(hear) as subscriber, stack.router(health_interval_s=1.0) as router:
        with simulated_gpus().open(list(gpus.values()), "test") as clocks:
            for name, gpu in gpus.items():
                clocks.own(name, [gpu])
            controller = Controller({name: BusyOrIdle() for name in names}, Commanded(clocks), subscriber)
            controllers.append(controller)
            controller.start()
            await kill_in_mid_run(stack, subscriber, router, victim, tokens)
            clocks.release(victim.name)
            await stack.until(lambda: [each.clock_mhz for each in clocks.read()] == [IDLE_MHZ] * 3 + [HIGHEST_MHZ])
            controller.stop()
            owner = clocks.owner_pid
        with pytest.raises(ProcessLookupError):
            os.kill(owner, 0)


async def kill_in_mid_run(stack: Any, subscriber: Any, router: Any, victim: Any, tokens: int) -> None:
    """Three requests on each decode server; one server is killed.

    Those of the victim are so long that on no machine, however busy, the first of them ends before the last has begun.
    """
    calls = []
    for seed in range(6):  # one after the other: each decode server gets every second one
        length = VICTIMS_TOKENS if seed % 2 else tokens
        body = {"input_ids": stack.prompt(50, seed), "sampling_params": stack.greedy(length), "stream": True}
        calls.append(await stack.call(router.url, "/generate", body))
        await calls[-1].head()
        await calls[-1].part()
    await stack.until(lambda: subscriber.load(victim.name).batch_size == 3)
    os.kill(victim.pid, signal.SIGKILL)

    answers = [await calling.rest() for calling in calls]
    whole = [answer for answer in answers if answer.is_done and "error" not in answer.events[-1]]
    broken = [answer for answer in answers if answer not in whole]
    assert (whole, broken) == (answers[::2], answers[1::2])
    assert all(answer.events[-1]["meta_info"]["completion_tokens"] == tokens for answer in whole)
    assert all(b"error" in answer.body or not answer.whole for answer in broken), "a failure looks like one"

    await stack.until(lambda: stack.exits)
    name, message = stack.exits[0]
    assert name == "decode-1" and message.startswith("decode-1 was killed by signal 9")
    assert stack.servers.status("decode-1") == 128 + signal.SIGKILL
    await stack.until(lambda: not is_alive(victim.pid))

    body = {"input_ids": stack.prompt(50), "sampling_params": stack.greedy(5)}
    after = [await stack.ask(router.url, "/generate", body) for _ in range(4)]
    assert [answer.status for answer in after] == [200] * 4, "the router goes on without it"
