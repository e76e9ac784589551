"""The promises of a prefill scheduler, each tried in small worlds whose instances take made-up times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random

from voltana.dispatch import CentralQueue, Standing
from voltana.policies.asked import AskedScheduler
from voltana.sim.studies.check.finding import ANSWERS, Broken, Finding, check, time_of
from voltana.state import InstanceLoad, PrefillPlan, RequestInfo

WORLDS = 6
"""They differ in the number of instances, and in load from a third of what the instances bear to three times that."""
S_PER_TOKEN = 1e-4

Answers = list[PrefillPlan]


def check_scheduler(
    part: str, make: Callable[[], AskedScheduler], requests: int, clock_mhz: int, limit_us: float
) -> Iterator[Finding]:
    """Try every promise of one part of a policy; only the first, if it does not answer as it must.

    Args:
        part: its key in the bundle.
        make: a new one.
        requests: of each world.
        clock_mhz: that instances are said to run at.
        limit_us: what an answer may take, microseconds, as the median.
    """
    plain: list[Answers] = []
    spent_ns: list[int] = []
    waiting: list[int] = []

    def answers() -> str:
        for seed in range(WORLDS):
            world = _World(make(), seed, requests, clock_mhz, spent_ns)
            plain.append(list(world.run()))
            waiting.append(len(world.queue))
        return f"{len(spent_ns)} allowed"

    found = check(part, ANSWERS, answers)
    yield found
    if not found.passed:
        return

    def deterministic() -> str:
        for seed, before in enumerate(plain):
            mine, other = (_World(make(), each, requests, clock_mhz, []).run() for each in (seed, (seed + 1) % WORLDS))
            again: Answers = []
            for answer in mine:
                again.append(answer)
                next(other, None)
            if again != before:
                at = next(i for i, (one, two) in enumerate(zip(before, again, strict=False)) if one != two)
                raise Broken(f"its answer {at} is {before[at]}, but beside a second scheduler {again[at]}")
        return "alone and beside another"

    def all_sent() -> str:
        if any(waiting):
            raise Broken(f"{max(waiting)} requests wait for ever")
        return f"{WORLDS * requests} requests"

    yield check(part, "deterministic", deterministic)
    yield check(part, "every request is sent", all_sent)
    yield check(part, "time", lambda: time_of(spent_ns, limit_us))


class _World:
    """Poisson arrivals at instances that take all they were sent as one batch."""

    def __init__(
        self, scheduler: AskedScheduler, seed: int, requests: int, clock_mhz: int, spent_ns: list[int]
    ) -> None:
        self._scheduler = scheduler
        self._random = Random(seed)
        self._clock_mhz = clock_mhz
        self._spent_ns = spent_ns
        self._answers: Answers = []
        self._number = count()
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        instances = 1 + seed % 3
        self._told = [Standing(clock_mhz, 0, 0, 0, 0)] * instances
        self._sent: list[list[RequestInfo]] = [[] for _ in range(instances)]
        self._arrived = [(0, 0)] * instances
        self._busy = [False] * instances
        self.queue = CentralQueue(self, [partial(self._told.__getitem__, i) for i in range(instances)], self._ask_at)
        now_s, rate = 0.0, instances * (1 / 3, 1.0, 3.0)[seed % 3] / (S_PER_TOKEN * 300)
        for number in range(requests):
            now_s += self._random.expovariate(rate)
            request = RequestInfo(number, now_s, self._random.randint(1, 600))
            self._at(now_s, partial(self._arrive, request))

    def run(self) -> Iterator[PrefillPlan]:
        """Let everything happen; yield what is answered."""
        while self._events:
            now_s, _, then = heappop(self._events)
            then(now_s)
            yield from self._answers
            self._answers.clear()

    def schedule(self, time_s: float, waiting: Sequence[RequestInfo], instances: Sequence[InstanceLoad]) -> PrefillPlan:
        """Ask the scheduler and keep its answer."""
        started = time.perf_counter_ns()
        plan = self._scheduler.schedule(time_s, waiting, instances)
        self._spent_ns.append(time.perf_counter_ns() - started)
        self._answers.append(plan)
        return plan

    def _at(self, time_s: float, then: Callable[[float], None]) -> None:
        heappush(self._events, (time_s, next(self._number), then))

    def _ask_at(self, time_s: float) -> None:
        self._at(time_s, self.queue.due)

    def _arrive(self, request: RequestInfo, now_s: float) -> None:
        self.queue.put(request, partial(self._give, request), now_s)
        self._go_on(now_s)

    def _give(self, request: RequestInfo, instance: int) -> None:
        requests, tokens = self._arrived[instance]
        self._arrived[instance] = requests + 1, tokens + request.prompt_tokens
        self._sent[instance].append(request)

    def _go_on(self, now_s: float) -> None:
        """Idle instances begin with what they have."""
        for instance, sent in enumerate(self._sent):
            if sent and not self._busy[instance]:
                self._busy[instance] = True
                took_s = S_PER_TOKEN * sum(each.prompt_tokens for each in sent) * self._random.uniform(0.8, 1.3)
                self._tell(instance)
                self._at(now_s + 0.005 + took_s, partial(self._ended, instance, len(sent)))

    def _ended(self, instance: int, batch: int, now_s: float) -> None:
        del self._sent[instance][:batch]
        self._busy[instance] = False
        self._tell(instance)
        self.queue.ask(now_s)
        self._go_on(now_s)

    def _tell(self, instance: int) -> None:
        present = self._sent[instance]
        tokens = sum(each.prompt_tokens for each in present)
        self._told[instance] = Standing(self._clock_mhz, len(present), tokens, *self._arrived[instance])
