"""Bodies are read as SGLang reads them, and what it would refuse is refused with a reason."""

import json
from typing import Any

import pytest

from voltana.live.servers.emulated.calls import BadRequestError, Call, Kind, Logprobs, parse

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
    ],
)
def test_refusals(kind: Kind, body: dict[str, Any], reason: str) -> None:
    with pytest.raises(BadRequestError, match=reason):
        read(kind, **body)


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff"])
def test_what_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        parse("generate", body, "m", "r")
