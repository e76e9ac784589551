"""What is read of a request body, and what a long one costs the event loop."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.live.router.conftest import beside
from voltana.live.router.body import DECODED_BYTES, Body, BodyError, Prompts, bootstrap_parts, read_prompts
from voltana.live.router.fleet import Backend
from voltana.live.router.logprobs import StreamMerger, merge_answers
from voltana.live.router.outline import STEP_BYTES
from voltana.live.router.server import RouterServer
from voltana.live.router.settings import RouterSettings
from voltana.policies.balancers import RoundRobin

LONG = 16 * 2**20 - 100
STALL_S = 0.020


def filled(before: bytes, unit: bytes, after: bytes) -> bytes:
    return before + unit * ((LONG - len(before) - len(after)) // len(unit)) + after


HOSTILE = {
    "empty lists": filled(b'{"prompt": [', b"[], ", b"[]]}"),
    "empty objects": filled(b'{"prompt": [', b"{},", b"{}]}"),
    "short texts": filled(b'{"prompt": [', b'"",', b'"a"]}'),
    "short prompts": filled(b'{"prompt": [', b"[1],", b"[1]]}"),
    "nested": filled(b'{"prompt": ', b"[", b"") + b"]",
    "nested and closed": b'{"prompt": ' + b"[" * (LONG // 2 - 20) + b"]" * (LONG // 2 - 20) + b"}",
    "nested pieces": filled(b'{"prompt": [', b"[" * 900 + b"]" * 900 + b",", b"1]}"),
    "huge number": filled(b'{"prompt": [1], "n": ', b"9", b"}"),
    "huge fraction": filled(b'{"prompt": [1], "n": 0.', b"9", b"}"),
    "members": filled(b"{", b'"prompt":0,', b'"prompt": [1]}'),
    "same member": filled(b"{", b'"n":0,', b'"n":1}'),
    "inner members": filled(b'{"prompt": "a", "x": {', b'"":0,', b'"":0}}'),
    "sampling parameters": filled(b'{"prompt": "a", "sampling_params": [', b'{"n":2},', b"{}]}"),
    "many samples": b'{"prompt": "a", "n": 1000000}',
    "space": filled(b'{"prompt": "a"', b" ", b"}"),
    "space before a name": filled(b"{", b" ", b'"prompt": "a"}'),
    "messages": filled(b'{"messages": [', b'{"role":"user","content":"a"},', b"{}]}"),
    "parts": filled(b'{"messages": [{"role": "user", "content": [', b"{},", b"{}]}]}"),
    "escapes": filled(b'{"prompt": "', rb"\"", b'"}'),
    "backslashes": filled(b'{"prompt": "', rb"\\", b'"}'),
    "escaped letters": filled(b'{"prompt": "', rb"\u4e2d", b'"}'),
    "one text": filled(b'{"prompt": "', b"a word ", b'"}'),
    "umlauts": filled(b'{"prompt": "', "ä".encode(), b'"}'),
    "token ids": filled(b'{"prompt": [', b"12345, ", b"1]}"),
    "rid": filled(b'{"prompt": "a", "rid": "', b"r", b'"}'),
}


@asynccontextmanager
async def routed(cluster: Any, **settings: Any) -> AsyncIterator[tuple[Any, list[float]]]:
    """The cluster with its router in a thread of its own."""

    async def reads(double: Any, request: Any, writer: Any) -> None:
        if double.phase == "prefill" or double.prefilled.is_set():
            double.prefilled.set()
        await double.prefilled.wait()
        double.answer(writer, b'{"text": "ok"}')

    async with cluster() as c:
        done = asyncio.Event()
        for double in (*c.prefill, *c.decode):
            double.script, double.prefilled = reads, done
        make = partial(
            RouterServer,
            [Backend(c.prefill[0].url, 8998)],
            [Backend(c.decode[0].url)],
            RoundRobin(),
            RoundRobin(),
            RouterSettings(drain_s=0.2, **settings),
        )
        with beside(make) as (router, longest):
            c.router.port, own = router.port, c.router.port
            try:
                yield c, longest
            finally:
                c.router.port = own


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
async def test_no_body_holds_the_event_loop(cluster: Any, name: str) -> None:
    body = HOSTILE[name]
    path = (
        "/generate" if "sampling" in name else "/v1/chat/completions" if b"messages" in body[:20] else "/v1/completions"
    )
    async with routed(cluster) as (c, longest):
        answer = await c.post(path, body)
        assert answer.status in (200, 400)
        for double in (*c.prefill, *c.decode):
            assert all(request.body.startswith(body[:-1]) for request in double.requests)
        print(f"{name}: {answer.status}, {longest[0] * 1000:.1f} ms")
        assert longest[0] < STALL_S


@pytest.mark.slow
async def test_neither_tiny_chunks_nor_pipelined_requests_hold_the_event_loop(cluster: Any) -> None:
    async with routed(cluster) as (c, longest):
        wire = await c.wire()
        raw = b'{"prompt": "' + b"x" * 400_000 + b'"}'
        wire.send(b"POST /v1/completions HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")
        wire.send(b"".join(b"1\r\n%c\r\n" % byte for byte in raw) + b"0\r\n\r\n")
        assert (await wire.answer()).json == {"text": "ok"}
        assert c.decode[0].requests[0].body.startswith(raw[:-1])
        print(f"chunks: {longest[0] * 1000:.1f} ms")
        for _ in range(20_000):
            wire.get("/health")
        assert [(await wire.answer()).status for _ in range(20_000)] == [200] * 20_000
        print(f"pipelined: {longest[0] * 1000:.1f} ms")
        assert longest[0] < STALL_S


async def test_a_long_body_waits_at_the_router_once_for_both_its_instances(cluster: Any, until: Any) -> None:
    body = b'{"prompt": "' + b"a word " * 2_000_000 + b'"}'
    read, taken = asyncio.Event(), list[bytes]()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read.wait()
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: "))
        taken.append(await reader.readexactly(length))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async with cluster(health_interval_s=60) as c:
        await until(lambda: all(double.connections for double in (*c.prefill, *c.decode)))  # the first health check
        for double in (*c.prefill, *c.decode):
            double.server.close()
            double.server = await asyncio.start_server(slow, "127.0.0.1", double.port)
        wire = await c.wire()
        wire.post("/v1/completions", body)
        legs = [instance.pool._open for instance in c.router._instances]
        await until(lambda: all(connections for connections in legs))
        await until(lambda: all(connection.full for connections in legs for connection in connections))
        await asyncio.sleep(0.05)
        sizes = [one.transport.get_write_buffer_size() for connections in legs for one in connections]
        assert max(sizes) < 2**19, "the rest is not copied for each leg"
        assert c.router._buffered.held == len(body)
        read.set()
        assert (await wire.answer()).json == {}
        assert c.router._buffered.held == 0
        assert len(taken) == 2 and taken[0] == taken[1]
        assert json.loads(taken[0])["prompt"] == json.loads(body)["prompt"]


def body_of(raw: bytes, *, cuts: int = STEP_BYTES) -> Body:
    body = Body()
    for at in range(0, len(raw), cuts):
        body.data += raw[at : at + cuts]
        if body.is_long:
            body.look()
    return body


def told(raw: bytes, path: str, cuts: int = STEP_BYTES) -> Prompts:
    return read_prompts(body_of(raw, cuts=cuts), path, 4.0, 1024)


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters='"\\', exclude_categories=["Cc", "Cs"]), max_size=30)
IDS = st.lists(st.integers(0, 200_000), min_size=1, max_size=8)
PROMPT = st.one_of(
    TEXTS, IDS, st.lists(TEXTS, min_size=1, max_size=5), st.lists(IDS, min_size=1, max_size=5), st.none()
)
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(0, 9), st.text(max_size=10)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=12,
)
MEMBERS = st.fixed_dictionaries(
    {"text": PROMPT, "other": ANY, "rid": ANY, "return_logprob": st.booleans()},
    optional={"input_ids": PROMPT, "sampling_params": st.fixed_dictionaries({"n": st.just(1), "stop": ANY})},
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(MEMBERS, st.integers(0, 5), st.integers(3000, 70_000), st.sampled_from([None, 1]))
def test_a_long_body_is_understood_like_a_short_one(
    members: dict[str, Any], place: int, cuts: int, indent: int | None
) -> None:
    short = json.dumps(members, ensure_ascii=False, indent=indent).encode()
    padded = [*members.items()]
    padded.insert(place, ("padding", "\\" * DECODED_BYTES + '"[,'))
    long = json.dumps(dict(padded), ensure_ascii=False, indent=indent).encode()
    assert told(long, "/generate", cuts) == told(short, "/generate")


def test_where_a_body_is_cut_does_not_matter() -> None:
    pieces = ['\\"', "[", "]", "{", ",", "\\", "ä", "\n", '"']
    texts = ["".join(pieces[(at * step) % 9] for at in range(4000)) for step in range(1, 9)]
    raw = json.dumps({"a": texts, "text": texts, "rid": "mine"}).encode()
    expected = told(raw, "/generate")
    assert (expected.batch, expected.rid) == (8, "mine")
    for cuts in (DECODED_BYTES + 1, *range(40_000, 40_040), 65_537):
        assert told(raw, "/generate", cuts) == expected


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
async def test_a_prompt_of_a_hundred_thousand_tokens_passes(cluster: Any, path: str) -> None:
    async with cluster() as c:
        field = "input_ids" if path == "/generate" else "prompt"
        assert (await c.post(path, {field: list(range(100_000))})).status == 200
        assert c.log[0][1].prompt_tokens == 100_000
        batch = [[7] * 50_000, [8] * 50_000]
        answer = await c.post(path, {field: batch, "x": 1})
        assert len(answer.json) == 2
        assert (c.log[3][1].prompt_tokens, c.log[3][1].prompts) == (100_000, 2)
        sent = c.decode[0].requests[1].json
        assert sent[field] == batch and len(set(sent["bootstrap_room"])) == 2


async def test_prompts_of_a_request_are_bounded(cluster: Any) -> None:
    async with cluster(max_prompts=3) as c:
        assert (await c.post("/generate", {"text": ["a"] * 3})).status == 200
        for body in ({"text": ["a"] * 4}, {"text": ["a" * 20_000] * 4}):
            answer = await c.post("/generate", body)
            assert (answer.status, answer.json["error"]["code"]) == (400, "too_many_prompts")
        assert len(c.decode[0].requests) == 1


@pytest.mark.parametrize("padding", [0, DECODED_BYTES])
async def test_several_samples_of_a_prompt_are_refused_in_openais_form(cluster: Any, padding: int) -> None:
    async with cluster() as c:
        more = {"padding": "x" * padding}
        for path, body in (
            ("/v1/completions", {"prompt": "a", "n": 2}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "n": 3}),
            ("/generate", {"text": "a", "sampling_params": {"n": 2}}),
            ("/generate", {"text": ["a"], "sampling_params": [{"n": 2}]}),
        ):
            answer = await c.post(path, body | more)
            assert answer.status == 400
            error = answer.json["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "unsupported_n")
            assert "allowed: 1" in error["message"]
        for path, body in (
            ("/v1/completions", {"prompt": "a", "n": 1, "sampling_params": {"n": 2}}),
            ("/generate", {"text": "a", "n": 2, "sampling_params": {"n": 1}}),
        ):
            assert (await c.post(path, body | more)).status == 200
        assert not c.router._buffered.held


@pytest.mark.parametrize(
    "raw",
    [
        b"[" + b"1," * 40_000 + b"1]",
        b'{"a": "' + b"x" * 40_000,
        b'{"a": "' + b"x" * 40_000 + b'"} {}',
        b'{"a": "' + b"x" * 40_000 + b'"}}',
        b"x" * 40_000,
        b" " * 40_000,
        b'{"a": [' * 10_000,
        b'{"' + b"x" * 40_000 + b'": 1}',
        b'{"a": "' + b"x" * 40_000 + b'", 5}',
    ],
)
def test_a_long_body_that_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(BodyError, match="not a JSON object"):
        told(raw, "/generate")


@pytest.mark.parametrize(
    "raw", [b"{}", b" { } \n", b'{"text": 1}', b'{"text": "}"} ', b'{"a":"' + b"x" * 40_000 + b'"} ']
)
def test_bootstrap_fields_go_before_the_closing_brace(raw: bytes) -> None:
    body = body_of(raw)
    parts = bootstrap_parts(body, told(raw, "/generate"), "h", 5)
    merged = json.loads(b"".join(parts))
    assert {key: merged[key] for key in json.loads(raw)} == json.loads(raw)
    assert (merged["bootstrap_host"], merged["bootstrap_port"]) == ("h", 5)
    assert 0 <= merged["bootstrap_room"] < 2**63


@pytest.mark.slow
def test_logprobs_of_a_long_prompt_are_joined_without_being_read() -> None:
    tokens = [[-0.5, at, None] for at in range(100_000)]
    meta = {"id": "r", "input_token_logprobs": tokens, "input_top_logprobs": None}
    prefill = json.dumps({"text": "", "meta_info": meta}).encode()
    own = {"meta_info": {"input_token_logprobs": [[1.0, 2, None]], "x": [1]}, "text": "b", "index": 0}
    decode = json.dumps(own).encode()
    whole = json.loads(merge_answers(prefill, decode))
    assert whole["meta_info"] == {"input_token_logprobs": [*tokens, [1.0, 2, None]], "x": [1]}
    assert whole["text"] == "b"
    merger = StreamMerger(b"data: " + prefill + b"\n\n")
    merged = merger.feed(b"data: " + decode + b"\n\n")
    assert json.loads(merged[5:])["meta_info"]["input_token_logprobs"][-2:] == [tokens[-1], [1.0, 2, None]]
    assert merge_answers(b"[]", decode) == decode and merge_answers(prefill, b"{") == b"{"
    before_s = time.thread_time()
    for _ in range(10):
        merger.feed(b"data: " + decode + b"\n\n")
    assert (time.thread_time() - before_s) / 10 < STALL_S / 2
