"""Request bodies: what the router must know of one, and the bootstrap fields written into it.

The body is decoded once to learn its prompts, and never encoded again: the fields are spliced in before the closing
brace, so every byte the client wrote reaches the server as it was. A field the client had set itself comes earlier in
the object and so loses against ours.
"""

from __future__ import annotations

from random import SystemRandom
from typing import Any, NamedTuple

import msgspec

ROOM_LIMIT = 2**63 - 1 - 2**20
"""Rooms stay this far below 2^63, because SGLang counts up from a single one when `n` > 1."""
_random = SystemRandom()


class BodyError(Exception):
    """The body is not a JSON object."""


class _Fields(msgspec.Struct):
    """Of unknown type all, because judging them is the server's part."""

    text: Any = None
    input_ids: Any = None
    prompt: Any = None
    messages: Any = None
    n: Any = None
    sampling_params: Any = None
    return_logprob: Any = None
    rid: Any = None


_decoder = msgspec.json.Decoder(_Fields)


class Prompts(NamedTuple):
    """What the router needs to know of a request body."""

    batch: int | None
    """Number of prompts if the body holds a list of them."""
    tokens: int
    """Prompt tokens of all of them: counted where token ids are given, else estimated from characters."""
    wants_logprobs: bool
    """Whether `return_logprob` was asked for (/generate alone knows it)."""
    samples: int
    """`n`: answers per prompt."""
    rid: str | None
    """The client's own name for the request."""

    @property
    def number(self) -> int:
        """Number of prompts."""
        return self.batch or 1


def read_prompts(body: bytes | bytearray, chars_per_token: float) -> Prompts:
    """Look into a request body.

    Raises:
        BodyError: it is not a JSON object.
    """
    try:
        fields = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BodyError(f"the body is not a JSON object: {error}") from error
    prompt = next((p for p in (fields.text, fields.input_ids, fields.prompt) if p is not None), None)
    batch = _batch_of(prompt)
    if prompt is None and isinstance(fields.messages, list):
        prompt = [_text_of(message) for message in fields.messages]
    return Prompts(
        batch,
        _tokens(prompt, chars_per_token),
        _any_true(fields.return_logprob),
        _samples(fields),
        fields.rid if isinstance(fields.rid, str) else None,
    )


def _batch_of(prompt: Any) -> int | None:
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else None


def _any_true(value: Any) -> bool:
    return any(value) if isinstance(value, list) else bool(value)


def _samples(fields: _Fields) -> int:
    params = fields.sampling_params
    first = params[0] if isinstance(params, list) and params else params
    n = first.get("n") if isinstance(first, dict) else fields.n
    return n if isinstance(n, int) and n > 0 else 1


def _text_of(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _tokens(prompt: Any, chars_per_token: float) -> int:
    if isinstance(prompt, str):
        return max(1, round(len(prompt) / chars_per_token))
    if isinstance(prompt, list) and prompt:
        if isinstance(prompt[0], int):
            return len(prompt)
        return sum(_tokens(each, chars_per_token) for each in prompt)
    return 0


def with_bootstrap(body: bytes | bytearray, prompts: Prompts, host: str, port: int | None) -> bytes:
    """The body with the fields by which the decode server finds the KV cache on the prefill server.

    Args:
        body: a JSON object.
        prompts: what `read_prompts` found in it.
        host: of the chosen prefill server, as the decode server reaches it.
        port: its bootstrap port.
    """
    room = _random.randrange(ROOM_LIMIT)
    fields: dict[str, Any] = {"bootstrap_host": host, "bootstrap_port": port, "bootstrap_room": room}
    if prompts.batch and prompts.samples == 1:
        rooms = [_random.randrange(ROOM_LIMIT) for _ in range(prompts.batch)]
        fields = {
            "bootstrap_host": [host] * prompts.batch,
            "bootstrap_port": [port] * prompts.batch,
            "bootstrap_room": rooms,
        }
    end = body.rindex(b"}")
    before = body[:end].rstrip(b" \t\r\n")
    comma = b"" if before.endswith(b"{") else b","
    return b"".join((before, comma, msgspec.json.encode(fields)[1:]))
