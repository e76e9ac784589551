"""Bodies are read as SGLang reads them, and what it would refuse is refused with a reason."""

import json
from typing import Any

import pytest

from voltana.live.servers.emulated.calls import BadRequestError, Call, Kind, Logprobs, parse
from voltana.live.servers.emulated.words import FIRST_ID, text, token_index

ROOM = {"bootstrap_host": "h", "bootstrap_port": 1, "bootstrap_room": 7}


def read(kind: Kind, **body: Any) -> Call:
    return parse(kind, json.dumps(ROOM | body).encode(), "m", "r")


def test_lengths_and_limits() -> None:
    call = read("generate", input_ids=[5, 6, 7], sampling_params={"max_new_tokens": 9}, stream=True)
    assert (call.choices[0].prompt.tokens, call.choices[0].max_tokens, call.stream, call.batched) == (3, 9, True, False)
    assert read("completion", prompt="three short words").choices[0].prompt.tokens == 3
    assert read("completion", prompt="a").choices[0].max_tokens == 16
    chat = read("chat", messages=[{"role": "user", "content": "one two"}], max_completion_tokens=4)
    assert (chat.choices[0].prompt.tokens, chat.choices[0].max_tokens) == (2, 4)


def test_batches() -> None:
    rooms = {"bootstrap_room": [1, 2], "bootstrap_host": ["a", "b"], "bootstrap_port": [3, 4]}
    call = read("generate", text=["a b", "c"], sampling_params=[{"max_new_tokens": 1}, {"max_new_tokens": 2}], **rooms)
    assert [(choice.prompt.tokens, choice.max_tokens, choice.room.room) for choice in call.choices] == [
        (2, 1, 1),
        (1, 2, 2),
    ]
    assert call.batched and [choice.room.host for choice in call.choices] == ["a", "b"]


def test_the_same_prompt_has_the_same_seed() -> None:
    first, again = read("generate", text="hello"), read("generate", text="hello", bootstrap_room=8)
    assert first.choices[0].prompt == again.choices[0].prompt
    assert read("generate", text="hullo").choices[0].prompt.seed != first.choices[0].prompt.seed


def test_logprobs() -> None:
    assert read("generate", text="a").logprobs == Logprobs(False, -1)
    assert read("generate", text="a", return_logprob=True, logprob_start_len=0).logprobs == Logprobs(True, 0)
    assert read("completion", prompt="a", logprobs=1).logprobs.output


@pytest.mark.parametrize(
    ("kind", "body", "reason"),
    [
        ("generate", {}, "Either text or input_ids"),
        ("generate", {"text": "a", "input_ids": [1]}, "Either text or input_ids"),
        ("generate", {"input_ids": ["a", 1]}, "a list of token ids"),
        ("generate", {"input_ids": []}, "a list of token ids"),
        ("generate", {"text": "a", "bootstrap_room": None}, "without bootstrap room"),
        ("generate", {"text": ["a", "b"], "bootstrap_room": [1]}, "1 values for 2 prompts"),
        ("generate", {"text": ["a", "b"], "sampling_params": [{}]}, "sampling_params"),
        ("generate", {"text": "a", "sampling_params": {"max_new_tokens": 0}}, "max_new_tokens"),
        ("generate", {"text": "a", "sampling_params": {"n": 2}}, "one choice"),
        ("completion", {"prompt": None}, "prompt"),
        ("completion", {"prompt": "a", "max_tokens": True}, "max_tokens"),
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": [{"role": "wizard", "content": "a"}]}, "found role 'wizard'"),
        ("chat", {"messages": [{"role": "User", "content": "a"}]}, "found role 'User'"),
        ("chat", {"messages": [{"content": "a"}]}, "found role None"),
        ("chat", {"messages": ["a"]}, "found role None"),
        ("chat", {"messages": [{"role": "user"}]}, "content"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content type 'image_url'"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "type 'smell'"),
        ("chat", {"messages": [{"role": "user", "content": "a"}], "stop": 5}, "stop: found 5"),
        ("generate", {"text": "a", "sampling_params": {"stop_token_ids": ["a"]}}, "stop_token_ids"),
    ],
)
def test_refusals(kind: Kind, body: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRequestError, match=reason):
        read(kind, **body)


def test_parts_and_roles_of_messages() -> None:
    parts = [{"type": "text", "text": "one two"}, {"type": "text", "text": "three"}]
    messages = [{"role": "SYSTEM", "content": "four"}, {"role": "user", "content": parts}, {"role": "assistant"}]
    assert read("chat", messages=messages).choices[0].prompt.tokens == 4


@pytest.mark.parametrize(("kind", "field"), [("completion", "prompt"), ("generate", "text")])
def test_a_stop_ends_an_answer_where_it_first_matches(kind: Kind, field: str) -> None:
    seed = read(kind, **{field: "a"}).choices[0].prompt.seed
    whole = text(seed, 0, 200)

    def stopped(limit: int, **asked: Any) -> Any:
        limits = {"max_tokens": limit, **asked}
        where = {"sampling_params": {**limits, "max_new_tokens": limit}} if kind == "generate" else limits
        choice = read(kind, **{field: "a"}, **where).choices[0]
        return choice.max_tokens, choice.stop

    first, later = whole[12:16], whole[31:38]
    assert stopped(100, stop=later) == (8, (later, 8, whole.index(later)))
    tokens, stop = stopped(100, stop=[later, first])
    assert (tokens, stop.matched) == (4, first)
    assert stopped(7, stop=later) == (7, None)
    assert stopped(100, stop="nowhere") == (100, None)
    assert stopped(100_000, stop="nowhere") == (100_000, None)
    third = FIRST_ID + token_index(seed, 2)
    assert stopped(100, stop_token_ids=[third, 5]) == (3, (third, 3, 10))
    kept = stopped(100, stop=later, no_stop_trim=True)[1]
    assert whole[: kept.characters].endswith(later)


@pytest.mark.parametrize("kind", ["generate", "completion", "chat"])
@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_that_is_not_declared_as_json_is_refused(kind: Kind, content_type: str) -> None:
    body = json.dumps(ROOM | {"text": "a", "prompt": "a", "messages": [{"role": "user", "content": "a"}]}).encode()
    with pytest.raises(BadRequestError, match="application/json"):
        parse(kind, body, "m", "r", content_type)
    assert parse(kind, body, "m", "r", "Application/JSON; charset=utf-8").kind == kind


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff"])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        parse("generate", body, "m", "r")
