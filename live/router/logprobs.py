"""Merging the logprobs of both legs: the prefill server alone knows those of the prompt.

Only answers to /generate with `return_logprob` come here; they alone are decoded and encoded again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

INPUT_FIELDS = ("input_token_logprobs", "input_top_logprobs", "input_token_ids_logprobs")
"""Lists over the prompt's tokens: prefill's, then decode's."""


def merge_answers(prefill: bytes, decode: bytes) -> bytes:
    """Decode's whole answer with prefill's input logprobs before its own; unchanged if either is of another form."""
    try:
        ours, theirs = msgspec.json.decode(decode), msgspec.json.decode(prefill)
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
        self._inputs: dict[Any, dict[str, list[Any]]] = {}
        for event in _events(prefill):
            self._inputs.setdefault(event.get("index", 0), _inputs(event))
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
        if answer is None or not _prepend(answer, self._inputs.get(answer.get("index", 0), {})):
            return event
        return b"data: " + msgspec.json.encode(answer)


def first_error(payload: bytes) -> bool:
    """Whether a stream's payload holds an event that tells of an error."""
    return b'"error"' in payload and any("error" in event for event in _events(payload))


def _events(payload: bytes) -> Iterator[dict[str, Any]]:
    for event in payload.split(b"\n\n"):
        decoded = _decoded(event)
        if decoded is not None:
            yield decoded


def _decoded(event: bytes) -> dict[str, Any] | None:
    if not event.startswith(b"data:"):
        return None
    try:
        answer = msgspec.json.decode(event[5:])
    except msgspec.DecodeError:
        return None
    return answer if isinstance(answer, dict) else None


def _inputs(answer: Any) -> dict[str, list[Any]]:
    meta = answer.get("meta_info") if isinstance(answer, dict) else None
    if not isinstance(meta, dict):
        return {}
    return {name: meta[name] for name in INPUT_FIELDS if isinstance(meta.get(name), list)}


def _prepend(answer: Any, inputs: dict[str, list[Any]]) -> bool:
    meta = answer.get("meta_info") if isinstance(answer, dict) else None
    if not isinstance(meta, dict):
        return False
    for name, values in inputs.items():
        meta[name] = values + (meta.get(name) or [])
    return bool(inputs)
