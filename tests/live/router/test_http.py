"""HTTP towards clients: edge cases, limits, garbage."""

import asyncio
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltana.live.router.http1 import Framing, ProtocolError, chunk_size, parse_response_head

BODY = {"text": "hello", "stream": True}
RAW = json.dumps(BODY).encode()


async def test_chunked_request_body(cluster: Any) -> None:
    async with cluster() as c:
        wire = await c.wire()
        wire.send(b"POST /generate HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n")
        for at in range(0, len(RAW), 7):
            part = RAW[at : at + 7]
            wire.send(b"%x\r\n%b\r\n" % (len(part), part))
            await asyncio.sleep(0)
        wire.send(b"0\r\n\r\n")
        assert (await wire.answer()).status == 200
        request = c.decode[0].requests[0]
        assert request.json["text"] == "hello"
        assert "transfer-encoding" not in request.headers


async def test_byte_by_byte(cluster: Any) -> None:
    async with cluster() as c:
        wire = await c.wire()
        for byte in b"POST /generate HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n%b" % (len(RAW), RAW):
            wire.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await wire.answer()).status == 200


async def test_pipelined_requests_are_answered_in_order(cluster: Any) -> None:
    async with cluster() as c:
        c.decode[0].gap_s = 0.005
        wire = await c.wire()
        wire.post("/generate", BODY)
        wire.get("/health")
        wire.get("/nowhere")
        await asyncio.sleep(0.002)
        wire.post("/generate", {"text": "last"})
        answers = [await wire.answer() for _ in range(4)]
        assert [each.status for each in answers] == [200, 200, 404, 200]
        assert b"[DONE]" in answers[0].body
        assert answers[3].json["text"] == "decode0"


async def test_expect_continue(cluster: Any) -> None:
    async with cluster(max_body_bytes=100) as c:
        wire = await c.wire()
        head = f"POST /generate HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: {len(RAW)}\r\n\r\n"
        wire.send(head.encode())
        assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        wire.send(RAW)
        assert (await wire.answer()).status == 200
        assert "expect" not in c.decode[0].requests[0].headers
        wire = await c.wire()
        wire.send(b"POST /generate HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 101\r\n\r\n")
        assert (await wire.answer()).status == 413, "refused before the body is sent"
        answer = await c.get("/health", "Expect: tea")
        assert answer.status == 417


async def test_http_1_0_gets_no_chunks_and_the_connection_closes(cluster: Any) -> None:
    async with cluster() as c:
        wire = await c.wire()
        wire.send(b"POST /generate HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(RAW), RAW))
        answer = await wire.answer()
        assert "transfer-encoding" not in answer.headers
        assert answer.headers["connection"] == "close"
        assert answer.body.startswith(b"data: ")
        assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_http_1_0_may_keep_its_connection(cluster: Any) -> None:
    async with cluster() as c:
        wire = await c.wire()
        for _ in range(2):
            wire.send(b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            answer = await wire.answer()
            assert (answer.status, answer.headers["connection"]) == (200, "keep-alive")
        whole = json.dumps({"text": "hello"}).encode()
        wire.send(
            b"POST /generate HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n" % len(whole) + whole
        )
        answer = await wire.answer()
        assert (answer.json["text"], answer.headers["connection"]) == ("decode0", "keep-alive")
        wire.send(
            b"POST /generate HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: %d\r\n\r\n%b" % (len(RAW), RAW)
        )
        answer = await wire.answer()
        assert answer.headers["connection"] == "close", "only the end of the connection can tell the end of a stream"
        assert answer.body.endswith(b"data: [DONE]\n\n")


async def test_connection_close_is_honoured(cluster: Any) -> None:
    async with cluster() as c:
        wire = await c.wire()
        wire.post("/generate", BODY, "Connection: close")
        answer = await wire.answer()
        assert answer.whole
        assert answer.headers["connection"] == "close"
        assert await wire.reader.read() == b""


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: t\r\nX: " + b"a" * 3000 + b"\r\n\r\n", 431),
        (b"GET /" + b"a" * 3000, 431),
        (b"POST /generate HTTP/1.1\r\nHost: t\r\nContent-Length: 99999\r\n\r\n", 413),
        (b"POST /generate HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"a" * 2000, 413),
        (b"GET /health HTTP/1.1\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"POST /generate HTTP/1.1\r\nHost: t\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /health HTTP/1.1\r\nHost: t\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: identity\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: t\r\n\r\n", 400),
    ],
)
async def test_refused_requests_get_one_answer_and_a_close(cluster: Any, raw: bytes, status: int) -> None:
    async with cluster(max_header_bytes=2048, max_body_bytes=1000) as c:
        wire = await c.wire()
        wire.send(raw)
        answer = await wire.answer()
        assert (answer.status, answer.headers["connection"]) == (status, "close")
        assert answer.json["error"]["message"]
        assert await wire.reader.read() == b""
        assert c.router._buffered.held == 0


TRAILED = b"POST /generate HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n" % (len(RAW), RAW)


async def test_trailers_are_dropped(cluster: Any) -> None:
    async with cluster() as c:
        wire = await c.wire()
        wire.send(TRAILED + b"Authorization: Bearer sneaked\r\nX-Any: 1\r\n\r\n")
        wire.get("/health")
        assert [(await wire.answer()).status for _ in range(2)] == [200, 200]
        for double in (*c.prefill, *c.decode):
            assert not {"authorization", "x-any"} & double.requests[0].headers.keys()


@pytest.mark.parametrize("endless", [b"X: " + b"y" * 1000 + b"\r\n", b"X: y\r\n", b"y" * 1000])
@pytest.mark.parametrize("where", ["trailers", "chunk extension"])
async def test_what_comes_beside_a_chunked_body_is_bounded(cluster: Any, endless: bytes, where: str) -> None:
    async with cluster(max_header_bytes=4096) as c:
        wire = await c.wire()
        wire.send(TRAILED if where == "trailers" else TRAILED[:-3] + b"5;")
        sent = 0
        while not wire.reader._buffer:  # type: ignore[attr-defined]
            wire.send(endless if where == "trailers" else b"y" * len(endless))
            sent += len(endless)
            assert sent < 200_000
            await asyncio.sleep(0.0002)
        assert (await wire.answer()).status == 431
        assert not c.router._buffered.held


@pytest.mark.parametrize("body", [b"", RAW])
async def test_an_upgrade_to_http_2_is_ignored(cluster: Any, body: bytes) -> None:
    async with cluster() as c:
        wire = await c.wire()
        first = b"POST /generate" if body else b"GET /health"
        wire.send(first + b" HTTP/1.1\r\nHost: t\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n")
        wire.send(b"HTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        wire.get("/health")
        wire.post("/generate", BODY)
        assert [(await wire.answer()).status for _ in range(3)] == [200] * 3
        for request in c.decode[0].requests:
            assert not {"upgrade", "http2-settings", "connection"} & request.headers.keys()


async def test_held_bodies_are_bounded_all_together(cluster: Any, until: Any) -> None:
    async with cluster(max_buffered_bytes=1500) as c:
        first, second = await c.wire(), await c.wire()
        head = b"POST /generate HTTP/1.1\r\nHost: t\r\nContent-Length: 1200\r\n\r\n"
        first.send(head + b"a" * 1000)
        await until(lambda: c.router._buffered.held == 1000)
        second.send(head + b"a" * 1000)
        assert (await second.answer()).status == 503
        first.cut()
        await until(lambda: c.router._buffered.held == 0)


@pytest.mark.slow
async def test_slow_headers_and_bodies_are_closed(cluster: Any) -> None:
    async with cluster(header_timeout_s=0.05, body_timeout_s=0.05, keep_alive_s=0.05) as c:
        headers, body, idle = await c.wire(), await c.wire(), await c.wire()
        headers.send(b"GET /health HT")
        body.send(b"POST /generate HTTP/1.1\r\nHost: t\r\nContent-Length: 9\r\n\r\n1")
        assert (await headers.answer()).status == 408
        assert (await body.answer()).status == 408
        assert await idle.reader.read() == b""


async def test_too_many_connections(cluster: Any, until: Any) -> None:
    async with cluster(max_connections=2) as c:
        await c.wire(), await c.wire()
        await until(lambda: len(c.router._clients) == 2)
        third = await c.wire()
        answer = await third.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")


async def test_listens_on_loopback_unless_told_otherwise(cluster: Any) -> None:
    async with cluster() as c:
        assert [sock.getsockname()[0] for sock in c.router._server.sockets] == ["127.0.0.1"]


VALID = b"POST /generate HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n%b" % (len(RAW), RAW)
GARBAGE = st.one_of(
    st.binary(max_size=300),
    st.tuples(st.integers(0, len(VALID)), st.binary(max_size=20)).map(lambda cut: VALID[: cut[0]] + cut[1]),
    st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255)).map(
        lambda flip: VALID[: flip[0]] + bytes([flip[1]]) + VALID[flip[0] + 1 :]
    ),
)


async def test_garbage_never_harms_others(cluster: Any, until: Any) -> None:
    seen: list[bytes] = []
    given(GARBAGE)(settings(max_examples=150, database=None)(lambda raw: seen.append(raw)))()
    async with cluster(max_header_bytes=400) as c:
        for raw in seen:
            wire = await c.wire()
            wire.send(raw)
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError):
                async with asyncio.timeout(0.01):
                    answer = await wire.answer()
                    assert answer.status in (200, 400, 404, 405, 408, 413, 417, 431)
            wire.cut()
        assert (await c.post("/generate", BODY)).status == 200
        await until(lambda: c.router.core.in_flight == 0 and c.router._buffered.held == 0)
        assert not c.router.core.active


def chunked(parts: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts if part) + b"0\r\n\r\n"


@given(st.lists(st.binary(max_size=40), max_size=6), st.lists(st.integers(1, 30), min_size=1), st.binary(max_size=10))
def test_a_chunked_body_is_found_however_it_is_cut(parts: list[bytes], cuts: list[int], after: bytes) -> None:
    whole = chunked(parts)
    raw, framing, payload, at, turn = whole + after, Framing(True, None), list[bytes](), 0, 0
    while True:
        piece = raw[at : at + cuts[turn % len(cuts)]]
        turn += 1
        end = framing.scan(piece, payload)
        if end >= 0:
            break
        at += len(piece)
    assert at + end == len(whole)
    assert b"".join(payload) == b"".join(parts)


@given(st.lists(st.binary(max_size=9), max_size=4), st.lists(st.integers(1, 9), min_size=1), st.integers(0, 5))
def test_trailers_of_an_answer_are_dropped_however_it_is_cut(parts: list[bytes], cuts: list[int], lines: int) -> None:
    whole = chunked(parts)
    raw, framing, passed, at, turn = whole[:-2] + b"X: y\r\n" * lines + b"\r\n", Framing(True, None), b"", 0, 0
    end = -1
    while end < 0:
        piece = raw[at : at + cuts[turn % len(cuts)]]
        end = framing.scan(piece)
        passed += framing.without_trailers(piece, end)
        at, turn = at + len(piece), turn + 1
    assert passed == whole


def test_trailers_of_an_answer_are_bounded() -> None:
    framing = Framing(True, None)
    framing.scan(b"0\r\n")
    with pytest.raises(ProtocolError, match="trailers"):
        for _ in range(10_000):
            framing.scan(b"X: y\r\n")


def test_what_is_no_chunk_size() -> None:
    assert [chunk_size(line) for line in (b"0", b"1F", b"a;x=y", b"00a ")] == [0, 31, 10, 10]
    assert {chunk_size(line) for line in (b"", b"-1", b"+1", b"0x1", b"1_0", b" 1", b"f" * 16, b"g")} == {-1}
    for bad in (b"zz\r\n", b"5\n", b"a" * 5000):
        with pytest.raises(ProtocolError):
            Framing(True, None).scan(bad)


def test_what_is_no_response() -> None:
    for raw in (b"junk\r\n\r\n", b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\n"):
        with pytest.raises(ProtocolError):
            parse_response_head(raw)
    assert parse_response_head(b"HTTP/1.1 204 No\r\n\r\n").framing.empty
    assert parse_response_head(b"HTTP/1.0 200 OK\r\n\r\n").framing.until_close
