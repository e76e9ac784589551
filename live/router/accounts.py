"""What the router knows of an instance's load: its telemetry, and the requests on their way there."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from time import monotonic

from voltana.dispatch import Standing, standing_of
from voltana.state import LoadSnapshot

Telemetry = Callable[[], LoadSnapshot | None]
"""Gives an instance's last snapshot, the same object until there is a newer one; None while there is none."""


class OwnCounts:
    """Stands in for telemetry: the requests this router sent to an instance and has no whole answer for.

    It cannot tell batch from queue, nor see output tokens: all requests count as running, with their prompts alone.

    Args:
        clock_mhz: told as the instance's clock.
    """

    def __init__(self, clock_mhz: int = 0) -> None:
        self._clock_mhz = clock_mhz
        self._started_s = monotonic()
        self.requests = 0
        self.tokens = 0
        self.arrived_requests = 0
        self.arrived_tokens = 0

    def sent(self, requests: int, tokens: int) -> None:
        """Requests went out."""
        self.requests += requests
        self.tokens += tokens
        self.arrived_requests += requests
        self.arrived_tokens += tokens

    def gone(self, requests: int, tokens: int) -> None:
        """Requests ended, however."""
        self.requests -= requests
        self.tokens -= tokens

    def load(self) -> LoadSnapshot:
        """The counts in the form of telemetry."""
        return LoadSnapshot(
            time_s=monotonic() - self._started_s,
            clock_mhz=self._clock_mhz,
            batch_size=self.requests,
            batch_tokens=self.tokens,
            queued=0,
            queued_tokens=0,
            longest_wait_s=0.0,
            idle_s=inf,
            arrived_requests=self.arrived_requests,
            arrived_tokens=self.arrived_tokens,
        )


class Account:
    """One instance as a `Dispatcher` is to see it.

    A dispatcher adds to telemetry what it sent and telemetry does not show. On a real network that difference drifts:
    a request may never arrive, one HTTP request may hold several prompts, other clients may send too, tokens are
    estimates, a server may start anew. So the account keeps the prompts on their way in order, no more than the router
    has at the instance, and words its answer so that the dispatcher's sum comes out as exactly those.

    Args:
        telemetry: of the instance; None, and while it knows nothing: the router's own counts.
        clock_mhz: for the own counts.
    """

    def __init__(self, telemetry: Telemetry | None, clock_mhz: int = 0) -> None:
        self.own = OwnCounts(clock_mhz)
        self._telemetry = telemetry
        self._last: LoadSnapshot | None = None
        self._sent = 0
        self._way: deque[int] = deque()
        self._dispatched_requests = 0
        self._dispatched_tokens = 0
        self._standing = Standing(clock_mhz, 0, 0, 0, 0)
        self._stale = True

    def sent(self, requests: int, tokens: int) -> None:
        """Requests were sent to the instance: by a dispatcher's choice of one request of these tokens."""
        self.own.sent(requests, tokens)
        self._sent += requests
        self._dispatched_requests += 1
        self._dispatched_tokens += tokens
        share, more = divmod(tokens, requests)
        self._way.extend(share + (i < more) for i in range(requests))
        self._stale = self._stale or requests > 1 or self._telemetry is None or self._last is None

    def gone(self, requests: int, tokens: int, *, arrived: bool = True) -> None:
        """Requests ended; `arrived` is false if telemetry will likely never count them, as they were refused."""
        self.own.gone(requests, tokens)
        self._stale = True
        if not arrived:
            self._sent -= requests
            for _ in range(min(requests, len(self._way))):
                self._way.pop()
        while len(self._way) > self.own.requests:
            self._way.popleft()

    def begin(self) -> None:
        """A new dispatcher asks from now on: it knows of nothing sent."""
        self._dispatched_requests = self._dispatched_tokens = 0
        self._stale = True

    def standing(self) -> Standing:
        """What the dispatcher is told; the same object until something changed that it does not count itself."""
        last = self._telemetry() if self._telemetry is not None else None
        if last is not self._last or self._stale:
            self._last, self._stale = last, False
            self._standing = self._own() if last is None else self._seen(last)
        return self._standing

    def _own(self) -> Standing:
        told = standing_of(self.own.load())
        return told._replace(arrived_requests=self._dispatched_requests, arrived_tokens=self._dispatched_tokens)

    def _seen(self, last: LoadSnapshot) -> Standing:
        on_the_way = min(max(self._sent - last.arrived_requests, 0), self.own.requests)
        self._sent = last.arrived_requests + on_the_way
        while len(self._way) > on_the_way:
            self._way.popleft()
        return standing_of(last)._replace(
            arrived_requests=self._dispatched_requests - on_the_way,
            arrived_tokens=self._dispatched_tokens - sum(self._way),
        )
