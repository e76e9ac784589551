"""What a router knows: the last telemetry of every instance, and what it sent that this does not show yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from voltana.state import InstanceLoad, LoadSnapshot, RequestInfo, Router


@dataclass
class _Account:
    """Requests and prompt tokens sent to an instance, and the last telemetry from it."""

    sent_requests: int = 0
    sent_tokens: int = 0
    last: LoadSnapshot | None = None

    def load(self, clock_mhz: int) -> InstanceLoad:
        if self.last is None:
            return InstanceLoad(clock_mhz, self.sent_requests, self.sent_tokens)
        last = self.last
        return InstanceLoad(
            last.clock_mhz,
            last.batch_size + last.queued + self.sent_requests - last.arrived_requests,
            last.batch_tokens + last.queued_tokens + self.sent_tokens - last.arrived_tokens,
        )


class Dispatcher:
    """Asks a router, with the accounts of its candidates kept up to date.

    Args:
        router: the policy.
        instances: number of candidates.
        clock_mhz: their clock before the first telemetry.
    """

    def __init__(self, router: Router, instances: int, clock_mhz: int) -> None:
        self._router = router
        self._accounts = [_Account() for _ in range(instances)]
        self._clock_mhz = clock_mhz

    def observe(self, instance: int, telemetry: LoadSnapshot) -> None:
        """Take in telemetry of an instance."""
        self._accounts[instance].last = telemetry

    def loads(self) -> Sequence[InstanceLoad]:
        """The candidates as the router would see them now."""
        return [account.load(self._clock_mhz) for account in self._accounts]

    def dispatch(self, request: RequestInfo) -> int:
        """Route a request and count it as sent.

        Raises:
            IndexError: the router answered with a candidate that does not exist.
        """
        chosen = self._router.route(request, self.loads())
        if not 0 <= chosen < len(self._accounts):
            raise IndexError(f"{type(self._router).__name__} chose {chosen} of {len(self._accounts)} instances")
        account = self._accounts[chosen]
        account.sent_requests += 1
        account.sent_tokens += request.prompt_tokens
        return chosen
