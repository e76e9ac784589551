"""Where the members of a long JSON object are, found as its bytes come, in steps of bounded length.

A JSON decoder runs to its end: 16 MB of empty lists hold the event loop for seconds. Here each step looks at a slice of
bytes with a fixed number of passes, whatever stands in it, so its time follows from its length alone. Nothing is
decoded, and nothing validated but that there is one object; the servers judge the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STEP_BYTES = 64 * 1024
"""Bytes looked at in one step."""
MAX_MEMBERS = 256
"""Members of the object; SGLang knows below 100."""
MAX_DEPTH = 1000
"""Nesting; JSON decoders have such a limit, too."""

_OPEN, _CLOSE, _COMMA, _QUOTE, _SLASH = 1, 2, 3, 4, 5
_KINDS = bytes(
    {"[": _OPEN, "{": _OPEN, "]": _CLOSE, "}": _CLOSE, ",": _COMMA, '"': _QUOTE, "\\": _SLASH}.get(chr(byte), 0)
    for byte in range(256)
)
_DEEPER = np.array([0, 1, -1, 0, 0, 0], np.int32)

Places = NDArray[np.intp]
Flags = NDArray[np.bool_]


class OutlineError(ValueError):
    """It is not one JSON object, or one beyond all measure."""


@dataclass
class Member:
    """One member of the object, its key included."""

    start: int
    """Offset of its first byte."""
    end: int = 0
    """Offset behind its last byte."""
    commas: int = 0
    """Commas between the elements of its value, if that is a list."""
    inner_commas: int = 0
    """Commas deeper within."""
    characters: int = 0
    """Of all strings in it, its key included; an escape counts as it is written."""


class Outline:
    """Takes the bytes of a JSON object as they come.

    Attributes:
        members: in their order; the last one is open until the object ends.
        end: offset of the closing brace, -1 before it.
        size: bytes taken.
    """

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.end = -1
        self.size = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            OutlineError: see there.
        """
        for start in range(0, len(data), STEP_BYTES):
            self._step(data[start : start + STEP_BYTES])

    def finish(self) -> None:
        """There are no more bytes.

        Raises:
            OutlineError: see there.
        """
        if self.end < 0:
            raise OutlineError("it ends within")

    def _step(self, data: bytes) -> None:
        kind_of_byte = np.frombuffer(data.translate(_KINDS), np.uint8)
        places = np.flatnonzero(kind_of_byte != 0)
        kinds = kind_of_byte[places]
        quotes = kinds == _QUOTE
        self._drop_escaped(places, kinds, quotes, len(data))
        strings = np.cumsum(quotes, dtype=np.int32) + self._in_string
        outside = (strings & 1) == 0
        depths = self._depth + np.cumsum(_DEEPER[kinds] * outside, dtype=np.int32)
        if len(places):
            self._depth = int(depths[-1])
            if depths.max() > MAX_DEPTH or depths.min() < 0:
                raise OutlineError(f"it nests deeper than {MAX_DEPTH}, or is not balanced")
        # A string's length is the place of its end less that of its beginning.
        lengths = np.where(outside, places, -1 - places) * quotes
        continued = np.empty(0, np.intp)
        if not data.isascii():
            continued = np.flatnonzero((np.frombuffer(data, np.uint8) & 0xC0) == 0x80)
        self._cut(places, kinds, outside, depths, lengths, continued, len(data))
        if len(places):
            self._in_string = not outside[-1]
        if self._in_string and self.members:
            self.members[-1].characters += len(data)
        self.size += len(data)

    def _drop_escaped(self, places: Places, kinds: NDArray[np.uint8], quotes: Flags, length: int) -> None:
        """Leave only the quotes that begin or end a string: not those behind an odd number of backslashes."""
        slashes = np.flatnonzero(kinds == _SLASH)
        if self._escaped and len(places) and places[0] == 0:
            quotes[0] = False
            slashes = slashes[int(kinds[0] == _SLASH) :]
        self._escaped = False
        if not len(slashes):
            return
        breaks = np.flatnonzero(np.diff(places[slashes]) != 1)
        first, last = slashes[np.r_[0, breaks + 1]], slashes[np.r_[breaks, len(slashes) - 1]]
        odd = last[(last - first) % 2 == 0]
        self._escaped = bool(len(odd) and places[odd[-1]] == length - 1)
        odd = odd[odd < len(places) - 1]
        quotes[odd[places[odd + 1] == places[odd] + 1] + 1] = False

    def _cut(
        self,
        places: Places,
        kinds: NDArray[np.uint8],
        outside: Flags,
        depths: NDArray[np.int32],
        lengths: Places,
        continued: Places,
        length: int,
    ) -> None:
        """Divide a step between the members it has parts of."""
        commas = (kinds == _COMMA) & outside
        cuts = np.flatnonzero(outside & (kinds <= _COMMA) & ((depths == 1) & (kinds != _CLOSE) | (depths == 0)))
        if len(self.members) + len(cuts) > MAX_MEMBERS:
            raise OutlineError(f"it has more than {MAX_MEMBERS} members")
        outer, inner = commas & (depths == 2), commas & (depths > 2)
        ends = [*places[cuts].tolist(), length]
        counts = np.searchsorted(continued, ends).tolist()
        since = counted = 0
        for cut, end, count in zip([*cuts.tolist(), len(places)], ends, counts, strict=True):
            if self.members and self.end < 0:
                member = self.members[-1]
                member.commas += int(np.count_nonzero(outer[since:cut]))
                member.inner_commas += int(np.count_nonzero(inner[since:cut]))
                member.characters += int(lengths[since:cut].sum()) - (count - counted)
            if end < length:
                self._at_cut(self.size + end, int(kinds[cut]))
            since, counted = cut, count

    def _at_cut(self, at: int, kind: int) -> None:
        if self.end >= 0 or (kind == _OPEN) == bool(self.members):
            raise OutlineError("there is more than one value")
        if self.members:
            self.members[-1].end = at
        if kind == _CLOSE:
            self.end = at
        else:
            self.members.append(Member(at + 1))
