"""Simulated time: callbacks in the order of their times, and of their scheduling where times are equal."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

Event = list[Any]
"""Time, number and call of something to happen; ordered by the first two."""


class Events:
    """A queue of things to happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self._count = 0
        self._stopped = False
        self._queue: list[Event] = []
        self._soon: list[Callable[[], None]] = []

    def at(self, time_s: float, call: Callable[[], None]) -> Event:
        """Have something called at a time."""
        self._count += 1
        event: Event = [time_s, self._count, call]
        heappush(self._queue, event)
        return event

    def soon(self, call: Callable[[], None]) -> None:
        """Have something called when all that is due at this instant has happened."""
        self._soon.append(call)

    @staticmethod
    def cancel(event: Event) -> None:
        """Keep something from happening."""
        event[2] = _nothing

    def run(self) -> None:
        """Let everything happen until there is nothing left or `stop` is called."""
        queue, soon = self._queue, self._soon
        while queue and not self._stopped:
            self.now, _, call = heappop(queue)
            call()
            while soon and not (queue and queue[0][0] <= self.now):
                soon.pop(0)()

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt as the next event; for a signal handler, which may come in the middle of anything."""
        if self._queue:
            heappush(self._queue, [self._queue[0][0], 0, _interrupted])

    def stop(self) -> None:
        """Nothing more happens."""
        self._stopped = True
        self._soon.clear()


def _interrupted() -> None:
    raise KeyboardInterrupt


def _nothing() -> None:
    """What a cancelled event does."""


class Turns:
    """A resource with a number of places, taken in the order asked."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: list[Callable[[], None]] = []

    def take(self, call: Callable[[], None]) -> None:
        """Have something called when a place is free; it must give the place back."""
        if self._free:
            self._free -= 1
            call()
        else:
            self._waiting.append(call)

    def give_back(self) -> None:
        """A place is free."""
        if self._waiting:
            self._waiting.pop(0)()
        else:
            self._free += 1
