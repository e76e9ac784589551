"""Decode in the event-skipping engine: runs of iterations with the same batch, each an event.

The KV tokens of the batch grow by its size in every iteration, so iteration k of a run takes a + b k seconds and
ea + eb k joules, and n of them sum to n a + b n (n - 1) / 2. A run begins with what is `left` of its first iteration,
which is less than 1 after a clock came into force in the middle of it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from voltana.app.serving import DecodeLimits
from voltana.dispatch import Standing
from voltana.sim.fast.instance import FastInstance, Made
from voltana.sim.plant import Step
from voltana.sim.serving.job import Job
from voltana.sim.serving.views import Views, answers
from voltana.state import Decision, LoadSnapshot, Phase


class Run(NamedTuple):
    """Iterations of one batch at one clock."""

    start_s: float
    left: float
    a: float
    b: float
    ea: float
    eb: float

    def elapsed_s(self, n: int) -> float:
        """Time from the start to the end of iteration n (counted from 1)."""
        return (n - 1 + self.left) * self.a + self.b * n * (n - 1) / 2 if n else 0.0

    def energy_j(self, n: int) -> float:
        """Energy of the first n iterations."""
        return (n - 1 + self.left) * self.ea + self.eb * n * (n - 1) / 2 if n else 0.0

    def gaps_within(self, slo_s: float, n: int) -> int:
        """How many of iterations 2 to n take no longer than the objective."""
        if self.a + self.b * (n - 1) <= slo_s:
            return n - 1
        if self.a + self.b > slo_s or self.b <= 0:
            return 0
        return min(n - 1, int((slo_s - self.a) / self.b))

    def complete(self, elapsed_s: float) -> int:
        """Iterations that have ended after a time."""
        _, left, a, b, _, _ = self
        if elapsed_s < left * a:
            return 0
        half = a - b / 2
        rest = elapsed_s + (1 - left) * a
        n = int(2 * rest / (half + math.sqrt(half * half + 2 * b * rest)))
        while (n + left) * a + b * n * (n + 1) / 2 <= elapsed_s:
            n += 1
        while n and (n - 1 + left) * a + b * n * (n - 1) / 2 > elapsed_s:
            n -= 1
        return n


class LongestGaps:
    """The longest gap between iterations since any earlier moment, kept as a falling staircase."""

    def __init__(self) -> None:
        self._moments: list[int] = []
        self._gaps: list[float] = []

    def add(self, moment: int, gap_s: float) -> None:
        """A gap at a moment; moments do not fall."""
        while self._gaps and self._gaps[-1] <= gap_s:
            self._gaps.pop()
            self._moments.pop()
        self._moments.append(moment)
        self._gaps.append(gap_s)

    def since(self, moment: int) -> float:
        """The longest gap at a moment or later."""
        return self._gaps[bisect_left(self._moments, moment)]


class Member(NamedTuple):
    """A job in the batch; ordered by when it leaves, then by when it joined."""

    leaves: int
    order: int
    joined: int
    job: Job


class FastDecode(FastInstance):
    """See the module; `gaps` takes numbers of token gaps, all and within the objective."""

    phase: Phase = "decode"

    def __init__(
        self,
        of: Made,
        *,
        limits: DecodeLimits,
        itl_slo_s: float,
        gaps: Callable[[int, int], None],
        finished: Callable[[Job], None],
        failed: Callable[[Job], None],
    ) -> None:
        super().__init__(of)
        self._limits = limits
        self._itl_slo_s = itl_slo_s
        self._gaps = gaps
        self._finished = finished
        self._failed = failed
        self._waiting: deque[Job] = deque()
        self._waiting_tokens = 0
        self._leaving: list[Member] = []
        self._members: dict[int, Member] = {}
        self._fresh: list[Job] = []
        self._order = count()
        self._batch = 0
        self._kv_tokens = 0
        self._iteration = 0
        self._gap_from_s = 0.0
        self._longest = LongestGaps()
        self._run: Run
        self._planned = 0
        self._left = 1.0
        self._told_at = 0
        self._told_until_s = -math.inf
        self.retractions = 0

    def submit(self, job: Job) -> None:
        """Take a request whose KV has arrived; it can join at the next boundary."""
        self._waiting.append(job)
        self._waiting_tokens += job.kv_tokens
        self.arrived_requests += 1
        self.arrived_tokens += job.request.input_tokens
        if self._idle:
            self._wake()
        else:
            self._stop_at_next_boundary()

    def load(self, idle_s: float = 0.0) -> LoadSnapshot:
        """Telemetry at a boundary."""
        return LoadSnapshot(
            self.events.now,
            self.commanded.clock_mhz,
            self._batch,
            self._kv_tokens,
            len(self._waiting),
            self._waiting_tokens,
            0.0,
            idle_s,
            self.arrived_requests,
            self.arrived_tokens,
            self._iteration,
            self._busy_s,
        )

    def _stand(self) -> Standing:
        self._told_at = self._iteration
        self._told_until_s = -math.inf
        return Standing(
            self.commanded.clock_mhz,
            self._batch + len(self._waiting),
            self._kv_tokens + self._waiting_tokens,
            self.arrived_requests,
            self.arrived_tokens,
        )

    def standing(self) -> Standing:
        """As the base class says: every iteration of a run tells anew, its tokens grown, the last command known."""
        now = self.events.now
        if self._idle or now < self._told_until_s:
            return self._told
        _, left, a, b, _, _ = run = self._run
        elapsed_s = now - run.start_s
        n = run.complete(elapsed_s) if elapsed_s > 0 else 0
        self._told_until_s = run.start_s + (n + left) * a + b * n * (n + 1) / 2
        grown = self._iteration + n - self._told_at
        if grown:
            self._told_at += grown
            _, requests, tokens, arrived_requests, arrived_tokens = self._told
            tokens += grown * self._batch
            self._told = Standing(self.commanded.clock_mhz, requests, tokens, arrived_requests, arrived_tokens)
        return self._told

    def what_if(self, clock_mhz: int) -> Step:
        """As the base class says."""
        return self.plant.decode(self._batch, self._kv_tokens, clock_mhz, self.limit_w)

    def requests(self) -> tuple[Views, Views]:
        """As the base class says."""
        now = self.events.now
        running = ((member.job, self._iteration - member.joined) for member in self._members.values())
        return answers(running, now), answers(((job, 0) for job in self._waiting), now)

    @property
    def energy_j(self) -> float:
        """As the base class says."""
        return self.meter.totals.energy_j + (self._idle_j() if self._idle else self._spent()[2])

    def _queued(self) -> int:
        return len(self._waiting)

    def _form_batch(self) -> bool:
        """As the reference: retract while the next token would not fit, then admit while there is room."""
        retracted = False
        while not self._limits.grow(self._batch, self._kv_tokens):
            retracted = self._retract()
        while not retracted and self._waiting and self._fits(self._waiting[0]):
            self._join(self._waiting.popleft())
        return self._batch > 0

    def _fits(self, job: Job) -> bool:
        return self._limits.admit(self._batch + 1, self._kv_tokens + job.kv_tokens)

    def _join(self, job: Job) -> None:
        self._waiting_tokens -= job.kv_tokens
        job.join(self.events.now)
        if job.finished:
            self._finished(job)
            return
        self._kv_tokens += job.kv_tokens
        self._batch += 1
        rest = job.request.output_tokens - job.produced
        member = Member(self._iteration + rest, next(self._order), self._iteration, job)
        heappush(self._leaving, member)
        self._members[member.order] = member
        self._fresh.append(job)

    def _retract(self) -> bool:
        """As the reference."""
        _, member = self._members.popitem()
        self._take_out(member, self._iteration - member.joined)
        job = member.job
        if not self._batch:
            self._failed(job)
            return False
        self._waiting_tokens += job.kv_tokens
        self._waiting.appendleft(job)
        self.retractions += 1
        return True

    def _take_out(self, member: Member, tokens: int) -> None:
        """Bring a job that leaves the batch up to date."""
        job = member.job
        job.produced += tokens
        job.last_token_s = self.events.now
        job.max_gap_s = max(job.max_gap_s or 0.0, self._longest.since(member.joined))
        self._batch -= 1
        self._kv_tokens -= job.kv_tokens

    def _start_work(self, decision: Decision) -> None:
        self._gap_from_s = self.events.now
        self._left = 1.0
        batch, kv_tokens = self._batch, self._kv_tokens
        while self._leaving[0].order not in self._members:
            heappop(self._leaving)
        room = (self._limits.kv_tokens - kv_tokens) // batch
        planned = min(self._leaving[0].leaves - self._iteration, room)
        if decision.holds_below_tokens < kv_tokens + planned * batch:
            planned = max(1, min(planned, math.ceil((decision.holds_below_tokens - kv_tokens) / batch)))
        if self._noise is not None or (self._waiting and self._fits(self._waiting[0])):
            planned = 1
        self._planned = planned
        self._resume_work()

    def _resume_work(self) -> None:
        now, batch, kv_tokens = self.events.now, self._batch, self._kv_tokens
        t0, t1, e0, e1, valid = self.plant.decode_line(batch, self.clock_mhz, kv_tokens, self.limit_w)
        if valid < kv_tokens + self._planned * batch:
            self._planned = min(self._planned, math.ceil((valid - kv_tokens) / batch))
        seconds, joules = (t0 + t1 * kv_tokens) * self._stretch, (e0 + e1 * kv_tokens) * self._stretch
        self._run = Run(now, self._left, seconds, t1 * batch, joules, e1 * batch)
        self.meter.enter(now, self.clock_mhz, batch, kv_tokens, len(self._waiting))
        self._end_at(now + self._run.elapsed_s(self._planned))

    def _stop_at_next_boundary(self) -> None:
        run = self._run
        following = run.complete(self.events.now - run.start_s) + 1
        if following < self._planned:
            self._planned = following
            self._end_at(run.start_s + run.elapsed_s(following))

    def _meter_work(self) -> None:
        run = self._run
        n, share, energy_j = self._spent()
        self.meter.add(energy_j)
        self._metered_s = self.events.now
        if self.publishes:
            self.standing()
            self._told_until_s = -math.inf
        if n:
            self._advance(n, run.start_s + run.elapsed_s(n))
            self._planned -= n
        self._left = (1.0 if n else run.left) - share

    def _spent(self) -> tuple[int, float, float]:
        """Of the run up to this instant: iterations that ended, the share of the next, joules."""
        run, now = self._run, self.events.now
        n = min(run.complete(now - run.start_s), self._planned - 1)
        share = (now - run.start_s - run.elapsed_s(n)) / (run.a + run.b * n)
        return n, share, run.energy_j(n) + share * (run.ea + run.eb * n)

    def _work_ends(self) -> None:
        self._end = None
        self.meter.add(self._run.energy_j(self._planned))
        self._metered_s = self.events.now
        self._advance(self._planned, self.events.now)
        leaving = self._leaving
        while leaving and leaving[0].leaves == self._iteration:
            member = heappop(leaving)
            if self._members.pop(member.order, None) is None:
                continue
            self._take_out(member, member.leaves - member.joined)
            self._finished(member.job)
        if not self._batch:
            self._longest = LongestGaps()
        self._boundary()

    def _advance(self, n: int, end_s: float) -> None:
        """Count the tokens and gaps of the first n iterations of the run, the last of which ends at `end_s`."""
        run, batch, slo = self._run, self._batch, self._itl_slo_s
        first_end = end_s if n == 1 else run.start_s + run.elapsed_s(1)
        gap = first_end - self._gap_from_s
        within = (batch - len(self._fresh)) * (gap <= slo)
        for job in self._fresh:
            own = first_end - job.last_token_s
            within += own <= slo
            job.max_gap_s = max(job.max_gap_s or 0.0, own)
        self._fresh.clear()
        if n > 1:
            gap = max(gap, run.a + run.b * (n - 1))
            within += batch * run.gaps_within(slo, n)
        self._gaps(n * batch, within)
        self._longest.add(self._iteration, gap)
        self._busy_s += end_s - self._gap_from_s
        self._gap_from_s = end_s
        self._iteration += n
        self._kv_tokens += n * batch
        self.meter.grow(n * batch)

    def stop(self) -> None:
        """Meter the time up to now, and tell the longest gaps of those still running."""
        super().stop()
        for member in self._members.values():
            if member.job not in self._fresh:
                member.job.max_gap_s = max(member.job.max_gap_s or 0.0, self._longest.since(member.joined))
