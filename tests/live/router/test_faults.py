"""What goes wrong: errors, deaths, disconnects, slow clients, overload."""

import asyncio
import json
import socket
from typing import Any

import pytest

from voltana.policies.balancers import RoundRobin

STREAM = {"text": "hello", "stream": True}


def failing(status: int, body: bytes) -> Any:
    async def script(double: Any, request: Any, writer: Any) -> None:
        double.answer(writer, body, status)

    return script


async def silent(double: Any, request: Any, writer: Any) -> None:
    await asyncio.sleep(60)


async def dies_before_answering(double: Any, request: Any, writer: Any) -> None:
    writer.transport.abort()


async def dies_mid_stream(double: Any, request: Any, writer: Any) -> None:
    double.begin_stream(writer)
    double.chunk(writer, b"data: 1\n\n")
    await writer.drain()
    await asyncio.sleep(0.02)
    writer.transport.abort()


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_an_error_of_either_leg_is_passed_on_and_the_other_closed(
    cluster: Any, until: Any, phase: str, status: int
) -> None:
    async with cluster() as c:
        bad, good = (c.prefill[0], c.decode[0]) if phase == "prefill" else (c.decode[0], c.prefill[0])
        bad.script = failing(status, b'{"error":"as I say"}')
        good.script = silent
        answer = await c.post("/generate", STREAM)
        assert (answer.status, answer.body) == (status, b'{"error":"as I say"}')
        await until(lambda: good.cancelled == 1)
        assert c.log[-1] == ("end", "rejected")


async def test_an_error_within_prefills_stream_is_passed_on(cluster: Any, until: Any) -> None:
    async def errs(double: Any, request: Any, writer: Any) -> None:
        double.begin_stream(writer)
        double.chunk(writer, b'data: {"error": {"message": "too long", "code": 400}}\n\n')
        double.chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    async with cluster() as c:
        c.prefill[0].script = errs
        answer = await c.post("/generate", STREAM)
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.body.startswith(b'data: {"error"')
        assert answer.body.endswith(b"data: [DONE]\n\n")
        await until(lambda: c.decode[0].cancelled == 1)


@pytest.mark.parametrize("when", ["waiting", "streaming"])
@pytest.mark.parametrize("logprobs", [False, True])
async def test_a_client_that_leaves_closes_both_legs(cluster: Any, until: Any, when: str, logprobs: bool) -> None:
    async with cluster() as c:
        if when == "waiting":
            c.prefill[0].script = silent
        else:
            c.decode[0].gap_s = 0.5
        wire = await c.wire()
        wire.post("/generate", STREAM | {"return_logprob": logprobs})
        await until(lambda: c.prefill[0].requests and c.decode[0].requests)
        if when == "streaming":
            await wire.reader.readuntil(b"decode0")
        wire.cut()
        await until(lambda: c.decode[0].cancelled == 1)
        if when == "waiting":
            await until(lambda: c.prefill[0].cancelled == 1)
        await until(lambda: c.router.core.in_flight == 0)
        assert c.log[-1] == ("end", "disconnected")
        assert all(each.account.own.requests == 0 for each in c.router._instances)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_an_instance_that_dies_before_it_answers_is_a_502(cluster: Any, until: Any, phase: str) -> None:
    async with cluster() as c:
        bad, good = (c.prefill[0], c.decode[0]) if phase == "prefill" else (c.decode[0], c.prefill[0])
        bad.script, good.script = dies_before_answering, silent
        answer = await c.post("/generate", STREAM)
        assert answer.status == 502
        assert bad.url in answer.json["error"]["message"]
        await until(lambda: good.cancelled == 1)
        assert len(bad.requests) <= 2, "at most the one resending of a kept connection"


async def test_a_stream_that_breaks_off_never_looks_whole(cluster: Any) -> None:
    async with cluster() as c:
        c.decode[0].script = dies_mid_stream
        answer = await c.post("/generate", STREAM)
        assert answer.status == 200
        assert answer.body == b"data: 1\n\n"
        assert not answer.whole
        assert c.log[-1] == ("end", "failed")


async def test_prefill_may_die_once_decode_has_begun(cluster: Any) -> None:
    started = asyncio.Event()

    async def dies_late(double: Any, request: Any, writer: Any) -> None:
        double.rooms.setdefault(request.json["bootstrap_room"], asyncio.Event()).set()
        double.begin_stream(writer)
        await started.wait()
        writer.transport.abort()

    async with cluster() as c:
        c.prefill[0].script = dies_late
        c.decode[0].gap_s = 0.02
        wire = await c.wire()
        wire.post("/generate", STREAM)
        await wire.reader.readuntil(b"decode0")
        started.set()
        rest = await wire.reader.readuntil(b"0\r\n\r\n")
        assert b"[DONE]" in rest


async def test_garbage_from_an_instance_is_a_502(cluster: Any) -> None:
    async def garbage(double: Any, request: Any, writer: Any) -> None:
        writer.write(b"\x00\x01 not http\r\n\r\n")

    async with cluster() as c:
        c.decode[0].script = garbage
        answer = await c.post("/generate", STREAM)
        assert answer.status == 502
        assert "bad HTTP" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("interim", "status"),
    [
        (b"HTTP/1.1 103 Early\r\nlink: a\r\n\r\n" * 10, 200),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 5000, 502),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", 502),
    ],
)
async def test_interim_answers_are_passed_over_up_to_a_bound(cluster: Any, interim: bytes, status: int) -> None:
    async def hesitates(double: Any, request: Any, writer: Any) -> None:
        writer.write(interim)
        await double.generate(request, writer)

    async with cluster() as c:
        c.decode[0].script = hesitates
        answer = await c.post("/generate", STREAM)
        assert answer.status == status
        assert answer.body.endswith(b"[DONE]\n\n") if status == 200 else "bad HTTP" in answer.json["error"]["message"]


@pytest.mark.slow
async def test_a_silent_instance_is_a_504(cluster: Any, until: Any) -> None:
    async with cluster(first_byte_timeout_s=0.1) as c:
        c.decode[0].script = silent
        answer = await c.post("/generate", STREAM)
        assert (answer.status, answer.json["error"]["code"]) == (504, "upstream_timeout")
        await until(lambda: c.decode[0].cancelled == 1)


@pytest.mark.slow
async def test_an_answer_that_stalls_is_broken_off(cluster: Any, until: Any) -> None:
    async with cluster(idle_timeout_s=0.1) as c:
        c.decode[0].gap_s = 60
        answer = await c.post("/generate", STREAM)
        assert (answer.status, answer.whole) == (200, False)
        await until(lambda: c.decode[0].cancelled == 1)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_an_unreachable_instance_is_replaced_taken_out_and_brought_back(
    cluster: Any, until: Any, phase: str
) -> None:
    async with cluster(2, 2, health_interval_s=0.05) as c:
        dead = getattr(c, phase)[0]
        await dead.kill()
        answers = [await c.post("/generate", STREAM) for _ in range(4)]
        assert [each.status for each in answers] == [200] * 4
        assert not dead.requests
        assert await c.metric(f'voltana_router_instance_up{{phase="{phase}",url="{dead.url}"}}') == 0
        assert (await c.get("/health")).status == 200
        await dead.start()
        instance = next(each for each in c.router._instances if each.url == dead.url)
        await until(lambda: instance.up)
        for _ in range(2):
            await c.post("/generate", STREAM)
        assert dead.requests


async def test_failed_health_checks_take_an_instance_out(cluster: Any, until: Any) -> None:
    async with cluster(1, 2, health_interval_s=0.02) as c:
        c.decode[0].healthy = False
        instance = c.router.core.decode.instances[0]
        await until(lambda: not instance.up)
        for _ in range(3):
            assert (await c.post("/generate", STREAM)).status == 200
        assert not c.decode[0].requests
        c.decode[0].healthy = True
        await until(lambda: instance.up)


async def test_without_any_instance_the_answer_is_503(cluster: Any, until: Any) -> None:
    async with cluster(health_interval_s=0.02) as c:
        await c.decode[0].kill()
        first = await c.post("/generate", STREAM)
        assert first.status in (502, 503)
        await until(lambda: not c.router.core.decode.up)
        answer = await c.post("/generate", STREAM)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert (await c.get("/health")).status == 503
        assert (await c.get("/v1/models")).status == 503
        assert c.router.core.in_flight == 0


async def test_a_kept_connection_that_went_stale_is_replaced(cluster: Any, until: Any) -> None:
    async with cluster(health_interval_s=60) as c:
        assert (await c.post("/generate", STREAM)).status == 200
        once = [False]

        async def stale(double: Any, request: Any, writer: Any) -> None:
            if once[0]:
                await double.generate(request, writer)
            else:
                once[0] = True
                writer.transport.abort()

        c.decode[0].script = stale
        assert (await c.post("/generate", STREAM)).status == 200
        for writer in list(c.decode[0].open):
            writer.transport.abort()
        pool = c.router.core.decode.instances[0].pool
        await until(lambda: pool.open == 0)
        assert (await c.post("/generate", STREAM)).status == 200


async def test_a_full_router_queues_then_refuses(cluster: Any, until: Any) -> None:
    async with cluster(max_in_flight=1, max_queued=1) as c:
        c.decode[0].gap_s = 0.05
        wires = [await c.wire() for _ in range(3)]
        for number, wire in enumerate(wires):
            wire.post("/generate", STREAM)
            await until(lambda n=number: c.router.core.in_flight + len(c.router.core.queue) == min(n + 1, 2))
        refused = await wires[2].answer()
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        await until(lambda: c.decode[0].requests)
        assert len(c.decode[0].requests) == 1
        assert [(await wire.answer()).status for wire in wires[:2]] == [200, 200]
        assert c.router.core.in_flight == 0


@pytest.mark.slow
async def test_a_queued_request_can_leave_or_wait_too_long(cluster: Any, until: Any) -> None:
    async with cluster(max_in_flight=1, queue_timeout_s=0.1) as c:
        c.decode[0].script = silent
        first, second, third = [await c.wire() for _ in range(3)]
        first.post("/generate", STREAM)
        await until(lambda: c.decode[0].requests)
        second.post("/generate", STREAM)
        await until(lambda: len(c.router.core.queue) == 1)
        second.cut()
        await until(lambda: not c.router.core.queue)
        third.post("/generate", STREAM)
        assert (await third.answer()).status == 503


@pytest.mark.slow
@pytest.mark.parametrize("logprobs", [False, True])
async def test_a_slow_client_slows_the_instance_not_the_router(cluster: Any, until: Any, logprobs: bool) -> None:
    sent = [0]
    total = 24 * 2**20

    async def floods(double: Any, request: Any, writer: Any) -> None:
        event = b"data: " + json.dumps({"meta_info": {"input_token_logprobs": []}, "x": "y" * 16000}).encode() + b"\n\n"
        double.begin_stream(writer)
        while sent[0] < total:
            double.chunk(writer, event)
            sent[0] += len(event)
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with cluster() as c:
        c.decode[0].script = floods
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", c.router.port))
        raw = json.dumps(STREAM | {"return_logprob": logprobs}).encode()
        sock.sendall(b"POST /generate HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n%b" % (len(raw), raw))
        client = None
        await until(lambda: c.router._clients and next(iter(c.router._clients)).paused)
        (client,) = c.router._clients
        last = -1
        while last != sent[0]:  # until the instance is stopped by what the kernel holds
            last = sent[0]
            await asyncio.sleep(0.1)
        assert sent[0] < total
        assert client.transport.get_write_buffer_size() < 1_000_000
        sock.setblocking(False)
        got = 0
        while got < total:
            data = await asyncio.get_running_loop().sock_recv(sock, 2**20)
            assert data
            got += len(data)
        assert sent[0] >= total
        sock.close()


@pytest.mark.slow
async def test_a_client_that_stalls_for_good_is_dropped(cluster: Any, until: Any) -> None:
    async def floods(double: Any, request: Any, writer: Any) -> None:
        double.begin_stream(writer)
        while True:
            double.chunk(writer, b"x" * 60000)
            await writer.drain()

    async with cluster(stall_timeout_s=0.1) as c:
        c.decode[0].script = floods
        with socket.socket() as sock:
            sock.connect(("127.0.0.1", c.router.port))
            raw = json.dumps(STREAM).encode()
            sock.sendall(b"POST /generate HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n%b" % (len(raw), raw))
            await until(lambda: c.decode[0].cancelled == 1)
        await until(lambda: c.router.core.in_flight == 0)


async def test_a_stop_lets_requests_end_and_leaves_nothing(cluster: Any, until: Any) -> None:
    async with cluster(drain_s=5.0) as c:
        c.decode[0].gap_s = 0.03
        wire, idle = await c.wire(), await c.wire()
        wire.post("/generate", STREAM)
        await until(lambda: c.decode[0].requests)
        await until(lambda: len(c.router._clients) == 2)
        stopping = asyncio.ensure_future(c.router.stop())
        assert await idle.reader.read() == b""
        answer = await wire.answer()
        assert answer.whole
        await stopping
        await until(lambda: not c.prefill[0].open and not c.decode[0].open)
        assert not c.router.core.active
        assert not c.router._tasks
        with pytest.raises(OSError):
            await c.wire()


async def test_a_stop_ends_what_does_not_end(cluster: Any, until: Any) -> None:
    async with cluster(drain_s=0.05) as c:
        c.decode[0].script = silent
        wire = await c.wire()
        wire.post("/generate", STREAM)
        await until(lambda: c.decode[0].requests)
        await c.router.stop()
        assert (await wire.answer()).status == 503
        await until(lambda: c.decode[0].cancelled == 1)


async def test_a_stop_passes_over_a_connection_that_is_only_coming(cluster: Any) -> None:
    async with cluster() as c:
        c.router._client()
        await c.router.stop()
        assert not c.router.core.active


@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_what_a_policy_raises_costs_its_request_alone(
    cluster: Any, phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    class FailsOnce(RoundRobin):
        failed = False

        def route(self, request: Any, candidates: Any) -> int:
            if not self.failed:
                self.failed = True
                raise ZeroDivisionError("mine")
            return super().route(request, candidates)

    policies = (FailsOnce(), RoundRobin()) if phase == "prefill" else (RoundRobin(), FailsOnce())
    async with cluster(policies=policies) as c:
        first, second = [await c.post("/generate", {"text": "hello"}) for _ in range(2)]
        assert (first.status, second.status) == (500, 200)
        assert f"the router's policy failed for {phase}" in first.body.decode()
        assert "the policy raised ZeroDivisionError: mine" in caplog.text
        assert c.router.core.in_flight == 0
