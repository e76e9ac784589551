"""A scheduler in the router: it holds requests and sends them when it likes."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from voltana.policies.balancers import RoundRobin
from voltana.state import InstanceLoad, PrefillPlan, RequestInfo

BODY = {"text": "hello"}


class Gate:
    """Holds everything until it is opened; then sends each to the emptiest instance that is up, last come first."""

    def __init__(self) -> None:
        self.open = False
        self.shown: list[tuple[float, list[int], list[int]]] = []
        self.wish_s: float | None = 3600.0
        self.error: Exception | None = None

    def schedule(self, time_s: float, waiting: Sequence[RequestInfo], instances: Sequence[InstanceLoad]) -> PrefillPlan:
        self.shown.append((time_s, [each.request_id for each in waiting], [load.requests for load in instances]))
        if self.error is not None:
            raise self.error
        if not self.open:
            return PrefillPlan((), None if self.wish_s is None else time_s + self.wish_s)
        loads = [load.requests for load in instances]
        sends = []
        for place in reversed(range(len(waiting))):
            chosen = loads.index(min(loads))
            loads[chosen] += 1
            sends.append((place, chosen))
        return PrefillPlan(sends)


async def test_requests_wait_until_the_scheduler_sends_them(cluster: Any, until: Callable[..., Any]) -> None:
    gate = Gate()
    async with cluster(prefill=2, decode=1, policies=(gate, RoundRobin())) as c:
        asked = [asyncio.create_task(c.post("/generate", BODY)) for _ in range(4)]
        await until(lambda: len(gate.shown) == 4)
        await asyncio.sleep(0.05)
        assert not any(each.requests for each in (*c.prefill, *c.decode)) and not c.log
        gate.open = True
        c.router.core.prefill.heard()
        assert [(await each).status for each in asked] == [200] * 4
        assert [len(each.requests) for each in c.prefill] == [2, 2]
        assert next(routed.request_id for kind, routed in c.log if kind == "request") == 3, "in the order of the plan"


async def test_it_is_asked_again_at_the_time_it_wished(cluster: Any, until: Callable[..., Any]) -> None:
    gate = Gate()
    gate.wish_s = 0.1
    async with cluster(policies=(gate, RoundRobin())) as c:
        asked = asyncio.create_task(c.post("/generate", BODY))
        await until(lambda: len(gate.shown) >= 3)
        waits = [later[0] - earlier[0] for earlier, later in zip(gate.shown, gate.shown[1:], strict=False)]
        assert all(wait >= 0.099 for wait in waits)
        gate.open = True
        assert (await asked).status == 200


async def test_a_client_that_goes_leaves_the_queue(cluster: Any, until: Callable[..., Any]) -> None:
    gate = Gate()
    async with cluster(policies=(gate, RoundRobin())) as c:
        wire = await c.wire()
        wire.post("/generate", BODY)
        await until(lambda: len(gate.shown) == 1)
        wire.cut()
        await until(lambda: ("end", "disconnected") in c.log)
        gate.open = True
        assert (await c.post("/generate", BODY)).status == 200
        assert gate.shown[-1][1] == [1] and len(c.prefill[0].requests) == 1


async def test_an_instance_that_is_down_looks_full_and_another_takes_its_request(
    cluster: Any, until: Callable[..., Any]
) -> None:
    gate = Gate()
    gate.open = True
    async with cluster(prefill=2, policies=(gate, RoundRobin()), health_interval_s=30) as c:
        await c.prefill[0].kill()
        assert (await c.post("/generate", BODY)).status == 200
        assert gate.shown[-1][2] == [0, 0] and len(c.prefill[1].requests) == 1, "sent to the first, which is gone"
        assert (await c.post("/generate", BODY)).status == 200
        assert gate.shown[-1][2][0] > 1e6 and gate.shown[-1][2][1] == 0
        assert len(c.prefill[1].requests) == 2


async def test_with_no_instance_left_those_who_wait_are_refused(cluster: Any, until: Callable[..., Any]) -> None:
    gate = Gate()
    async with cluster(policies=(gate, RoundRobin())) as c:
        waits = asyncio.create_task(c.post("/generate", BODY))
        await until(lambda: len(gate.shown) == 1)
        await c.prefill[0].kill()
        assert (await waits).status == 503
        assert (await c.post("/generate", BODY)).status == 503


async def test_what_it_raises_fails_the_request_and_is_told(cluster: Any) -> None:
    gate = Gate()
    gate.error = ValueError("no")
    async with cluster(policies=(gate, RoundRobin())) as c:
        assert (await c.post("/generate", BODY)).status == 500
        gate.error, gate.open = None, True
        assert (await c.post("/generate", BODY)).status == 200
        assert gate.shown[-1][1] == [1]
