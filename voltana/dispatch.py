"""What a router knows: the last telemetry of every instance, and what it sent that this does not show yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from voltana.state import InstanceLoad, LoadSnapshot, RequestInfo, Router


class Dispatcher:
    """Asks a router, with the accounts of its candidates kept up to date.

    Args:
        router: the policy.
        telemetry: for each candidate, what gives its last telemetry.
    """

    def __init__(self, router: Router, telemetry: Sequence[Callable[[], LoadSnapshot]]) -> None:
        self._router = router
        self._telemetry = telemetry
        self._sent_requests = [0] * len(telemetry)
        self._sent_tokens = [0] * len(telemetry)
        self._reads_load = getattr(router, "reads_load", True)
        self._unread = [InstanceLoad(0, 0, 0)] * len(telemetry)

    def loads(self) -> Sequence[InstanceLoad]:
        """The candidates as the router would see them now."""
        return [self._load(index, source()) for index, source in enumerate(self._telemetry)]

    def _load(self, index: int, last: LoadSnapshot) -> InstanceLoad:
        on_the_way = self._sent_requests[index] - last.arrived_requests
        tokens_on_the_way = self._sent_tokens[index] - last.arrived_tokens
        return InstanceLoad(
            last.clock_mhz,
            last.batch_size + last.queued + on_the_way,
            last.batch_tokens + last.queued_tokens + tokens_on_the_way,
        )

    def dispatch(self, request: RequestInfo) -> int:
        """Route a request and count it as sent.

        Raises:
            IndexError: the router answered with a candidate that does not exist.
        """
        chosen = self._router.route(request, self.loads() if self._reads_load else self._unread)
        if not 0 <= chosen < len(self._telemetry):
            raise IndexError(f"{type(self._router).__name__} chose {chosen} of {len(self._telemetry)} instances")
        self._sent_requests[chosen] += 1
        self._sent_tokens[chosen] += request.prompt_tokens
        return chosen
