"""Request bodies: what the router must know of one, and the bootstrap fields written into it.

A body is looked into to learn its prompts, and never encoded again: the fields are spliced in before the closing brace,
so every byte the client wrote reaches the server as it was. A field the client had set itself comes earlier in the
object and so loses against ours.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from voltana.live.router.outline import MAX_MEMBERS, Member, Outline, OutlineError

DECODED_BYTES = 32 * 1024
"""A body up to this length is decoded at once; a longer one is outlined as it comes (`outline.py`)."""
SLICE_BYTES = 256 * 1024
"""A body is passed on in parts of this length, others' turns between them."""
GENERATES = {
    "/generate": ("text", "input_ids"),
    "/v1/completions": ("prompt",),
    "/v1/chat/completions": ("input_ids", "messages"),
}
"""Paths that generate, and the fields that may hold their prompts, the first one first."""
_SAMPLING_BYTES = 256 * 1024
_FLAGS_BYTES = 16 * 1024
_SPACE = rb"[ \t\r\n]{0,1000}"
_NAME = re.compile(_SPACE + rb'("(?:[^"\\]|\\.){0,200}")' + _SPACE + b":" + _SPACE)
_FIRST = re.compile(rb"\[" + _SPACE + rb"([^ \t\r\n])", re.DOTALL)


class BodyError(Exception):
    """A body that cannot be served.

    Attributes:
        code: of the error in OpenAI's form.
    """

    def __init__(self, message: str, code: str = "bad_json") -> None:
        super().__init__(message)
        self.code = code


class Body:
    """A request's body as it comes."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.outline = Outline()

    def __len__(self) -> int:
        return len(self.data)

    @property
    def is_long(self) -> bool:
        """Whether it is to be outlined."""
        return len(self.data) > DECODED_BYTES

    def look(self) -> None:
        """Outline what has come since the last look.

        Raises:
            BodyError: it is no JSON object.
        """
        try:
            self.outline.feed(bytes(memoryview(self.data)[self.outline.size :]))
        except OutlineError as error:
            raise _no_object(error) from error


def _no_object(error: Exception) -> BodyError:
    return BodyError(f"the body is not a JSON object: {error}")


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


class _Sampling(msgspec.Struct):
    n: Any = None


_decode_fields = msgspec.json.Decoder(_Fields).decode
_decode_sampling = msgspec.json.Decoder(None | _Sampling | list[_Sampling]).decode


class Prompts(NamedTuple):
    """What the router needs to know of a request body."""

    batch: int | None
    """Number of prompts if the body holds a list of them."""
    tokens: int
    """Prompt tokens of all of them: counted where token ids are given, else estimated from characters."""
    wants_logprobs: bool
    """Whether `return_logprob` was asked for (/generate alone knows it)."""
    rid: str | None
    """The client's own name for the request."""

    @property
    def number(self) -> int:
        """Number of prompts."""
        return self.batch or 1


def read_prompts(body: Body, path: str, chars_per_token: float, max_prompts: int) -> Prompts:
    """Look into a whole request body.

    Args:
        body: all of it.
        path: one of `GENERATES`.
        chars_per_token: estimates the tokens of text.
        max_prompts: most prompts allowed.

    Raises:
        BodyError: it is not a JSON object, holds too many prompts, or asks for several samples of one.
    """
    read = _outlined if body.is_long else _decoded
    prompts, samples = read(body, path, chars_per_token, max_prompts)
    if prompts.number > max_prompts:
        raise BodyError(f"found {prompts.number} prompts, allowed: {max_prompts} in one request", "too_many_prompts")
    if samples is not None and samples != 1:
        raise BodyError(
            f"n: found {str(samples)[:40]}, allowed: 1; a prefill server of SGLang hands the KV cache of a prompt over "
            "once, so send the request as often as you want samples",
            "unsupported_n",
        )
    return prompts


# A short body, decoded


def _decoded(body: Body, path: str, chars_per_token: float, _: int) -> tuple[Prompts, Any]:
    """What a body holds, and what it says of `n`."""
    try:
        fields = _decode_fields(body.data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _no_object(error) from error
    values = ((name, getattr(fields, name)) for name in GENERATES[path])
    name, prompt = next(((name, value) for name, value in values if value is not None), ("", None))
    batch = None
    if name == "messages":
        texts = [_text_of(message) for message in prompt] if isinstance(prompt, list) else []
        tokens = round(sum(map(len, texts)) / chars_per_token)
    else:
        batch = _batch_of(prompt)
        ids, characters = _contents(prompt)
        text = isinstance(prompt, str) or batch is not None
        tokens = ids or (max(batch or 1, round(characters / chars_per_token)) if text else 0)
    native = path == "/generate"
    rid = fields.rid if isinstance(fields.rid, str) else None
    logprobs = native and _any_true(fields.return_logprob)
    return Prompts(batch, tokens, logprobs, rid), _samples(fields.sampling_params) if native else fields.n


def _batch_of(prompt: Any) -> int | None:
    return len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else None


def _any_true(value: Any) -> bool:
    return any(value) if isinstance(value, list) else bool(value)


def _samples(params: Any) -> Any:
    first = params[0] if isinstance(params, list) and params else params
    return first.get("n") if isinstance(first, dict) else None


def _text_of(message: Any) -> str:
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        return "".join(text for text in texts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _contents(prompt: Any) -> tuple[int, int]:
    """Token ids and characters."""
    if isinstance(prompt, str):
        return 0, len(prompt)
    if not isinstance(prompt, list) or not prompt:
        return 0, 0
    if isinstance(prompt[0], int | float):
        return len(prompt), 0
    each = [_contents(one) for one in prompt]
    return sum(ids for ids, _ in each), sum(characters for _, characters in each)


# A long body, outlined


class _Value:
    """The value of a member of a long body.

    Args:
        name: the member's, as it stands there, quotes included.
        data: the whole body.
        start: offset of its first byte.
        member: where it ends and what was counted on the way.
    """

    def __init__(self, name: bytes, data: bytearray, start: int, member: Member) -> None:
        self.name = name
        self._data = data
        self._start = start
        self._member = member
        self.length = member.end - start
        self.is_null = data.startswith(b"null", start)

    def decoded(self, limit: int, decode: Callable[[bytes], Any] = msgspec.json.decode) -> Any:
        """The value itself; None if it is not JSON, which the servers will say.

        Raises:
            BodyError: it is longer than `limit` bytes.
        """
        if self.length > limit:
            raise BodyError(
                f"{self.name.decode('utf-8', 'replace')}: {self.length} bytes, allowed: {limit}", "too_long"
            )
        try:
            return decode(bytes(self._data[self._start : self._member.end]))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            return None

    def samples(self, max_prompts: int) -> Any:
        """What sampling parameters, perhaps of each prompt, say of `n`.

        Raises:
            BodyError: they are too many or too long.
        """
        if self._member.commas > max(max_prompts, MAX_MEMBERS):
            raise BodyError(f"{self.name.decode()}: more than {max_prompts} elements", "too_long")
        params = self.decoded(_SAMPLING_BYTES, _decode_sampling)
        first = params[0] if isinstance(params, list) and params else params
        return first.n if isinstance(first, _Sampling) else None

    def prompts(self, chars_per_token: float) -> tuple[int | None, int]:
        """As prompts: how many if it is a list of them, and their tokens."""
        member = self._member
        found = _FIRST.match(self._data, self._start, member.end)
        first = found.group(1) if found else b"]"
        elements, text = member.commas + 1, round((member.characters + 2 - len(self.name)) / chars_per_token)
        if self._data.startswith(b'"', self._start):
            return None, max(1, text)
        if first in b"-0123456789":
            return None, elements
        if first == b"]":
            return None, 0
        return elements, max(elements, text) if first in b'"{' else elements + member.inner_commas


def _outlined(body: Body, path: str, chars_per_token: float, max_prompts: int) -> tuple[Prompts, Any]:
    """The same of a long body. All strings of `messages` count, since its texts are not told apart."""
    body.look()
    try:
        body.outline.finish()
        values = dict(_named(body.data, body.outline.members))
    except OutlineError as error:
        raise _no_object(error) from error
    found = ((name, values[name]) for name in GENERATES[path] if name in values and not values[name].is_null)
    name, value = next(found, ("", None))
    batch, tokens = value.prompts(chars_per_token) if value is not None else (None, 0)
    rid = values["rid"].decoded(_FLAGS_BYTES) if "rid" in values else None
    native = path == "/generate"
    logprobs = native and "return_logprob" in values and _any_true(values["return_logprob"].decoded(_FLAGS_BYTES))
    if native:
        samples = values["sampling_params"].samples(max_prompts) if "sampling_params" in values else None
    else:
        samples = values["n"].decoded(_FLAGS_BYTES) if "n" in values else None
    return (
        Prompts(None if name == "messages" else batch, tokens, logprobs, rid if isinstance(rid, str) else None),
        samples,
    )


def _named(data: bytearray, members: Sequence[Member]) -> Iterator[tuple[str, _Value]]:
    for member in members:
        found = _NAME.match(data, member.start, member.end)
        if found is None:
            raise OutlineError(f"no name, or one too long, at byte {member.start}")
        name = found.group(1)
        try:
            yield msgspec.json.decode(name, type=str), _Value(name, data, found.end(), member)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise OutlineError(str(error)) from error


# Bootstrap fields


class Payload:
    """A body on its way to several instances, which share it; it is let go of when none needs it any more.

    Args:
        parts: what it is made of.
        holders: how many instances get it.
        free: is called when the last has let go.
    """

    def __init__(self, parts: Sequence[bytes | memoryview], holders: int, free: Callable[[], None]) -> None:
        self._parts = parts
        self.size = sum(map(len, parts))
        self._holders = holders
        self._free = free

    def slices(self) -> Iterator[bytes | memoryview]:
        """Its bytes, in order."""
        for part in self._parts:
            for start in range(0, len(part), SLICE_BYTES):
                yield part[start : start + SLICE_BYTES]

    def drop(self) -> None:
        """One of the instances needs it no more."""
        self._holders -= 1
        if self._holders == 0:
            self._parts = ()
            self._free()


def bootstrap_parts(body: Body, prompts: Prompts, host: str, port: int | None) -> list[bytes | memoryview]:
    """The body with the fields by which the decode server finds the KV cache on the prefill server.

    Args:
        body: a JSON object.
        prompts: what `read_prompts` found in it.
        host: of the chosen prefill server, as the decode server reaches it.
        port: its bootstrap port.
    """
    random = os.urandom(8 * prompts.number)
    rooms = [int.from_bytes(random[at : at + 8], "big") >> 1 for at in range(0, len(random), 8)]
    many = prompts.batch
    fields: dict[str, Any] = {
        "bootstrap_host": host if many is None else [host] * many,
        "bootstrap_port": port if many is None else [port] * many,
        "bootstrap_room": rooms[0] if many is None else rooms,
    }
    end = body.outline.end if body.is_long else body.data.rindex(b"}")
    empty = not body.is_long and body.data[:end].strip() == b"{"
    return [memoryview(body.data)[:end], (b"" if empty else b",") + msgspec.json.encode(fields)[1:]]
