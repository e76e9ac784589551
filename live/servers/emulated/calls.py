"""What a client asks for: the bodies of /generate, /v1/completions and /v1/chat/completions, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple
from zlib import crc32

import msgspec

from voltana.live.servers.emulated.words import Stop, first_stop

Kind = Literal["generate", "completion", "chat"]

KINDS: dict[str, Kind] = {
    "/generate": "generate",
    "/v1/completions": "completion",
    "/v1/chat/completions": "chat",
}

DEFAULT_TOKENS: dict[Kind, int] = {"generate": 128, "completion": 16, "chat": 128}
"""Output tokens of a request that does not say."""

MAX_PROMPTS = 1024
"""Of one request."""

ROLES = frozenset({"user", "system", "assistant", "tool", "function", "developer", "latest_reminder", "root"})
"""Of chat messages."""

MEDIA = frozenset({"image_url", "video_url", "audio_url", "input_audio"})
"""Parts of chat messages that a model of text alone does not take."""


class BadRequestError(ValueError):
    """A request that SGLang would refuse, too."""


class Prompt(NamedTuple):
    """One prompt. A word of a text is a token of it."""

    tokens: int
    seed: int
    """Decides the answer's text."""


class Room(NamedTuple):
    """Where the two halves of a request meet."""

    host: str
    port: int | None
    room: int


class Choice(NamedTuple):
    """One prompt and what to do with it."""

    number: int
    rid: str
    prompt: Prompt
    max_tokens: int
    """Output tokens that will be made."""
    room: Room
    stop: Stop | None = None
    """What ends it; None: its length."""


class Logprobs(NamedTuple):
    """What log probabilities are wanted."""

    output: bool = False
    input_from: int = -1
    """First prompt token; -1: none of the prompt."""


class Call(NamedTuple):
    """A whole request."""

    kind: Kind
    model: str
    choices: list[Choice]
    batched: bool
    """The answer is a list."""
    stream: bool
    usage: bool
    """A stream ends with the counts of its tokens."""
    logprobs: Logprobs


_decode = msgspec.json.Decoder().decode


def parse(kind: Kind, body: bytes, model: str, rid: str, content_type: str = "application/json") -> Call:
    """Read a body.

    Args:
        kind: which endpoint.
        body: JSON.
        model: name of the model served.
        rid: what to call a request without a name of its own.
        content_type: of the body, as the client said.

    Raises:
        BadRequestError: says what is wrong.
    """
    if content_type.lower().partition(";")[0].strip() != "application/json":
        raise BadRequestError("Unsupported Media Type: Only 'application/json' is allowed")
    try:
        values = _decode(body)
    except msgspec.DecodeError as error:
        raise BadRequestError(f"the body is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BadRequestError("the body is not a JSON object")
    if kind == "generate":
        prompts, batched = _generate_prompts(values)
        parameters: Any = values.get("sampling_params") or {}
        limit_key, logprobs = "max_new_tokens", _generate_logprobs(values)
    else:
        prompts, batched = _chat_prompt(values) if kind == "chat" else _completion_prompts(values)
        parameters = values
        limit_key, logprobs = "max_tokens", Logprobs(bool(values.get("logprobs")))
        if kind == "chat" and values.get("max_completion_tokens") is not None:
            limit_key = "max_completion_tokens"
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise BadRequestError(f"{len(prompts)} prompts; allowed: 1 to {MAX_PROMPTS}")
    shared = parameters if isinstance(parameters, list) else [parameters] * len(prompts)
    if len(shared) != len(prompts) or not all(isinstance(each, dict) for each in shared):
        raise BadRequestError("sampling_params: allowed: an object, or one for each prompt")
    rooms, rids = _rooms(values, len(prompts)), _spread(values, "rid", len(prompts))
    choices = [
        _choice(index, str(rids[index] or f"{rid}-{index}"), prompt, _limit(kind, limit_key, each), rooms[index], each)
        for index, (prompt, each) in enumerate(zip(prompts, shared, strict=True))
    ]
    options = values.get("stream_options") or {}
    usage = isinstance(options, dict) and bool(options.get("include_usage"))
    return Call(kind, str(values.get("model") or model), choices, batched, bool(values.get("stream")), usage, logprobs)


def _choice(number: int, rid: str, prompt: Prompt, limit: int, room: Room, parameters: dict[str, Any]) -> Choice:
    strings, ids = _listed(parameters, "stop", str), _listed(parameters, "stop_token_ids", int)
    stop = first_stop(prompt.seed, limit, strings, ids, bool(parameters.get("no_stop_trim")))
    return Choice(number, rid, prompt, limit if stop is None else stop.tokens, room, stop)


def _listed(parameters: dict[str, Any], key: str, kind: type) -> list[Any]:
    """A value, or a list of them."""
    found = parameters.get(key)
    values = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(each) is kind for each in values):
        raise BadRequestError(f"{key}: found {found!r}, allowed: {kind.__name__}, or a list of it")
    return values


def _limit(kind: Kind, key: str, parameters: dict[str, Any]) -> int:
    if parameters.get("n") not in (None, 1):
        raise BadRequestError(f"n: found {parameters['n']!r}; an emulated server makes one choice of a prompt")
    value = parameters.get(key)
    if value is None:
        return DEFAULT_TOKENS[kind]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BadRequestError(f"{key} must be a positive integer, found {value!r}")
    return value


def _generate_prompts(values: dict[str, Any]) -> tuple[list[Prompt], bool]:
    text, ids = values.get("text"), values.get("input_ids")
    if (text is None) == (ids is None):
        raise BadRequestError("Either text or input_ids should be provided.")
    found = ids if text is None else text
    return _prompts("text" if ids is None else "input_ids", found)


def _completion_prompts(values: dict[str, Any]) -> tuple[list[Prompt], bool]:
    return _prompts("prompt", values.get("prompt"))


def _prompts(key: str, found: Any) -> tuple[list[Prompt], bool]:
    if isinstance(found, list) and found and isinstance(found[0], str | list):
        return [_prompt(key, each) for each in found], True
    return [_prompt(key, found)], False


def _prompt(key: str, found: Any) -> Prompt:
    if isinstance(found, str):
        return Prompt(max(1, len(found.split())), crc32(found.encode()))
    if isinstance(found, list) and found and all(type(each) is int for each in found):
        return Prompt(len(found), crc32(str(found).encode()))
    raise BadRequestError(f"{key}: allowed: a text, a list of token ids, or a list of either")


def _chat_prompt(values: dict[str, Any]) -> tuple[list[Prompt], bool]:
    messages = values.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequestError("messages: allowed: a list of at least one message")
    return [_prompt("messages", " ".join(_message_text(each) for each in messages))], False


def _message_text(message: Any) -> str:
    """A message's text, as far as SGLang takes it for a model of text alone."""
    role = message.get("role") if isinstance(message, dict) else None
    if not isinstance(role, str) or (role != "user" and (role.lower() == "user" or role.lower() not in ROLES)):
        raise BadRequestError(f"messages: found role {role!r}, allowed: {', '.join(sorted(ROLES))}")
    content = message.get("content")
    if content is None and role != "user":
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise BadRequestError("messages: content: allowed: a text, or a list of parts")
    return " ".join(_part_text(part) for part in content)


def _part_text(part: dict[str, Any]) -> str:
    kind, text = part.get("type"), part.get("text")
    if kind in MEDIA:
        raise BadRequestError(f"Model only supports text input; received unsupported content type {kind!r}.")
    if kind != "text" or not isinstance(text, str):
        raise BadRequestError(f"messages: content: found a part of type {kind!r}, allowed: text")
    return text


def _generate_logprobs(values: dict[str, Any]) -> Logprobs:
    if not values.get("return_logprob"):
        return Logprobs()
    first = values.get("logprob_start_len")
    return Logprobs(True, first if isinstance(first, int) else -1)


def _rooms(values: dict[str, Any], prompts: int) -> list[Room]:
    hosts, ports, rooms = (_spread(values, f"bootstrap_{key}", prompts) for key in ("host", "port", "room"))
    found = []
    for host, port, room in zip(hosts, ports, rooms, strict=True):
        if type(room) is not int:
            raise BadRequestError("Invalid request: Disaggregated request received without bootstrap room id.")
        found.append(Room(str(host or ""), port if type(port) is int else None, room))
    return found


def _spread(values: dict[str, Any], key: str, prompts: int) -> Sequence[Any]:
    """One value for each prompt."""
    found = values.get(key)
    if not isinstance(found, list):
        return [found] * prompts
    if len(found) != prompts:
        raise BadRequestError(f"{key}: {len(found)} values for {prompts} prompts")
    return found
