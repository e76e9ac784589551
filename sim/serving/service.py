"""Which instances of a phase are in service: they are drained, sleep and wake as a planner says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, Protocol

from voltana.dispatch import Accounts
from voltana.section import Positive, Seconds, Section

State = Literal["up", "asleep", "waking"]


class Sleep(Section):
    """`planner.sleep`: what an instance without a context costs, and to load one."""

    power_w: Positive
    """Of a GPU that sleeps."""
    wake_s: Seconds
    """Until an instance serves."""
    wake_w: Positive
    """Of a GPU meanwhile."""


class Sleeper(Protocol):
    """An instance as it is seen here."""

    def rest_at(self, power_w: float | None) -> None:
        """Draw so much without a batch from now on; None: what an idle GPU does."""
        ...


class Service:
    """The instances of one phase, all in service at first.

    The first so many are wanted. One beyond gets nothing new, ends what it has and sleeps; one that is wanted again
    wakes. Those in service are always the first ones, so their places mean the same to every policy.

    Args:
        instances: all of the phase.
        accounts: shows those in service to the policy that sends them work.
        sleep: what sleeping and waking costs.
        gpus: of an instance.
        after: has something done so many seconds from now, when all else of that instant has happened to it.
    """

    def __init__(
        self,
        instances: Sequence[Sleeper],
        accounts: Accounts,
        sleep: Sleep,
        gpus: int,
        after: Callable[[float, Callable[[], None]], None],
    ) -> None:
        self._instances = instances
        self._accounts = accounts
        self._sleep = sleep
        self._gpus = gpus
        self._after = after
        self._wanted = len(instances)
        self._states: list[State] = ["up"] * len(instances)
        self._has = [0] * len(instances)

    def want(self, count: int) -> None:
        """So many instances are to serve."""
        self._wanted = count
        for index, state in enumerate(self._states):
            if index < count and state == "asleep":
                self._states[index] = "waking"
                self._instances[index].rest_at(self._gpus * self._sleep.wake_w)
                self._after(self._sleep.wake_s, partial(self._woken, index))
            elif index >= count:
                self._rest(index)
        self._show()

    def sent(self, index: int) -> None:
        """An instance was given a request."""
        self._has[index] += 1

    def left(self, index: int) -> None:
        """A request is done with an instance."""
        self._has[index] -= 1
        if index >= self._wanted and not self._has[index]:
            self._after(0.0, partial(self._rest, index))

    def _woken(self, index: int) -> None:
        self._states[index] = "up"
        self._instances[index].rest_at(None)
        self._rest(index)
        self._show()

    def _rest(self, index: int) -> None:
        """Let an instance sleep, if it is not wanted and has nothing to do."""
        if index >= self._wanted and self._states[index] == "up" and not self._has[index]:
            self._states[index] = "asleep"
            self._instances[index].rest_at(self._gpus * self._sleep.power_w)

    def _show(self) -> None:
        wanted = self._states[: self._wanted]
        self._accounts.ready = next((at for at, state in enumerate(wanted) if state != "up"), len(wanted))
