"""Single iterations of a server, as its telemetry tells them.

A message comes just before an iteration and says what it will run; the next one says how many have ended and how long
they took all together. So two messages in a row are one iteration, if one has ended between them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from voltana.errors import UserError
from voltana.live.telemetry.message import Telemetry
from voltana.state import LoadSnapshot

HEARD_S = 15.0
"""Servers publish every second even when idle."""


class Iteration(NamedTuple):
    """One that has ended. Times in seconds on the monotonic clock of this process."""

    start_s: float
    duration_s: float
    batch_size: int
    tokens: int
    """Prefill: prompt tokens computed. Decode: KV tokens held."""


class Iterations:
    """Collects what servers run, as `take` is told of it."""

    def __init__(self) -> None:
        self._last: dict[str, Telemetry] = {}
        self._ended: dict[str, list[Iteration]] = {}
        self._news = asyncio.Event()
        self.listeners: list[Callable[[Telemetry], None]] = []
        """Told of every message too."""
        self.missed = 0
        """Iterations that cannot be told apart, because a message was lost."""

    async def heard_of(self, *instances: str) -> None:
        """Wait for the first message of each.

        Raises:
            UserError: one stays silent.
        """
        for instance in instances:
            if not await self.until(partial(self._last.__contains__, instance), HEARD_S):
                raise UserError(
                    f"{instance}: found no telemetry within {HEARD_S:g} s, allowed: a server that publishes it "
                    "(VOLTANA_TELEMETRY and VOLTANA_INSTANCE in its environment; docs/telemetry.md)"
                )

    def load(self, instance: str) -> LoadSnapshot:
        """The latest snapshot."""
        return self._last[instance].load

    def kv_tokens(self, instance: str) -> int:
        """KV tokens that fit; 0: not known."""
        return self._last[instance].max_kv_tokens

    def clear(self, instance: str) -> None:
        """Forget what has ended so far."""
        self._ended[instance] = []

    def ended(self, instance: str) -> list[Iteration]:
        """What has ended since `clear`."""
        return self._ended.setdefault(instance, [])

    def wake(self, *_: object) -> None:
        """Have whoever waits look again at its condition."""
        self._news.set()

    async def until(self, condition: Callable[[], object], timeout_s: float) -> bool:
        """Wait until a condition holds, which is looked at with every message and `wake`; False if not in time."""
        end_s = time.monotonic() + timeout_s
        while not condition():
            self._news.clear()
            left_s = end_s - time.monotonic()
            if left_s <= 0:
                return False
            try:
                async with asyncio.timeout(left_s):
                    await self._news.wait()
            except TimeoutError:
                return bool(condition())
        return True

    def take(self, telemetry: Telemetry) -> None:
        """A message came; for a `Subscriber`."""
        name, load = telemetry.instance, telemetry.load
        told = self._last.get(name)
        if told is not None and told.load.batch_size:
            before = told.load
            grown = load.iterations - before.iterations
            if grown == 1:
                start_s = told.received_s - told.transport_s
                took_s = load.busy_s - before.busy_s
                self.ended(name).append(Iteration(start_s, took_s, before.batch_size, before.batch_tokens))
            else:
                self.missed += max(0, grown)
        self._last[name] = telemetry
        for listener in self.listeners:
            listener(telemetry)
        self.wake()
