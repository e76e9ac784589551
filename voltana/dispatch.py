"""What a router knows: the last telemetry of every instance, and what it sent that this does not show yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from voltana.state import InstanceLoad, LoadSnapshot, PrefillScheduler, RequestInfo, Router


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


class Accounts:
    """The loads of instances as whoever sends them requests knows them.

    Args:
        policy: who chooses; its class attributes say what it looks at (`voltana.state.Router`).
        telemetry: for each candidate, what gives its last standing: the same object until there is a newer one.
    """

    def __init__(self, policy: object, telemetry: Sequence[Callable[[], Standing]]) -> None:
        self._telemetry = telemetry
        self._sent_requests = [0] * len(telemetry)
        self._sent_tokens = [0] * len(telemetry)
        self.reads_load: bool = getattr(policy, "reads_load", True)
        """Whether the policy looks at the loads at all."""
        self._counts_tokens: bool = getattr(policy, "counts_tokens_sent", True)
        self._told = [Standing(0, 0, 0, 0, 0)] * len(telemetry)
        self._loads = [InstanceLoad(0, 0, 0)] * len(telemetry)
        self.ready = len(telemetry)
        """Candidates in service, the first so many; the others are not shown."""

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

    def _send(self, request: RequestInfo, chosen: int) -> None:
        self._sent_requests[chosen] += 1
        self._sent_tokens[chosen] += request.prompt_tokens
        self._loads[chosen] = self._load(chosen)


class Dispatcher(Accounts):
    """Asks a router, with the accounts of its candidates kept up to date.

    Args:
        router: the policy.
        telemetry: as `Accounts`.
    """

    def __init__(self, router: Router, telemetry: Sequence[Callable[[], Standing]]) -> None:
        super().__init__(router, telemetry)
        self._router = router
        self.at_arrival: bool = getattr(router, "at_arrival", False)
        """Whether decode is chosen when a request arrives."""

    def dispatch(self, request: RequestInfo) -> int:
        """Route a request and count it as sent; nothing is counted if the router raises."""
        chosen = self._router.route(request, tuple(self.loads() if self.reads_load else self._loads)[: self.ready])
        self._send(request, chosen)
        return chosen


class CentralQueue(Accounts):
    """Keeps the requests that a prefill scheduler has not yet sent, and asks it when something has happened.

    Args:
        scheduler: the policy; what it answers has been checked (`voltana.policies.asked`).
        telemetry: as `Accounts`.
        ask_at: has `due` called with a time, when that has come; what was asked for before need not be forgotten.
    """

    def __init__(
        self,
        scheduler: PrefillScheduler,
        telemetry: Sequence[Callable[[], Standing]],
        ask_at: Callable[[float], None],
    ) -> None:
        super().__init__(scheduler, telemetry)
        self._scheduler = scheduler
        self._ask_at = ask_at
        self._waiting: list[tuple[RequestInfo, Callable[[int], None]]] = []
        self._due_s: float | None = None

    def __len__(self) -> int:
        """Requests waiting."""
        return len(self._waiting)

    @property
    def tokens(self) -> int:
        """Prompt tokens of those."""
        return sum(request.prompt_tokens for request, _ in self._waiting)

    def put(self, request: RequestInfo, give: Callable[[int], None], now_s: float) -> None:
        """Take a request; `give` is called once, now or later, with the index of the instance that it goes to."""
        self._waiting.append((request, give))
        self.ask(now_s)

    def drop(self, request_id: int) -> None:
        """Forget a request, if it waits: its client has gone."""
        self._waiting = [each for each in self._waiting if each[0].request_id != request_id]

    def passed_by(self, request: RequestInfo, instance: int) -> None:
        """A request went to an instance without having waited here."""
        self._send(request, instance)

    def due(self, time_s: float) -> None:
        """The time has come that was named to `ask_at`."""
        if time_s == self._due_s:
            self._due_s = None
            self.ask(time_s)

    def ask(self, now_s: float) -> None:
        """Ask the scheduler, if requests wait, and do as it says."""
        if not self._waiting:
            return
        waiting = tuple(request for request, _ in self._waiting)
        plan = self._scheduler.schedule(now_s, waiting, tuple(self.loads())[: self.ready])
        if plan.ask_at_s is not None and plan.ask_at_s != self._due_s:
            self._ask_at(plan.ask_at_s)
        self._due_s = plan.ask_at_s
        sends = [(*self._waiting[place], instance) for place, instance in plan.sends]
        gone = {place for place, _ in plan.sends}
        self._waiting = [each for place, each in enumerate(self._waiting) if place not in gone]
        for request, give, instance in sends:
            self._send(request, instance)
            give(instance)
