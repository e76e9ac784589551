"""Merging the logprobs of both legs: the prefill server alone knows those of the prompt.

Only answers to /generate with `return_logprob` come here; they alone are taken apart. What is joined stays the bytes it
was: the numbers of a long prompt, which stand in every event of a stream, are neither decoded nor encoded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

INPUT_FIELDS = ("input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs")
"""Lists over the prompt's tokens: prefill's, then decode's."""


_Members = dict[str, msgspec.Raw]
_decode_members = msgspec.json.Decoder(_Members).decode
_decode_answers = msgspec.json.Decoder(_Members | list[_Members]).decode


def merge_answers(prefill: bytes, decode: bytes) -> bytes:
    """Decode's whole answer with prefill's input logprobs before its own; unchanged if either is of another form."""
    try:
        ours, theirs = _decode_answers(decode), _decode_answers(prefill)
    except msgspec.DecodeError:
        return decode
    pairs = zip(ours, theirs, strict=False) if isinstance(ours, list) and isinstance(theirs, list) else [(ours, theirs)]
    merged = [_prepend(answer, _inputs(source)) for answer, source in pairs]
    return msgspec.json.encode(ours) if any(merged) else decode


class StreamMerger:
    """Prepends prefill's input logprobs to every event of decode's stream.

    Args:
        prefill: the payload of prefill's whole stream.
    """

    def __init__(self, prefill: bytes) -> None:
        self._inputs: dict[bytes, _Members] = {}
        for event in _events(prefill):
            self._inputs.setdefault(_index(event), _inputs(event))
        self._rest = b""

    def feed(self, payload: bytes) -> bytes:
        """Take payload of decode's stream; return what of it can go on, in whole events."""
        *whole, self._rest = (self._rest + payload).split(b"\n\n")
        return b"".join(self._merged(event) + b"\n\n" for event in whole)

    def rest(self) -> bytes:
        """What never became a whole event."""
        return self._rest

    def _merged(self, event: bytes) -> bytes:
        answer = _decoded(event)
        if answer is None or not _prepend(answer, self._inputs.get(_index(answer), {})):
            return event
        return b"data: " + msgspec.json.encode(answer)


def first_error(payload: bytes) -> bool:
    """Whether a stream's payload holds an event that tells of an error."""
    return b'"error"' in payload and any("error" in event for event in _events(payload))


def _events(payload: bytes) -> Iterator[_Members]:
    for event in payload.split(b"\n\n"):
        decoded = _decoded(event)
        if decoded is not None:
            yield decoded


def _decoded(event: bytes) -> _Members | None:
    if not event.startswith(b"data:"):
        return None
    try:
        return _decode_members(event[5:])
    except msgspec.DecodeError:
        return None


def _index(answer: _Members) -> bytes:
    return bytes(answer.get("index", b"0"))


def _meta(answer: Any) -> _Members | None:
    try:
        return _decode_members(answer["meta_info"])
    except (KeyError, TypeError, msgspec.DecodeError):
        return None


def _inputs(answer: Any) -> _Members:
    meta = _meta(answer) or {}
    return {name: meta[name] for name in INPUT_FIELDS if bytes(meta.get(name, b"")).startswith(b"[")}


def _prepend(answer: Any, inputs: _Members) -> bool:
    meta = _meta(answer)
    if meta is None:
        return False
    for name, values in inputs.items():
        meta[name] = _joined(bytes(values), bytes(meta.get(name, b"[]")))
    answer["meta_info"] = msgspec.Raw(msgspec.json.encode(meta))
    return bool(inputs)


def _joined(first: bytes, second: bytes) -> msgspec.Raw:
    """Two JSON lists in one; null is an empty one."""
    inner = [each.strip()[1:-1] for each in (first, second) if each.strip() != b"null"]
    return msgspec.Raw(b"[%b]" % b",".join(each for each in inner if each.strip()))
