"""What a router knows: the last telemetry of every instance, and what it sent that this does not show yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from voltana.state import InstanceLoad, LoadSnapshot, RequestInfo, Router


class Standing(NamedTuple):
    """What telemetry tells a router of an instance."""

    clock_mhz: int
    requests: int
    """In the batch or queued."""
    tokens: int
    """Of those, as in `InstanceLoad`."""
    arrived_requests: int
    """Requests that ever reached the instance."""
    arrived_tokens: int
    """Prompt tokens that ever reached the instance."""


def standing_of(last: LoadSnapshot) -> Standing:
    """The part of a snapshot that routers need."""
    return Standing(
        last.clock_mhz,
        last.batch_size + last.queued,
        last.batch_tokens + last.queued_tokens,
        last.arrived_requests,
        last.arrived_tokens,
    )


class Dispatcher:
    """Asks a router, with the accounts of its candidates kept up to date.

    Args:
        router: the policy.
        telemetry: for each candidate, what gives its last standing: the same object until there is a newer one.
    """

    def __init__(self, router: Router, telemetry: Sequence[Callable[[], Standing]]) -> None:
        self._router = router
        self._telemetry = telemetry
        self._sent_requests = [0] * len(telemetry)
        self._sent_tokens = [0] * len(telemetry)
        self.reads_load: bool = getattr(router, "reads_load", True)
        """Whether the router looks at the loads at all."""
        self.at_arrival: bool = getattr(router, "at_arrival", False)
        """Whether decode is chosen when a request arrives."""
        self._counts_tokens: bool = getattr(router, "counts_tokens_sent", True)
        self._told = [Standing(0, 0, 0, 0, 0)] * len(telemetry)
        self._loads = [InstanceLoad(0, 0, 0)] * len(telemetry)

    def loads(self) -> Sequence[InstanceLoad]:
        """The candidates as the router would see them now."""
        seen = self._told
        for index, source in enumerate(self._telemetry):
            told = source()
            if told is not seen[index]:
                seen[index] = told
                self._loads[index] = self._load(index)
        return self._loads

    def _load(self, index: int) -> InstanceLoad:
        clock_mhz, requests, tokens, arrived_requests, arrived_tokens = self._told[index]
        return InstanceLoad(
            clock_mhz,
            requests + self._sent_requests[index] - arrived_requests,
            tokens + self._sent_tokens[index] - arrived_tokens if self._counts_tokens else tokens,
        )

    def dispatch(self, request: RequestInfo) -> int:
        """Route a request and count it as sent; nothing is counted if the router raises."""
        chosen = self._router.route(request, tuple(self.loads() if self.reads_load else self._loads))
        self._sent_requests[chosen] += 1
        self._sent_tokens[chosen] += request.prompt_tokens
        self._loads[chosen] = self._load(chosen)
        return chosen
