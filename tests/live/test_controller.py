"""The controller asks what the simulator would ask, commands what differs, and is quick."""

import asyncio
import json
import math
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench.emulated import Alternating
from voltana.errors import UserError
from voltana.live.controller import Controller
from voltana.live.gpus import Setpoint
from voltana.live.gpus.emulated import EmulatedGpus
from voltana.live.latency import LatencyHistogram
from voltana.live.servers.emulated.cluster import EmulatedCluster
from voltana.live.telemetry.message import IDLE, Telemetry
from voltana.live.telemetry.subscriber import Subscriber
from voltana.policies.build import build_policy
from voltana.sim.run.compose import compose_sim
from voltana.state import Decision, LoadSnapshot


class Clocks:
    """Remembers commands."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, int | float | None]] = []
        self._setpoints: dict[str, Setpoint] = {}

    def setpoint(self, instance: str) -> Setpoint:
        return self._setpoints.get(instance, Setpoint())

    def set_clock(self, instance: str, clock_mhz: int) -> None:
        self.commands.append((instance, clock_mhz))
        self._setpoints[instance] = self.setpoint(instance)._replace(clock_mhz=clock_mhz)

    def set_power_cap(self, instance: str, power_cap_w: float | None) -> None:
        self.commands.append((instance, power_cap_w))
        self._setpoints[instance] = self.setpoint(instance)._replace(power_cap_w=power_cap_w)


class Scripted:
    """Answers with what a function says, and remembers the questions."""

    def __init__(self, answer: Callable[[LoadSnapshot], Decision]) -> None:
        self._answer = answer
        self.asked: list[LoadSnapshot] = []

    def decide(self, load: LoadSnapshot) -> Decision:
        self.asked.append(load)
        return self._answer(load)


def told(subscriber: Subscriber, batch_size: int, idle_s: float = 0.0, instance: str = "d") -> Telemetry:
    now_s = time.monotonic()
    load = IDLE._replace(time_s=now_s - subscriber.start.monotonic_s, batch_size=batch_size, idle_s=idle_s)
    return Telemetry(instance, "decode", load, 0, now_s, 0.0)


def drive(
    controller_of: dict[str, Any], script: Callable[[Controller, Subscriber], Any], **options: Any
) -> tuple[Controller, Clocks]:
    """Run a script against a controller in an event loop."""
    clocks = Clocks()

    async def main() -> Controller:
        with Subscriber() as subscriber:
            controller = Controller(controller_of, clocks, subscriber, **options)
            controller.start()
            async with asyncio.timeout(20):
                await script(controller, subscriber)
            controller.stop()
            return controller

    return asyncio.run(main()), clocks


def test_every_iteration_is_a_question_and_only_changes_are_commands() -> None:
    policy = Scripted(lambda load: Decision(1410 if load.batch_size > 4 else 1005))

    async def script(controller: Controller, subscriber: Subscriber) -> None:
        for batch in (1, 2, 5, 6, 3):
            controller.on_telemetry(told(subscriber, batch))
        controller.on_telemetry(told(subscriber, 9, instance="a stranger"))

    controller, clocks = drive({"d": policy}, script)
    assert [load.batch_size for load in policy.asked] == [0, 1, 2, 5, 6, 3]
    assert [load.clock_mhz for load in policy.asked] == [0, 1005, 1005, 1005, 1410, 1410]
    assert policy.asked[0].idle_s == math.inf
    assert clocks.commands == [("d", 1005), ("d", 1410), ("d", 1005)]
    assert controller.clock_changes == 2 and controller.decision_latency.total == 5


def test_an_idle_instance_is_asked_when_its_controller_wished() -> None:
    def answer(load: LoadSnapshot) -> Decision:
        return Decision(705) if load.batch_size == 0 and load.idle_s >= 0.05 else Decision(1410, ask_when_idle_s=0.05)

    policy = Scripted(answer)

    async def script(controller: Controller, subscriber: Subscriber) -> None:
        controller.on_telemetry(told(subscriber, 3))
        for idle_s in (0.0, 0.01, 0.02):
            controller.on_telemetry(told(subscriber, 0, idle_s))
        while controller.clock_mhz("d") != 705:
            await asyncio.sleep(0.005)
        controller.on_telemetry(told(subscriber, 0, 1.0))
        await asyncio.sleep(0.02)

    _, clocks = drive({"d": policy}, script)
    asked = [(load.batch_size, load.idle_s) for load in policy.asked]
    assert len(asked) == 3, "at the start, at the iteration, and once while it idled"
    assert asked[1] == (3, 0.0) and asked[2][0] == 0 and 0.05 <= asked[2][1] < 1
    assert clocks.commands == [("d", 705), ("d", 1410), ("d", 705)]


def test_work_that_comes_first_cancels_the_question() -> None:
    policy = Scripted(lambda load: Decision(1410, ask_when_idle_s=0.04))

    async def script(controller: Controller, subscriber: Subscriber) -> None:
        controller.on_telemetry(told(subscriber, 1))
        controller.on_telemetry(told(subscriber, 0, 0.0))
        controller.on_telemetry(told(subscriber, 1))
        await asyncio.sleep(0.08)

    drive({"d": policy}, script)
    assert [load.batch_size for load in policy.asked] == [0, 1, 1]


def test_power_caps_are_commanded() -> None:
    policy = Scripted(lambda load: Decision(1410, power_cap_w=250.0 if load.batch_size else None))

    async def script(controller: Controller, subscriber: Subscriber) -> None:
        controller.on_telemetry(told(subscriber, 1))
        controller.on_telemetry(told(subscriber, 2))

    _, clocks = drive({"d": policy}, script)
    assert clocks.commands == [("d", 1410), ("d", 250.0)]


@pytest.mark.parametrize(("blind_mhz", "commands"), [(1410, [("d", 705), ("d", 1410)]), (None, [("d", 705)])])
def test_a_silent_instance_is_driven_blindly(blind_mhz: int | None, commands: list[Any]) -> None:
    async def script(controller: Controller, subscriber: Subscriber) -> None:
        controller.on_telemetry(told(subscriber, 1))
        await asyncio.sleep(0.3)

    _, clocks = drive({"d": Scripted(lambda load: Decision(705))}, script, silent_s=0.1, blind_mhz=blind_mhz)
    assert clocks.commands == commands


def test_a_failing_policy_keeps_the_clock_hurts_nobody_else_and_is_told_of_once() -> None:
    def fail(load: LoadSnapshot) -> Decision:
        if load.batch_size:
            raise RuntimeError(f"broken at {load.batch_size}")
        return Decision(1005)

    good = Scripted(lambda load: Decision(1410))
    told_of: list[str] = []

    async def script(controller: Controller, subscriber: Subscriber) -> None:
        for batch, instance in ((1, "d"), (1, "e"), (2, "d")):
            controller.on_telemetry(told(subscriber, batch, instance=instance))

    failing = {"d": Scripted(fail), "e": good}
    controller, clocks = drive(failing, script, on_error=lambda error: told_of.append(str(error)))
    assert clocks.commands == [("d", 1005), ("e", 1410)]
    assert controller.errors == 2 and told_of == ["broken at 1"]
    assert len(good.asked) == 2


def test_power_readings_go_to_those_who_ask() -> None:
    policy = Scripted(lambda load: Decision(1410))
    policy.reads_power = True  # type: ignore[attr-defined]
    other = Scripted(lambda load: Decision(1410))
    watts = {"d": 200.0, "e": 100.0}

    async def script(controller: Controller, subscriber: Subscriber) -> None:
        for instance in watts:
            controller.on_telemetry(told(subscriber, 1, instance=instance))

    drive({"d": policy, "e": other}, script, power_w=watts.get)
    assert (policy.asked[-1].power_w, policy.asked[-1].cluster_power_w) == (200.0, 300.0)
    assert (other.asked[-1].power_w, other.asked[-1].cluster_power_w) == (None, None)
    with pytest.raises(UserError, match="reads the power sensor"):
        drive({"d": policy}, script)
    policy.reads_requests = True  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="single requests"):
        drive({"d": policy}, script, power_w=watts.get)


@given(st.lists(st.floats(1e-6, 9.0), min_size=1, max_size=300), st.floats(0.01, 1.0))
def test_quantiles_of_the_histogram(latencies: list[float], share: float) -> None:
    histogram = LatencyHistogram()
    for latency_s in latencies:
        histogram.add(latency_s)
    exact = sorted(latencies)[math.ceil(share * len(latencies)) - 1]
    assert exact * (1 - 1e-9) <= histogram.quantile_s(share) <= exact * 1.13
    assert histogram.total == len(latencies) and histogram.quantile_s(1.0) == max(latencies)


def test_an_empty_histogram() -> None:
    """No latency is not a latency of zero."""
    assert LatencyHistogram().summary_ms() == {"count": 0, "p50": None, "p99": None, "max": None}
    assert LatencyHistogram().quantile_s(0.5) is None


async def busy(cluster: EmulatedCluster, output_tokens: int) -> None:
    """One request to both servers, its answer read to the end."""
    prefill, decode = cluster.endpoints.values()
    body: dict[str, Any] = {"input_ids": [1] * 300, "sampling_params": {"max_new_tokens": output_tokens}}
    body |= {"bootstrap_host": prefill.host, "bootstrap_port": prefill.bootstrap_port, "bootstrap_room": 1}
    payload = json.dumps(body).encode()
    head = "POST /generate HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(payload)}\r\n\r\n"
    answers = []
    for server in (prefill, decode):
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(head.encode() + payload)
        answers.append((reader, writer))
    for reader, writer in answers:
        assert b" 200 OK" in await reader.read()
        writer.close()


def cluster_run(policies: Callable[[str], Any], output_tokens: int) -> tuple[Controller, list[int]]:
    """A request served by emulated servers whose clocks are controlled; the clocks that decode had."""
    values = compose_sim()
    sections = {"gpu": values["gpu"], "model": values["model"], "engine": values["serving"]["engine"]}
    seen: list[int] = []

    async def main() -> Controller:
        async with asyncio.timeout(30), EmulatedCluster(1, 1, sections) as cluster:

            def watch(telemetry: Telemetry) -> None:
                controller.on_telemetry(telemetry)
                if telemetry.instance == "decode-0" and telemetry.load.batch_size:
                    seen.append(telemetry.load.clock_mhz)

            gpus = EmulatedGpus(list(cluster.endpoints), ())
            await gpus.attach(list(cluster.endpoints.values()))
            with Subscriber(watch) as subscriber:
                instances = {name: policies(name) for name in cluster.endpoints}
                controller = Controller(instances, gpus, subscriber)
                for endpoint in cluster.endpoints.values():
                    subscriber.connect(endpoint.telemetry)
                subscriber.attach(asyncio.get_running_loop())
                while len(subscriber.latest) < 2:
                    await asyncio.sleep(0.01)
                controller.start()
                await busy(cluster, output_tokens)
                controller.stop()
                await gpus.close()
                return controller

    return asyncio.run(main()), seen


@pytest.mark.slow
def test_commands_reach_the_servers_within_an_iteration() -> None:
    controller, seen = cluster_run(lambda name: Alternating(1005, 1410), 60)
    changes = sum(first != second for first, second in pairwise(seen))
    assert len(seen) >= 55 and changes > 40, "the clock of one iteration was commanded at the one before"
    assert controller.errors == 0
    assert controller.decision_latency.quantile_s(0.5) < 2e-3


@pytest.mark.slow
def test_the_policies_of_the_simulator_run_here() -> None:
    config = {"_target_": "voltana.policies.static.StaticClock", "clock_mhz": 1005}
    offers = {"clocks_mhz": lambda: tuple(range(210, 1411, 15))}
    controller, seen = cluster_run(lambda name: build_policy("policy", config, offers), 20)
    assert set(seen) == {1005} and controller.clock_changes == 0
