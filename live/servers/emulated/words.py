"""What an emulated model says: words of five bytes, each one token, chosen by the prompt and the position.

So the same prompt has the same answer on every server.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from typing import NamedTuple

WORDS = [f" {''.join(letters)}" for letters in product("bdfg", "aeio", "klmn", "aeio")]
"""The vocabulary."""

FIRST_ID = 1000
"""Token id of the first word."""

STRIDE = 89
"""Distance of successive tokens in the vocabulary; having no divisor in common with its size, it passes through all."""

LENGTH = 5
"""Of a word."""


def token_index(seed: int, position: int) -> int:
    """The word at a position of an answer."""
    return (seed + STRIDE * position) % len(WORDS)


def text(seed: int, start: int, end: int) -> str:
    """Words `start` to `end` of an answer."""
    return "".join([WORDS[token_index(seed, position)] for position in range(start, end)])


class Stop(NamedTuple):
    """Where an answer ends of itself."""

    matched: str | int
    """The stop string, or the id of the stop token."""
    tokens: int
    """Tokens made until then."""
    characters: int
    """Characters of them that the client gets."""


def first_stop(seed: int, tokens: int, strings: Sequence[str], ids: Collection[int], keep: bool) -> Stop | None:
    """The first stop within so many tokens; answers repeat themselves after the whole vocabulary.

    Args:
        seed: decides the answer.
        tokens: most that may be made.
        strings: end the answer with the token that completes one.
        ids: of tokens that end it.
        keep: whether what matched stays in the answer.
    """
    found = []
    for string in strings:
        within = min(tokens, len(WORDS) + len(string) // LENGTH + 2)
        at = text(seed, 0, within).find(string) if string else -1
        if at >= 0:
            end = at + len(string)
            found.append(Stop(string, -(-end // LENGTH), end if keep else at))
    for position in range(min(tokens, len(WORDS)) if ids else 0):
        token_id = FIRST_ID + token_index(seed, position)
        if token_id in ids:
            found.append(Stop(token_id, position + 1, LENGTH * (position + keep)))
            break
    return min(found, key=lambda stop: stop.tokens, default=None)
