"""One queue for all prefill instances: late binding, clocks that see the whole queue, triage in overload.

Below the knee of the voltage curve a lower clock saves next to nothing per unit of work, above it speed is dear; what
costs is every iteration, full or not. So prompts wait in one queue and are bound when an instance can run them: batches
fill by themselves, one instance does the work of several while the deadlines allow, and no clock above the knee is
taken but for a deadline in the queue.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from heapq import heapify, heapreplace
from typing import NamedTuple

from voltana import checks
from voltana.errors import UserError
from voltana.policies.ecofreq import TIME_RESOLUTION_S
from voltana.policies.ecofreq_online import LatencyRatio
from voltana.policies.triage import LateQueue
from voltana.prediction.ecopred import EcoPred, Line
from voltana.state import Decision, InstanceLoad, LoadSnapshot, PrefillPlan, RequestInfo, Slo

TYPICAL_TOKENS = 1000
"""Batch at which the speed of clocks is compared; larger ones need hardly less time a token."""
FASTER = 0.995
"""A clock that takes more than this share of a lower one's time is no faster: the power limit throttles it."""


class Prompt(NamedTuple):
    """A request in the queue."""

    place: int
    request_id: int
    tokens: int
    due_s: float
    """When its prefill must have ended."""


class Batch(NamedTuple):
    """Prompts that are planned to run together."""

    prompts: list[Prompt]
    end_s: float


class Work(NamedTuple):
    """What an instance was given last."""

    start_s: float
    tokens: int
    clock_mhz: int


class DeadlineQueue:
    """Keeps prompts until an instance can run them, and says at which clock.

    A prompt is due when its TTFT objective has passed, less `reserve` of the objective and `after_prefill_s`: what lies
    between prefill and the client's first token (front end, transfer, the decode iteration it waits for). The policy
    cannot see that part, so it is set.

    An idle instance takes a batch from the head of the queue, unless those at work could take all of it in time once
    they are free, at the knee, with `spare_s` left. A batch ends where its tokens exceed `batch_tokens` or its first
    prompt would be late. Its clock is the lowest from the knee up at which every prompt of the queue is in time, all
    instances together working at that clock; without any such, the fastest.

    With `late_share`, prompts that cannot all be in time at the knee are sorted out (`voltana.policies.triage`). The
    clock is the fastest, too, while one of those has waited longer than `late_wait` times the TTFT objective.

    Args:
        knee_mhz: lowest clock.
        reserve: share of the TTFT objective left to what follows prefill.
        after_prefill_s: time left to it beside.
        spare_s: time that must be left over where work waits for a busy instance.
        batch_tokens: prompt tokens of a batch, at most; a longer prompt runs alone.
        patience: share of the TTFT objective for which a batch of fewer than `batch_tokens` may be held back while all
            instances idle.
        late_share: share of a batch kept for late prompts while there are any; None: no triage, first come first served
        late_wait: TTFT objectives that a late prompt may wait before the clock rises.
        memory_s: time constant of the correction of EcoPred, in seconds of iterations.
    """

    def __init__(
        self,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        *,
        knee_mhz: int,
        reserve: float,
        after_prefill_s: float,
        spare_s: float,
        batch_tokens: int,
        patience: float,
        late_share: float | None,
        late_wait: float,
        memory_s: float,
    ) -> None:
        knee = checks.clock("knee_mhz", knee_mhz, clocks_mhz)
        self._lines = dict(_ever_faster([(c, predictor.prefill_line(c)) for c in clocks_mhz if c >= knee]))
        self._clocks = tuple(self._lines)
        objective_s = slo.ttft_s
        self._allowed_s = objective_s * (1 - checks.number("reserve", reserve, low=0, high=0.9))
        self._allowed_s -= checks.number("after_prefill_s", after_prefill_s, low=0)
        self._spare_s = checks.number("spare_s", spare_s, low=0)
        self._batch_tokens = int(checks.number("batch_tokens", batch_tokens, low=1))
        self._patience_s = checks.number("patience", patience, low=0, high=1) * objective_s
        self._late = None if late_share is None else LateQueue(late_share)
        self._late_wait_s = objective_s * checks.number("late_wait", late_wait, low=0)
        self.ratio = LatencyRatio(checks.number("memory_s", memory_s, above=0), None)
        """Of measured to predicted latencies; the controllers keep it up to date."""
        self._work: dict[int, Work] = {}

    def clock_mhz(self, instance: int) -> int:
        """The clock for what an instance was given last."""
        work = self._work.get(instance)
        return self._clocks[0] if work is None else work.clock_mhz

    def predicted_s(self, tokens: float, clock_mhz: int) -> float:
        """Latency of a batch, corrected by those measured."""
        fixed_s, per_token_s = self._lines[clock_mhz]
        return self.ratio.safe * (fixed_s + per_token_s * tokens)

    def schedule(self, time_s: float, waiting: Sequence[RequestInfo], instances: Sequence[InstanceLoad]) -> PrefillPlan:
        """Apply the rules of the class."""
        idle = [index for index, load in enumerate(instances) if not load.requests]
        queue = [
            Prompt(place, each.request_id, each.prompt_tokens, each.arrival_s + self._allowed_s)
            for place, each in enumerate(waiting)
        ]
        if self._late is not None:
            self._late.forget_all_but(prompt.request_id for prompt in queue)
        free_s = [time_s if not load.requests else self._free_s(i, time_s, load) for i, load in enumerate(instances)]
        sends: list[tuple[int, int]] = []
        ask_at_s = None
        for instance in idle:
            if not queue:
                break
            on_time, late = self._triage(queue, free_s)
            busy = [free_s[i] for i in range(len(instances)) if i not in idle or i in self._given(sends)]
            ask_at_s = None if late else self._until_s(on_time, busy, time_s)
            if ask_at_s is not None and ask_at_s > time_s + TIME_RESOLUTION_S:
                break
            ask_at_s = None
            clock = self._clock(on_time, late, free_s, time_s)
            batch = self._take(on_time, late, time_s, clock)
            sends += [(prompt.place, instance) for prompt in batch]
            taken = {prompt.place for prompt in batch}
            queue = [prompt for prompt in queue if prompt.place not in taken]
            work = self._work[instance] = Work(time_s, sum(prompt.tokens for prompt in batch), clock)
            free_s[instance] = time_s + self.predicted_s(work.tokens, clock)
        return PrefillPlan(tuple(sends), ask_at_s)

    @staticmethod
    def _given(sends: Sequence[tuple[int, int]]) -> set[int]:
        return {instance for _, instance in sends}

    def _free_s(self, instance: int, time_s: float, load: InstanceLoad) -> float:
        """When an instance at work will be free, as predicted."""
        work = self._work.get(instance)
        if work is None or load.tokens > work.tokens:  # others send it work too, or it is out of service
            return time_s + self.predicted_s(load.tokens, self._clocks[0])
        return max(time_s, work.start_s + self.predicted_s(work.tokens, work.clock_mhz))

    def _triage(self, queue: list[Prompt], free_s: Sequence[float]) -> tuple[list[Prompt], list[Prompt]]:
        """Prompts that can be in time, and those that are late."""
        if self._late is None:
            return queue, []
        late = self._late
        on_time = [prompt for prompt in queue if prompt.request_id not in late]
        behind = [prompt for prompt in queue if prompt.request_id in late]
        while on_time:
            broken = next(self._late_ones(on_time, bool(behind), free_s, self._clocks[0]), None)
            if broken is None:
                break
            prefix = on_time[: on_time.index(broken) + 1]
            largest = max(prefix, key=lambda prompt: prompt.tokens)
            late.add(largest.request_id)
            on_time.remove(largest)
            behind.append(largest)
        behind.sort()
        return on_time, behind

    def _until_s(self, queue: Sequence[Prompt], busy: Sequence[float], time_s: float) -> float | None:
        """Until when an idle instance need not take the queue; None: it should now."""
        if not busy:
            if self._patience_s and sum(prompt.tokens for prompt in queue) < self._batch_tokens:
                first = min(prompt.due_s for prompt in queue)
                latest = first - self._allowed_s + self._patience_s
                tokens = sum(prompt.tokens for prompt in queue)
                return min(latest, first - self.predicted_s(tokens, self._clocks[0]) - self._spare_s)
            return None
        slack_s = math.inf
        for batch in self._batches(queue, False, busy, self._clocks[0]):
            slack_s = min(slack_s, min(prompt.due_s for prompt in batch.prompts) - batch.end_s)
        if slack_s < self._spare_s:
            return None
        return max(time_s, min(busy)) + slack_s - self._spare_s

    def _clock(self, on_time: Sequence[Prompt], late: Sequence[Prompt], free_s: Sequence[float], time_s: float) -> int:
        """The lowest clock for the whole queue."""
        if late and time_s - (late[0].due_s - self._allowed_s) > self._late_wait_s:
            return self._clocks[-1]
        for clock in self._clocks:
            if next(self._late_ones(on_time, bool(late), free_s, clock), None) is None:
                return clock
        return self._clocks[-1]

    def _late_ones(self, queue: Sequence[Prompt], late: bool, free_s: Sequence[float], clock: int) -> Iterator[Prompt]:
        """Prompts that would not be in time at a clock, in order."""
        for batch in self._batches(queue, late, free_s, clock):
            for prompt in batch.prompts:
                if prompt.due_s < batch.end_s - TIME_RESOLUTION_S:
                    yield prompt

    def _batches(self, queue: Sequence[Prompt], late: bool, free_s: Sequence[float], clock: int) -> Iterator[Batch]:
        """How the queue would be worked off: every instance that becomes free takes a batch from its head."""
        free = list(free_s)
        heapify(free)
        at = 0
        while at < len(queue):
            start_s = free[0]
            prompts = self._head(queue, at, start_s, clock)
            at += len(prompts)
            tokens: float = sum(prompt.tokens for prompt in prompts)
            if late and self._late is not None:
                tokens /= 1 - self._late.share
            end_s = start_s + self.predicted_s(tokens, clock)
            heapreplace(free, end_s)
            yield Batch(prompts, end_s)

    def _head(self, queue: Sequence[Prompt], at: int, start_s: float, clock: int) -> list[Prompt]:
        """The batch from a place of the queue on."""
        prompts, tokens, due_s = [queue[at]], queue[at].tokens, queue[at].due_s
        if start_s + self.predicted_s(tokens, clock) > due_s:
            due_s = math.inf  # late however small its batch
        for prompt in queue[at + 1 :]:
            more = tokens + prompt.tokens
            if more > self._batch_tokens or start_s + self.predicted_s(more, clock) > due_s:
                break
            prompts.append(prompt)
            tokens = more
        return prompts

    def _take(self, on_time: list[Prompt], late: list[Prompt], time_s: float, clock: int) -> list[Prompt]:
        """The batch that an instance takes now."""
        batch = self._head(on_time, 0, time_s, clock) if on_time else []
        if late and self._late is not None:
            tokens = sum(prompt.tokens for prompt in batch)
            room = self._room(batch, tokens, time_s, clock) if len(batch) == len(on_time) else 0
            batch += self._late.take(late, tokens, room)
        return batch

    def _room(self, batch: Sequence[Prompt], tokens: int, time_s: float, clock: int) -> int:
        """Tokens that a batch could compute beside its own without being late."""
        if not batch:
            return self._batch_tokens
        fixed_s, per_token_s = self._lines[clock]
        in_time = ((batch[0].due_s - time_s) / self.ratio.safe - fixed_s) / max(per_token_s, 1e-12)
        return max(0, int(min(in_time, self._batch_tokens)) - tokens)


class QueueClock:
    """Runs every batch at the clock that the queue chose for it; idle for `idle_s`, it goes to the GPU's lowest.

    It compares what batches took with what was predicted for them, so that EcoPred is corrected for the queue.

    Args:
        scheduler: the queue of the prefill instances.
        idle_s: time without work until the lowest clock.
        settle_s: time until a commanded clock is in force for certain; batches that began earlier are not compared.
    """

    def __init__(
        self, clocks_mhz: Sequence[int], scheduler: DeadlineQueue, instance: int, *, idle_s: float, settle_s: float
    ) -> None:
        if not isinstance(scheduler, DeadlineQueue):
            raise UserError(f"scheduler: found a {type(scheduler).__name__}, allowed: a DeadlineQueue")
        self._idle_mhz = clocks_mhz[0]
        self._queue = scheduler
        self._instance = instance
        self._idle_s = checks.number("idle_s", idle_s, above=0)
        self._settle_s = checks.number("settle_s", settle_s, low=0)
        self._last: LoadSnapshot | None = None
        self._changed_s = -math.inf

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rule of the class."""
        self._learn(load)
        if load.batch_size:
            clock, self._last = self._queue.clock_mhz(self._instance), load
            if clock != load.clock_mhz:
                self._changed_s = load.time_s
            return Decision(clock, self._idle_s)
        if load.idle_s >= self._idle_s - TIME_RESOLUTION_S:
            self._changed_s = load.time_s
            return Decision(self._idle_mhz)
        return Decision(load.clock_mhz, self._idle_s)

    def _learn(self, load: LoadSnapshot) -> None:
        last, self._last = self._last, None
        if last is None or load.iterations != last.iterations + 1 or last.time_s < self._changed_s + self._settle_s:
            return
        predicted_s = self._queue.predicted_s(last.batch_tokens, self._queue.clock_mhz(self._instance))
        took_s = load.busy_s - last.busy_s
        if took_s > 0:
            self._queue.ratio.observe(took_s, predicted_s / self._queue.ratio.safe, took_s)


def _ever_faster(lines: Sequence[tuple[int, Line]]) -> Iterator[tuple[int, Line]]:
    """Those clocks that are faster than all below them."""
    least_s = math.inf
    for clock, line in lines:
        seconds = line.intercept_s + line.per_token_s * TYPICAL_TOKENS
        if seconds < FASTER * least_s:
            least_s = seconds
            yield clock, line
