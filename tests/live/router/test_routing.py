"""What a generation request meets between client and servers."""

import asyncio
import json
from math import inf
from typing import Any, cast

import pytest

from voltana.dispatch import Dispatcher
from voltana.errors import UserError
from voltana.live.router.accounts import Account
from voltana.live.router.core import Core
from voltana.live.router.fleet import Backend, Group
from voltana.live.router.server import RouterServer
from voltana.live.router.settings import RouterSettings
from voltana.policies.balancers import RoundRobin
from voltana.state import InstanceLoad, LoadSnapshot, RequestInfo

PATHS = ("/generate", "/v1/completions", "/v1/chat/completions")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
async def test_both_legs_get_the_body_and_the_client_gets_decodes_answer(cluster: Any, path: str, stream: bool) -> None:
    async with cluster() as c:
        body = {"text": "hello", "stream": stream, "x": 1.5}
        answer = await c.post(path, body, "Authorization: Bearer me", "X-Request-Id: r1")
        assert answer.status == 200
        assert answer.headers["server"] == "double"
        if stream:
            assert [part[:5] for part in answer.parts] == [b"data:"] * 4
            assert answer.parts[-1] == b"data: [DONE]\n\n"
            assert json.loads(answer.parts[0][5:])["text"] == "decode0"
        else:
            assert answer.json["text"] == "decode0"
        (prefill,), (decode,) = c.prefill[0].requests, c.decode[0].requests
        assert prefill.body == decode.body
        assert prefill.first_line == f"POST {path} HTTP/1.1"
        assert prefill.headers["authorization"] == decode.headers["authorization"] == "Bearer me"
        assert prefill.headers["host"] == f"127.0.0.1:{c.prefill[0].port}"
        sent = prefill.json
        assert sent["bootstrap_host"] == "127.0.0.1"
        assert sent["bootstrap_port"] == 8998
        assert 0 <= sent["bootstrap_room"] < 2**63
        assert {key: sent[key] for key in body} == body
        assert prefill.body.startswith(json.dumps(body).encode()[:-1])
        assert [kind for kind, _ in c.log] == ["request", "first", "end"]
        assert c.log[0][1].client_id == "r1"
        assert c.log[-1] == ("end", "completed")


async def test_a_batch_gets_lists_of_distinct_rooms(cluster: Any) -> None:
    async with cluster() as c:
        answer = await c.post("/generate", {"text": ["a", "bb", "ccc"]})
        assert len(answer.json) == 3
        sent = c.decode[0].requests[0].json
        assert sent["bootstrap_host"] == ["127.0.0.1"] * 3
        assert sent["bootstrap_port"] == [8998] * 3
        assert len(set(sent["bootstrap_room"])) == 3
        await c.post("/generate", {"input_ids": [[1, 2], [3]]})
        assert c.log[3][1].prompt_tokens == 3
        assert c.log[3][1].prompts == 2


async def test_input_logprobs_of_prefill_come_first(cluster: Any) -> None:
    async with cluster() as c:
        plain = await c.post("/generate", {"text": "a", "return_logprob": True})
        assert plain.json["text"] == "decode0"
        assert plain.json["meta_info"]["input_token_logprobs"] == [[-0.5, 7, None]]
        batch = await c.post("/generate", {"text": ["a", "b"], "return_logprob": True})
        assert [each["meta_info"]["input_token_logprobs"] for each in batch.json] == [[[-0.5, 7, None]]] * 2
        stream = await c.post("/generate", {"text": "a", "return_logprob": True, "stream": True})
        events = [event for event in stream.body.split(b"\n\n") if event]
        assert events[-1] == b"data: [DONE]"
        assert len(events) == 4
        for event in events[:-1]:
            assert json.loads(event[5:])["meta_info"]["input_token_logprobs"] == [[-0.5, 7, None]]


async def test_requests_take_turns_and_connections_are_kept(cluster: Any) -> None:
    async with cluster(2, 2, health_interval_s=60) as c:
        wire = await c.wire()
        for _ in range(8):
            wire.post("/generate", {"text": "a", "stream": True})
            assert (await wire.answer()).status == 200
        assert [len(each.requests) for each in (*c.prefill, *c.decode)] == [4, 4, 4, 4]
        assert {request.json["bootstrap_port"] for request in c.decode[0].requests} <= {8998, 8999}
        assert all(each.connections <= 2 for each in (*c.prefill, *c.decode)), "one, and one of the first health check"


async def test_nobody_waits_for_nagle(cluster: Any) -> None:
    async with cluster() as c:
        wire = await c.wire()
        wire.get("/server_info")
        await wire.answer()
        (client,) = c.router._clients
        connections = [one for each in c.router._instances for one in each.pool._open]
        assert connections
        for transport in (client.transport, *(one.transport for one in connections)):
            assert transport.get_extra_info("socket").getsockopt(6, 1)


async def test_own_endpoints(cluster: Any) -> None:
    async with cluster(2, 1) as c:
        health = await c.get("/health")
        assert (health.status, health.json["up"]) == (200, {"prefill": 2, "decode": 1})
        assert (await c.get("/v1/models")).json["phase"] == "decode"
        assert (await c.get("/server_info")).json["phase"] == "decode"
        head = await c.get("/model_info", method="HEAD")
        assert head.status == 200
        loads = (await c.get("/v1/loads?include=core")).json["loads"]
        assert sorted(load["phase"] for load in loads) == ["decode", "prefill", "prefill"]
        assert c.decode[0].requests[-1].first_line.split()[1] == "/v1/loads?include=core"
        unknown = await c.get("/v2/any")
        assert (unknown.status, unknown.json["error"]["code"]) == (404, "not_found")
        wrong = await c.get("/generate")
        assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
        bad = await c.post("/generate", b"[1")
        assert (bad.status, bad.json["error"]["type"]) == (400, "invalid_request_error")
        await c.post("/generate", {"text": "a"})
        assert await c.metric('voltana_router_requests_total{path="/generate",status="200"}') == 1
        assert await c.metric("voltana_router_ttft_seconds_count") == 1
        assert await c.metric('voltana_router_instance_up{phase="decode"') == 1
        assert await c.metric("voltana_router_in_flight") == 0


async def test_endpoints_of_sglang_are_passed_on(cluster: Any, until: Any) -> None:
    async def names(double: Any, request: Any, writer: Any) -> None:
        double.answer(writer, b'{"id": "a/b"}', 200 if request.first_line.split()[1] != "/v1/models/x" else 404)

    async with cluster(2, 1) as c:
        for double in (*c.prefill, *c.decode):
            double.script = names
        model = await c.get("/v1/models/a/b")
        assert (model.status, model.json["id"]) == (200, "a/b")
        assert c.decode[0].requests[-1].first_line == "GET /v1/models/a/b HTTP/1.1"
        assert (await c.get("/v1/models/x")).status == 404
        assert await c.metric('voltana_router_requests_total{path="/v1/models/{model}",status="200"}') == 1
        for method in ("GET", "POST"):
            before = [len(each.requests) for each in (*c.prefill, *c.decode)]
            assert (await c.get("/flush_cache", method=method)).status == 200
            assert [len(each.requests) for each in (*c.prefill, *c.decode)] == [n + 1 for n in before]
        assert (await c.post("/abort_request", {"rid": "mine"}, "Content-Type: application/json")).status == 200
        for double in (*c.prefill, *c.decode):
            assert double.requests[-1].first_line == "POST /abort_request HTTP/1.1"
            assert double.requests[-1].json == {"rid": "mine"}
            assert double.requests[-1].headers["content-type"] == "application/json"
        healthy = await c.get("/health_generate")
        assert (healthy.status, healthy.body) == (200, b"")
        assert all(each.requests[-1].first_line.startswith("GET /health_generate") for each in (*c.prefill, *c.decode))

        async def ill(double: Any, request: Any, writer: Any) -> None:
            double.answer(writer, b"", 503)

        c.prefill[1].script = ill
        assert (await c.get("/health_generate")).status == 503
        assert (await c.post("/abort_request", {})).status == 502


async def test_a_page_of_another_origin_may_ask(cluster: Any) -> None:
    async with cluster() as c:
        asks = ("Origin: http://page", "Access-Control-Request-Method: POST")
        answer = await c.get(
            "/generate", *asks, "Access-Control-Request-Headers: content-type,x-mine", method="OPTIONS"
        )
        assert (answer.status, answer.body) == (200, b"OK")
        assert answer.headers["access-control-allow-origin"] == "http://page"
        assert answer.headers["access-control-allow-headers"] == "content-type,x-mine"
        assert "POST" in answer.headers["access-control-allow-methods"]
        refused = await c.post("/generate", b"[1", "Origin: http://page")
        assert (refused.status, refused.headers["access-control-allow-origin"]) == (400, "*")
        assert (await c.get("/generate", method="OPTIONS")).status == 405
        assert not c.decode[0].requests


class Watching:
    """A policy that keeps what it is shown."""

    def __init__(self) -> None:
        self.seen: list[list[InstanceLoad]] = []

    def route(self, request: RequestInfo, candidates: Any) -> int:
        self.seen.append(list(candidates))
        return 0


async def test_without_telemetry_a_policy_sees_the_routers_own_counts(cluster: Any, until: Any) -> None:
    policy = Watching()
    async with cluster(1, 2, policies=(RoundRobin(), policy)) as c:
        c.decode[0].gap_s = 0.02
        wires = [await c.wire() for _ in range(3)]
        for wire in wires:
            wire.post("/generate", {"input_ids": [1, 2, 3, 4], "stream": True})
        await until(lambda: len(policy.seen) == 3)
        assert [seen[0][1:] for seen in policy.seen] == [(0, 0), (1, 4), (2, 8)]
        for wire in wires:
            await wire.answer()
        await c.post("/generate", {"text": "x" * 40})
        assert policy.seen[-1][0][1:] == (0, 0)
        assert c.log[-3][1].prompt_tokens == 10


def snapshot(arrived: int, tokens: int, batch: int = 0) -> LoadSnapshot:
    return LoadSnapshot(0.0, 1005, batch, batch * 100, 0, 0, 0.0, inf, arrived, tokens)


def test_an_account_shows_telemetry_and_what_is_on_its_way() -> None:
    told = [snapshot(10, 1000, batch=2)]
    account = Account(lambda: told[0])
    policy = Watching()
    account.begin()
    dispatcher = Dispatcher(policy, [account.standing])

    def dispatch(tokens: int, prompts: int = 1) -> tuple[int, int]:
        dispatcher.dispatch(RequestInfo(0, 0.0, tokens))
        account.sent(prompts, tokens)
        return policy.seen[-1][0][1:]

    assert dispatch(50) == (2, 200)
    assert dispatch(60) == (3, 250)
    assert dispatch(90, prompts=3) == (4, 310)
    assert dispatch(1) == (7, 400), "a batch counts as its prompts"
    told[0] = snapshot(12, 1999, batch=4)  # the first two arrived, with other token counts than estimated
    assert dispatch(7) == (4 + 4, 400 + 91)
    account.gone(1, 7, arrived=False)
    assert dispatch(7) == (4 + 4, 400 + 91)
    told[0] = snapshot(0, 0)  # a new server: nothing is on its way but what the router still has there
    for _ in range(3):
        account.gone(1, 50)
    assert dispatch(5)[0] <= 4
    told[0] = snapshot(99, 9999)
    assert dispatch(5) == (0, 0)


def test_an_account_holds_no_more_than_is_in_flight() -> None:
    account = Account(None)
    for _ in range(1000):
        account.sent(1, 10)
        account.gone(1, 10)
    assert not account._way


def test_a_long_queue_that_is_refused_at_once_needs_no_stack() -> None:
    class Refused:
        started_s = 0.0

        def start(self) -> None:
            core.left()

        def refuse(self, message: str) -> None:
            raise AssertionError

    core = Core(RouterSettings(max_in_flight=1, max_queued=5000), cast(Group, None), cast(Group, None))
    core.in_flight = 1
    for _ in range(5000):
        core.admit(Refused())
    core.left()
    assert (core.in_flight, len(core.queue)) == (0, 0)


def test_bad_addresses_are_one_line() -> None:
    async def make(url: str) -> None:
        RouterServer([Backend(url, 1)], [Backend("http://localhost:1")], RoundRobin(), RoundRobin())

    for url in ("localhost:1", "https://a:1", "http://a:x", "http://a:1/path", ""):
        with pytest.raises(UserError, match="allowed: http://HOST:PORT"):
            asyncio.run(make(url))
    with pytest.raises(UserError, match="found none"):
        Group([], RoundRobin())
