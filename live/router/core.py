"""What all requests share: the two groups of instances, the places at them, the counters, whoever watches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple, Protocol

from voltana.live.router.fleet import Group, log
from voltana.live.router.metrics import Metrics
from voltana.live.router.settings import RouterSettings


class Routed(NamedTuple):
    """A request that was given its instances. Times are seconds since the router's origin."""

    request_id: int
    client_id: str | None
    """The body's `rid`, else the header `x-request-id`."""
    arrival_s: float
    prompt_tokens: int
    prompts: int
    prefill: int
    """Index of the instance, as the router was given them."""
    decode: int


class Observer(Protocol):
    """Watches requests, to record them. Nothing is called per chunk."""

    def on_request(self, routed: Routed) -> None:
        """A request goes to its instances; again, with the same id, if one of them turned out to be unreachable."""

    def on_first_byte(self, request_id: int, time_s: float) -> None:
        """The first byte of its answer's body goes to the client."""

    def on_end(self, request_id: int, time_s: float, outcome: str) -> None:
        """It is over: completed, rejected (an error of an instance was passed on), failed, refused or disconnected.

        A request that never got its instances ends without having been told by `on_request`.
        """


class Waiting(Protocol):
    """A request that waits for its place."""

    started_s: float

    def start(self) -> None:
        """There is a place."""

    def refuse(self, message: str) -> None:
        """There will be none."""


class Active(Protocol):
    """A request under way."""

    def sweep(self, now_s: float) -> None:
        """Give up what takes too long."""

    def fail(self, status: int, message: str) -> None:
        """Give up altogether."""


def log_policy_error(error: Exception) -> None:
    """What a router on its own does about a policy that raised."""
    log.error("the policy raised %s: %s", type(error).__name__, error)


class Core:
    """The shared state of a router.

    Args:
        settings: limits.
        prefill, decode: the instances.
        observer: is told of every request.
        origin_s: the `time.monotonic()` that is zero in all times given to policies and observers.
        on_policy_error: is told what a routing policy raised.
    """

    def __init__(
        self,
        settings: RouterSettings,
        prefill: Group,
        decode: Group,
        observer: Observer | None = None,
        origin_s: float | None = None,
        on_policy_error: Callable[[Exception], None] = log_policy_error,
    ) -> None:
        self.settings = settings
        self.prefill = prefill
        self.decode = decode
        self.metrics = Metrics()
        self.observer = observer
        self.on_policy_error = on_policy_error
        self.in_flight = 0
        self.queue: deque[Waiting] = deque()
        self.active: set[Active] = set()
        self._origin_s = monotonic() if origin_s is None else origin_s
        self._last_id = -1
        self._filling = False

    def time_s(self) -> float:
        """Seconds since the origin."""
        return monotonic() - self._origin_s

    def next_id(self) -> int:
        """A number for a new request."""
        self._last_id += 1
        return self._last_id

    def admit(self, waiting: Waiting) -> None:
        """Start a request, let it wait for a place, or refuse it."""
        if self.in_flight < self.settings.max_in_flight:
            self.in_flight += 1
            waiting.start()
        elif len(self.queue) < self.settings.max_queued:
            self.queue.append(waiting)
        else:
            waiting.refuse("the router's queue is full")

    def left(self) -> None:
        """A started request is over: its place goes to the next."""
        self.in_flight -= 1
        if self._filling:  # one that was refused at its start: the loop below goes on, however many follow
            return
        self._filling = True
        while self.queue and self.in_flight < self.settings.max_in_flight:
            self.in_flight += 1
            self.queue.popleft().start()
        self._filling = False

    def sweep(self, now_s: float) -> None:
        """Refuse what waited too long for a place, give up what takes too long there."""
        while self.queue and now_s - self.queue[0].started_s > self.settings.queue_timeout_s:
            self.queue.popleft().refuse("no instance had room in time")
        for active in list(self.active):
            active.sweep(now_s)
