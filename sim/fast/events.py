"""Simulated time: callbacks in the order of their times, and of their scheduling where times are equal."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush


class Events:
    """A queue of things to happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self._count = 0
        self._stopped = False
        self._queue: list[tuple[float, int, Callable[[], None]]] = []

    def at(self, time_s: float, call: Callable[[], None]) -> None:
        """Have something called at a time."""
        self._count += 1
        heappush(self._queue, (time_s, self._count, call))

    def run(self) -> None:
        """Let everything happen until there is nothing left or `stop` is called."""
        queue = self._queue
        while queue and not self._stopped:
            self.now, _, call = heappop(queue)
            call()

    def stop(self) -> None:
        """Nothing more happens."""
        self._stopped = True


class Alarm:
    """One thing to happen that can be put off: only the latest time it was set to counts."""

    def __init__(self, events: Events, call: Callable[[], None]) -> None:
        self._events = events
        self._call = call
        self._version = 0

    def set(self, time_s: float) -> None:
        """Ring at this time instead of any set before."""
        self._version = version = self._version + 1

        def ring() -> None:
            if version == self._version:
                self._call()

        self._events.at(time_s, ring)

    def cancel(self) -> None:
        """Do not ring."""
        self._version += 1


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
