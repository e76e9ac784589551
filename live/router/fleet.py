"""The instances behind the router: which are up, and which one takes a request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from time import monotonic
from typing import NamedTuple
from urllib.parse import urlsplit

from voltana.dispatch import CentralQueue, Dispatcher, Standing
from voltana.errors import UserError
from voltana.live import http
from voltana.live.router.accounts import Account, Telemetry
from voltana.live.router.http1 import reason_of
from voltana.live.router.settings import RouterSettings
from voltana.live.router.upstream import Pool, Shortage, told
from voltana.policies.balancers import LeastRequests
from voltana.state import Phase, PrefillScheduler, RequestInfo, Router

log = logging.getLogger("voltana.live.router")

_REPEAT_S = 10.0
"""A shortage is told no more often."""


class Backend(NamedTuple):
    """Where an instance is.

    Args:
        url: http://HOST:PORT.
        bootstrap_port: of a prefill server.
        telemetry: gives its last snapshot; None: the router goes by its own counts.
    """

    url: str
    bootstrap_port: int | None = None
    telemetry: Telemetry | None = None


class Instance:
    """One server, its connections, and what the router knows of it.

    Raises:
        UserError: the URL is not http://HOST:PORT.
    """

    def __init__(
        self, backend: Backend, phase: Phase, settings: RouterSettings, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.phase = phase
        self.url, self.host, port = _address(backend.url)
        self.bootstrap_port = backend.bootstrap_port
        self.account = Account(backend.telemetry, settings.clock_mhz)
        self.pool = Pool(loop, self.host.strip("[]"), port, settings.connect_timeout_s, settings.upstream_keep_alive_s)
        self.host_header = f"{self.host}:{port}".encode()
        self.up = True
        self.failures_in_a_row = 0
        self.requests_total = 0
        self.failures_total = 0
        self._short_s = -inf
        self.on_change: Callable[[], None] = lambda: None

    def succeeded(self) -> None:
        """An answer came, or a health check passed."""
        self.failures_in_a_row = 0
        if not self.up:
            log.warning("%s instance %s is back", self.phase, self.url)
            self.up = True
            self.on_change()

    def failed(self, reason: str, fatal_after: int) -> None:
        """An answer did not come; so many in a row take the instance out. A shortage of our own is not its fault."""
        if isinstance(reason, Shortage):
            if monotonic() - self._short_s > _REPEAT_S:
                self._short_s = monotonic()
                log.warning("no connection to %s: %s", self.url, reason)
            return
        self.failures_in_a_row += 1
        self.failures_total += 1
        if self.up and self.failures_in_a_row >= fatal_after:
            log.warning("%s instance %s is taken out: it %s", self.phase, self.url, reason)
            self.up = False
            self.on_change()


def _address(url: str) -> tuple[str, str, int]:
    allowed = "allowed: http://HOST:PORT"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise UserError(f"instance: found {url!r}, {allowed} ({error})") from error
    if parts.scheme != "http" or not host or parts.path not in ("", "/") or parts.query:
        raise UserError(f"instance: found {url!r}, {allowed}")
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}", shown, port


class Group:
    """The instances of one phase and the policy that chooses among those that are up.

    Raises:
        UserError: there is none.
    """

    def __init__(self, instances: Sequence[Instance], policy: Router) -> None:
        if not instances:
            raise UserError("instances: found none of a phase, allowed: at least one prefill and one decode")
        self.instances = instances
        self._policy = policy
        self._candidates: list[Instance] = []
        for instance in instances:
            instance.on_change = self._renew
        self._renew()

    def _renew(self, without: frozenset[Instance] = frozenset()) -> None:
        self._candidates = [each for each in self.instances if each.up and each not in without]
        for each in self._candidates:
            each.account.begin()
        self._dispatcher = Dispatcher(self._policy, [each.account.standing for each in self._candidates])

    @property
    def up(self) -> list[Instance]:
        """Those that are up."""
        return [each for each in self.instances if each.up]

    def choose(self, request: RequestInfo, prompts: int, without: frozenset[Instance]) -> Instance | None:
        """Let the policy choose for a request and count it as sent; None if no instance is left.

        Args:
            request: as the policy sees it.
            prompts: how many it holds.
            without: instances already tried.
        """
        if without:
            self._renew(without)
        try:
            if not self._candidates:
                return None
            chosen = self._candidates[self._dispatcher.dispatch(request)]
            chosen.account.sent(prompts, request.prompt_tokens)
            return chosen
        finally:
            if without:
                self._renew()

    def place(
        self,
        request: RequestInfo,
        prompts: int,
        without: frozenset[Instance],
        give: Callable[[Instance | None], None],
    ) -> None:
        """As `choose`, but what was chosen is given to a function: here at once, by a scheduler when it likes."""
        give(self.choose(request, prompts, without))

    def withdraw(self, request: RequestInfo) -> None:
        """A request that may still wait for its instance needs none any more."""

    def heard(self) -> None:
        """New telemetry of an instance has come."""


DOWN = Standing(0, 1 << 30, 1 << 40, 0, 0)
"""What a scheduler is told of an instance that is down: its indices are those of all instances."""


class QueuedGroup(Group):
    """Instances whose requests wait in one queue until a scheduler sends them.

    Args:
        instances: of the phase.
        scheduler: the policy.
        loop: the event loop.
        time_s: the time as policies see it.
        on_error: is told what the policy raised when it was asked for no request of its own.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        scheduler: PrefillScheduler,
        loop: asyncio.AbstractEventLoop,
        time_s: Callable[[], float],
        on_error: Callable[[Exception], None],
    ) -> None:
        self._loop = loop
        self._time_s = time_s
        self._on_error = on_error
        self._gives: dict[int, Callable[[Instance | None], None]] = {}
        self._queue = CentralQueue(scheduler, [partial(_standing, each) for each in instances], self._ask_at)
        super().__init__(instances, LeastRequests())

    def _ask_at(self, time_s: float) -> None:
        self._loop.call_later(max(0.0, time_s - self._time_s()), self._guarded, lambda: self._queue.due(time_s))

    def _guarded(self, ask: Callable[[], None]) -> None:
        try:
            ask()
        except Exception as error:
            self._on_error(error)

    def _renew(self, without: frozenset[Instance] = frozenset()) -> None:
        """An instance came or went."""
        if self.up:
            self.heard()
            return
        waiting, self._gives = self._gives, {}
        for request_id, give in waiting.items():
            self._queue.drop(request_id)
            give(None)

    def place(
        self,
        request: RequestInfo,
        prompts: int,
        without: frozenset[Instance],
        give: Callable[[Instance | None], None],
    ) -> None:
        """Let a request wait; one that some instance did not take goes to the emptiest of the others at once."""
        if not without and self.up:
            self._gives[request.request_id] = give
            self._queue.put(request, partial(self._sent, request, prompts), self._time_s())
            return
        others = [each for each in self.up if each not in without]
        chosen = min(others, key=lambda each: each.account.own.requests, default=None)
        if chosen is not None:
            self._queue.passed_by(request, self.instances.index(chosen))
            chosen.account.sent(prompts, request.prompt_tokens)
        give(chosen)

    def _sent(self, request: RequestInfo, prompts: int, index: int) -> None:
        chosen = self.instances[index]
        chosen.account.sent(prompts, request.prompt_tokens)
        self._gives.pop(request.request_id)(chosen)

    def withdraw(self, request: RequestInfo) -> None:
        """Take a request out of the queue."""
        if self._gives.pop(request.request_id, None) is not None:
            self._queue.drop(request.request_id)

    def heard(self) -> None:
        """Ask the scheduler."""
        self._guarded(lambda: self._queue.ask(self._time_s()))


def _standing(instance: Instance) -> Standing:
    return instance.account.standing() if instance.up else DOWN


async def watch(instance: Instance, interval_s: float, timeout_s: float) -> None:
    """Poll an instance's /health for ever: two failed checks take it out, one passed brings it back."""
    while True:
        await _check(instance, timeout_s)
        await asyncio.sleep(interval_s)


async def _check(instance: Instance, timeout_s: float) -> None:
    try:
        answer = await http.ask(instance.url, "/health", timeout_s=timeout_s)
    except TimeoutError:
        instance.failed(f"did not answer /health within {timeout_s:g} s", 2)
    except OSError as error:
        instance.failed(told(error), 2)
    else:
        if answer.status == 200:
            instance.succeeded()
        else:
            instance.failed(f"answered /health with {answer.status} {reason_of(answer.status)}", 2)
