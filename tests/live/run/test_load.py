"""The load client reads answers as they come, in whatever pieces."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.live.run.load import Order, Result, Stream, Timed, payload

ORDER = Order("127.0.0.1", 1, 0.0, 0.06, (100, 200), 3)
REQUEST = Timed(7, 0.5, 12, 4)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"
TOKENS = b"".join(b'data: {"choices":[{"text":" w%d"}]}\n\n' % number for number in range(4))
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":4}}\n\n'
DONE = b"data: [DONE]\n\n"


def told(pieces: list[bytes]) -> Result:
    async def go() -> Result:
        stream = Stream(REQUEST, b"", ORDER, 0.0)
        for piece in pieces:
            stream.data_received(piece)
        stream.connection_lost(None)
        return await stream.ended

    return asyncio.run(go())


@given(st.lists(st.integers(1, len(HEAD + TOKENS + USAGE + DONE) - 1), unique=True, max_size=12))
def test_pieces_do_not_matter(cuts: list[int]) -> None:
    whole = HEAD + TOKENS + USAGE + DONE
    edges = [0, *sorted(cuts), len(whole)]
    result = told([whole[a:b] for a, b in itertools.pairwise(edges)])
    assert (result.status, result.tokens, result.gaps) == ("completed", 4, 3)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (HEAD + TOKENS, "the answer broke off"),
        (b'HTTP/1.1 503 Service Unavailable\r\n\r\n{"error":{"message":"the queue is full"}}', "the queue is full"),
        (HEAD + TOKENS + b'data: {"error":{"message":"it is gone"}}\n\n' + DONE, "it is gone"),
        (b"", "no answer"),
    ],
)
def test_an_answer_that_is_not_whole_failed_and_says_why(answer: bytes, reason: str) -> None:
    result = told([answer])
    assert result.status == "failed"
    assert reason in result.reason


def test_the_same_seed_asks_the_same() -> None:
    assert payload(REQUEST, ORDER) == payload(REQUEST, ORDER)
    assert payload(REQUEST, ORDER) != payload(REQUEST._replace(request_id=8), ORDER)
