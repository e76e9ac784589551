"""Policies as a world asks them: every answer is checked before anything follows from it.

`voltana.app.bundle` puts these around the policies it builds, so the check is the same in both engines and live. An
answer that passed is not checked again while its parts are the same objects, since a controller is asked many thousand
times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from inspect import iscoroutine
from numbers import Integral, Real
from typing import Any, NamedTuple, NoReturn

from voltana import checks
from voltana.errors import PolicyError, one_line, told
from voltana.state import ClusterLoad, Decision, InstanceLoad, LoadSnapshot, Placement, PrefillPlan, RequestInfo

FLAGS = {"reads_load": True, "reads_power": False, "reads_requests": False, "acts_at_once": False}
"""Class attributes by which a policy says what it looks at and does, with what holds where it does not say."""
SHOWN = 120
"""Characters of an answer that are shown."""


class Who(NamedTuple):
    """Whose answer it is, for messages."""

    policy: str
    """The bundle's name."""
    part: str
    """Its key in the bundle, such as `decode_controller`."""
    target: str
    """The dotted path of its class."""
    instance: str = ""
    """Of a controller."""

    def __str__(self) -> str:
        whose = f" of {self.instance}" if self.instance else ""
        return f"policy {self.policy}: {self.part} ({self.target}){whose}"


class _Asked:
    """What both kinds share: what the policy says of itself, and the check that it can be asked.

    The flags are attributes and not looked up when asked for: `__getattr__` makes every access slow.

    Raises:
        PolicyError: it has no such method, or a flag is not a yes or no.
    """

    def __init__(self, who: Who, policy: Any, method: str) -> None:
        self._who = who
        self._policy = policy
        if not callable(getattr(policy, method, None)):
            made = type(policy)
            raise PolicyError(
                f"{who}: found {_shown(policy)}, a {made.__module__}.{made.__qualname__} without {method}(), "
                f"allowed: an object with {method}()"
            )
        flags = {flag: getattr(policy, flag, default) for flag, default in FLAGS.items()}
        for flag, value in flags.items():
            if not isinstance(value, bool):
                raise PolicyError(f"{who}: {flag} is {_shown(value)}, allowed: True, False")
        self.reads_load, self.reads_power, self.reads_requests, self.acts_at_once = flags.values()
        self.truth = getattr(policy, "truth", None)
        """Of an oracle."""

    def _raised(self, when: str, error: BaseException, allowed: str) -> PolicyError:
        message = f"{self._who} {when} raised {told(error, __name__)}, allowed: {allowed}"
        return PolicyError.raised(message, error, __name__)


class AskedController(_Asked):
    """A frequency controller.

    Args:
        who: for messages.
        policy: the controller.
        clocks_mhz: what the GPU has.
        power_limits_w: lowest and highest cap of a GPU.

    Raises:
        PolicyError: see `_Asked`.
    """

    def __init__(
        self, who: Who, policy: Any, clocks_mhz: Sequence[int], power_limits_w: Callable[[], tuple[float, float]]
    ) -> None:
        super().__init__(who, policy, "decide")
        self._decide = policy.decide
        self._clocks_mhz = clocks_mhz
        self._supported: Collection[int] = frozenset(clocks_mhz)
        self._power_limits_w = power_limits_w
        self._clock_mhz: Any = self
        self._ask_when_idle_s: Any = self
        self._power_cap_w: Any = self

    def decide(self, load: LoadSnapshot) -> Decision:
        """Ask it.

        Raises:
            PolicyError: it raised, or its answer is not allowed.
        """
        try:
            answer = self._decide(load)
        except BaseException as error:  # Ctrl-C does not come here: the engines put it off (`voltana.sim.serving.flow`)
            raise self._raised(f"at {load.time_s:.3f} s", error, self._decision()) from error
        if answer.__class__ is Decision:
            clock_mhz, ask_when_idle_s, holds_below_tokens, power_cap_w = answer
            if (
                clock_mhz is self._clock_mhz
                and ask_when_idle_s is self._ask_when_idle_s
                and power_cap_w is self._power_cap_w
                and holds_below_tokens.__class__ is float
                and holds_below_tokens >= 0.0
            ):
                return answer
        return self._check(answer, load)

    def _check(self, answer: object, load: LoadSnapshot) -> Decision:
        if not isinstance(answer, Decision):
            self._refuse(answer, load, "", self._decision())
        clock_mhz, ask_s, holds, cap_w = answer
        if not _is_whole(clock_mhz) or clock_mhz not in self._supported:
            self._refuse(answer, load, "clock_mhz", self._clocks())
        if ask_s is not None and not (_is_number(ask_s) and 0 < ask_s < math.inf):
            self._refuse(answer, load, "ask_when_idle_s", "None, or a number of seconds above 0")
        if not (_is_number(holds) and holds >= 0):
            self._refuse(answer, load, "holds_below_tokens", "a number of tokens from 0; math.inf: for ever")
        if cap_w is not None:
            low, high = self._power_limits_w()
            if not (_is_number(cap_w) and low <= cap_w <= high):
                self._refuse(answer, load, "power_cap_w", f"None, or {low:g} to {high:g} W")
        self._clock_mhz, self._ask_when_idle_s, self._power_cap_w = clock_mhz, ask_s, cap_w
        return Decision(
            int(clock_mhz),
            None if ask_s is None else float(ask_s),
            float(holds),
            None if cap_w is None else float(cap_w),
        )

    def _refuse(self, answer: object, load: LoadSnapshot, field: str, allowed: str) -> NoReturn:
        wrong = f", {field}={_shown(getattr(answer, field))}" if field else ""
        raise PolicyError(f"{self._who} at {load.time_s:.3f} s answered {_shown(answer)}{wrong}, allowed: {allowed}")

    def _decision(self) -> str:
        return f"a voltana.state.Decision with a clock of {self._clocks()}"

    def _clocks(self) -> str:
        return f"whole MHz, {checks.describe_clocks(self._clocks_mhz)}"


class AskedRouter(_Asked):
    """A router.

    Args:
        who: for messages.
        policy: the router.

    Raises:
        PolicyError: see `_Asked`.
    """

    def __init__(self, who: Who, policy: Any) -> None:
        super().__init__(who, policy, "route")
        self._route = policy.route

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        """Ask it.

        Raises:
            PolicyError: it raised, or its answer is not the index of a candidate.
        """
        try:
            answer = self._route(request, candidates)
        except BaseException as error:
            raise self._raised(_when(request), error, _indices(candidates)) from error
        if type(answer) is int and 0 <= answer < len(candidates):
            return answer
        if _is_whole(answer) and 0 <= answer < len(candidates):
            return int(answer)
        raise PolicyError(f"{self._who} {_when(request)} answered {_shown(answer)}, allowed: {_indices(candidates)}")


class AskedScheduler(_Asked):
    """A prefill scheduler.

    Args:
        who: for messages.
        policy: the scheduler.

    Raises:
        PolicyError: see `_Asked`.
    """

    def __init__(self, who: Who, policy: Any) -> None:
        super().__init__(who, policy, "schedule")
        self._schedule = policy.schedule

    def schedule(self, time_s: float, waiting: Sequence[RequestInfo], instances: Sequence[InstanceLoad]) -> PrefillPlan:
        """Ask it.

        Raises:
            PolicyError: it raised, sends what does not wait, or twice, or nowhere, would be asked again in the past, or
                never although requests wait.
        """
        try:
            answer = self._schedule(time_s, waiting, instances)
        except BaseException as error:
            raise self._raised(f"at {time_s:.3f} s", error, "a voltana.state.PrefillPlan") from error
        allowed = self._wrong(answer, time_s, waiting, instances)
        if allowed:
            raise PolicyError(f"{self._who} at {time_s:.3f} s answered {_shown(answer)}, allowed: {allowed}")
        sends, ask_at_s = answer
        return PrefillPlan(
            tuple((int(place), int(instance)) for place, instance in sends),
            None if ask_at_s is None else float(ask_at_s),
        )

    @staticmethod
    def _wrong(answer: object, time_s: float, waiting: Sequence[RequestInfo], instances: Sequence[InstanceLoad]) -> str:
        """What would be allowed in the place of what is not; empty if all is."""
        if not isinstance(answer, PrefillPlan):
            return "a voltana.state.PrefillPlan"
        sends, ask_at_s = answer
        if not isinstance(sends, Sequence) or not all(isinstance(s, tuple) and len(s) == 2 for s in sends):
            return "sends: a sequence of pairs, index in the queue and index of the instance"
        if not all(_is_whole(place) and 0 <= place < len(waiting) for place, _ in sends):
            return f"sends: indices in the queue, 0 to {len(waiting) - 1}"
        if len({place for place, _ in sends}) < len(sends):
            return "sends: every request once"
        if not all(_is_whole(instance) and 0 <= instance < len(instances) for _, instance in sends):
            return f"sends: indices of instances, 0 to {len(instances) - 1}"
        if ask_at_s is not None and not (_is_number(ask_at_s) and time_s < ask_at_s < math.inf):
            return f"ask_at_s: None, or a time after {time_s:.3f} s"
        if not sends and ask_at_s is None and not any(load.requests for load in instances):
            return "requests to send, or ask_at_s: every instance is idle, so nothing else would end the wait"
        return ""


class AskedPlanner(_Asked):
    """A planner.

    Args:
        who: for messages.
        policy: the planner.

    Raises:
        PolicyError: see `_Asked`.
    """

    def __init__(self, who: Who, policy: Any) -> None:
        super().__init__(who, policy, "plan")
        self._plan = policy.plan

    def plan(self, load: ClusterLoad) -> Placement:
        """Ask it.

        Raises:
            PolicyError: it raised, or answers other numbers than there are instances.
        """
        most = (load.prefill.instances, load.decode.instances)
        allowed = f"a voltana.state.Placement with 1 to {most[0]} prefill and 1 to {most[1]} decode instances"
        try:
            answer = self._plan(load)
        except BaseException as error:
            raise self._raised(f"at {load.time_s:.3f} s", error, allowed) from error
        if isinstance(answer, Placement) and all(
            _is_whole(n) and 1 <= n <= m for n, m in zip(answer, most, strict=True)
        ):
            return Placement(*map(int, answer))
        raise PolicyError(f"{self._who} at {load.time_s:.3f} s answered {_shown(answer)}, allowed: {allowed}")


def _when(request: RequestInfo) -> str:
    return f"for request {request.request_id} that arrived at {request.arrival_s:.3f} s"


def _indices(candidates: Sequence[InstanceLoad]) -> str:
    return f"the index of a candidate, 0 to {len(candidates) - 1}"


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _shown(value: object) -> str:
    """An answer on one line, cut to a length that leaves the line readable."""
    if iscoroutine(value):
        value.close()  # else Python complains after the last line that it was never awaited
        return "a coroutine (async def?)"
    try:
        text = one_line(repr(value))
    except Exception as error:
        return f"a {type(value).__name__} whose repr raised {type(error).__name__}"
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
