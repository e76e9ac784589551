"""What is late waits behind, but not for ever."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from voltana import checks


class Sized(Protocol):
    """What a prompt is here."""

    @property
    def tokens(self) -> int:
        """Its length."""
        ...


Prompt = TypeVar("Prompt", bound=Sized)


class LateQueue:
    """Prompts that have been given up as late, and their share of every batch.

    Where not all can be in time, giving up the largest before the first deadline that breaks, again and again, keeps
    the most in time (J. M. Moore, An n Job, One Machine Sequencing Algorithm for Minimizing the Number of Late Jobs,
    Management Science 15(1), 1968). What was given up waits behind. It gets `share` of all batches; what a batch has
    not used of that is kept for a prompt that needs more, so that none starves.

    Args:
        share: of the tokens of batches.
    """

    def __init__(self, share: float) -> None:
        self.share = checks.number("late_share", share, above=0, high=0.9)
        self._credit = 0.0
        self._ids: set[int] = set()

    def __contains__(self, request_id: int) -> bool:
        return request_id in self._ids

    def add(self, request_id: int) -> None:
        """Give a request up."""
        self._ids.add(request_id)

    def forget_all_but(self, request_ids: Iterable[int]) -> None:
        """Those that still wait; whatever has become of others, they do not come back."""
        self._ids.intersection_update(request_ids)

    def take(self, late: Sequence[Prompt], tokens: int, room: int) -> list[Prompt]:
        """The late prompts that join a batch, first come, first served.

        Args:
            late: all of them.
            tokens: of the batch without them.
            room: tokens that nobody else wants.
        """
        self._credit += tokens * self.share / (1 - self.share)
        taken: list[Prompt] = []
        for prompt in late:
            if prompt.tokens > max(self._credit, room) and (taken or tokens):
                break
            taken.append(prompt)
            self._credit = max(0.0, self._credit - prompt.tokens)
            room -= prompt.tokens
        return taken
