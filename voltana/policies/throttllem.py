"""throttLL'eM: project the requests of the batch to their expected ends; the lowest clock under which all goes well."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from voltana import checks
from voltana.prediction.ecopred import EcoPred, decode_bin
from voltana.state import Decision, LoadSnapshot, Phase, RequestView, Slo

Array = NDArray[np.float64]


class Projection:
    """A decode batch from now on, if nobody joins: segments of iterations between one request's end and the next.

    Args:
        running: the requests, each with the tokens it is expected to make.
        length_margin: expected lengths are taken this much longer.
        max_tokens: what a request is expected to make in all once it has outgrown that.
    """

    def __init__(self, running: Sequence[RequestView], length_margin: float, max_tokens: int) -> None:
        produced = np.array([view.produced_tokens for view in running], dtype=np.float64)
        total = (1 + length_margin) * np.array([view.expected_tokens for view in running])
        total = np.where(total > produced, total, max_tokens)
        left = np.ceil(np.maximum(total - produced, 1.0))
        order = np.argsort(left, kind="stable")
        held = (produced + np.array([view.prompt_tokens for view in running]))[order]
        self.ends: Array = left[order]
        """Iterations until each request ends, ascending."""
        self.order = order
        """Which request each is."""
        self.expected_tokens: Array = total[order]
        self.age_s: Array = np.array([view.age_s for view in running])[order]
        self.iterations = np.diff(self.ends, prepend=0.0)
        """Of each segment; 0 where several requests end together."""
        self.batch: Array = np.arange(len(running), 0, -1, dtype=np.float64)
        begun = np.concatenate(([0.0], self.ends[:-1]))
        self.kv_tokens: Array = np.cumsum(held[::-1])[::-1] + self.batch * begun
        """KV tokens of each segment's first iteration."""
        self.kv_peak = float((self.kv_tokens + self.batch * np.maximum(self.iterations - 1, 0)).max())
        self.bins = _bins(len(running))

    def segments_s(self, planes: Array) -> tuple[Array, Array]:
        """Duration of each segment, and of its longest iteration, under the planes of a clock (a row per bin)."""
        fixed, per_request, per_token = planes[self.bins].T
        first = np.maximum(fixed + per_request * self.batch + per_token * self.kv_tokens, 0.0)
        growth = per_token * self.batch
        n = self.iterations
        longest = np.where(n > 0, first + growth * np.maximum(n - 1, 0), 0.0)
        return first * n + growth * n * (n - 1) / 2, longest


@cache
def _bins(batch_size: int) -> NDArray[np.int64]:
    """Decode bins of the batches that a batch shrinks through."""
    return np.array([decode_bin(size) for size in range(batch_size, 0, -1)])


class ThrottLLeM:
    """The lowest clock that keeps every promise to the requests at hand, by projection of each to its expected end.

    throttLL'eM (Kakolyris et al., HPCA 2025, arXiv 2408.05235). Output lengths are not known: a length predictor of
    stated accuracy tells them (`serving.length_error`; the paper reports results at 30 % error).

    Decode, in this order, whenever the batch has changed:

    1. requests wait for KV memory, or the projected KV use exceeds the capacity: highest clock, which frees it soonest;
    2. a request that is late even at the highest clock: highest clock;
    3. else, by binary search over the levels, the lowest clock at which no projected iteration is longer than the ITL
       objective (TBT) and every request ends in time (E2E), both less `margin`.

    A request is expected to make `1 + length_margin` times the predicted length; once it has made more, `max_tokens`.

    Prefill, at every batch: binary search for the lowest clock at which the batch, and the prompts waiting behind it
    taken as one more batch, have their first tokens within the TTFT objective less `margin`; highest clock if one is
    late even so.

    Deviations, and why. The paper serves both phases on one GPU and leaves TTFT alone; a disaggregated prefill
    instance has nothing else to go by, so its rule is ours, in the paper's manner. The paper's E2E objective is a
    constant, the p99 of a saturated server; ours follows from the two objectives of the run: TTFT + ITL per expected
    token. It bounds the mean of projected TBTs, we bound each: without the arrivals that the projection cannot see, a
    mean over a batch that only shrinks promises too much. EcoPred is the performance model, where the paper boosts
    trees. Admission control and scaling of the number of GPUs are left out: no other policy here has them. Late
    requests set the clock in prefill for one batch only, since they leave with it. **Fitted by us**: `min_clock_mhz`
    and `margin`.

    Args:
        min_clock_mhz: lowest clock to choose from.
        step_mhz: distance of the levels between it and the highest clock.
        margin: share of each objective held back; below 1.
        length_margin: by how much expected lengths are raised.
        max_tokens: output tokens of a request that outgrew its expected length.
    """

    reads_requests = True

    def __init__(
        self,
        phase: Phase,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        kv_capacity_tokens: int,
        *,
        min_clock_mhz: int,
        step_mhz: int,
        margin: float,
        length_margin: float,
        max_tokens: int,
    ) -> None:
        lowest = checks.clock("min_clock_mhz", min_clock_mhz, clocks_mhz)
        step = checks.number("step_mhz", step_mhz, above=0)
        self._levels = _levels(lowest, step, clocks_mhz)
        scale = 1 - checks.number("margin", margin, low=0, high=0.99)
        self._ttft_s, self._itl_s = scale * slo.ttft_s, scale * slo.itl_s
        self._length_margin = checks.number("length_margin", length_margin, above=-1)
        self._max_tokens = int(checks.number("max_tokens", max_tokens, low=1))
        self._kv_capacity = kv_capacity_tokens
        self._lines = [predictor.prefill_line(clock) for clock in self._levels]
        self._planes = [np.array(predictor.decode_planes(clock), dtype=np.float64) for clock in self._levels]
        self._decide_for = self._for_prompts if phase == "prefill" else self._for_batch
        self._batch: tuple[object, ...] = ()
        self._decision = Decision(self._levels[0])

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rules of the class; an idle instance keeps its clock, the lowest at the start."""
        if load.batch_size == 0:
            self._batch = ()
            return Decision(self._levels[0] if math.isinf(load.idle_s) else load.clock_mhz)
        return self._decide_for(load)

    def _for_prompts(self, load: LoadSnapshot) -> Decision:
        """Prefill; every batch is another, so no answer holds."""
        batch_age = load.longest_wait_s
        behind_age = max((view.age_s for view in load.waiting), default=-math.inf)
        tokens, behind = load.batch_tokens, load.queued_tokens

        def holds(level: int) -> bool:
            fixed_s, per_token_s = self._lines[level]
            first_s = fixed_s + per_token_s * tokens
            second_s = first_s + fixed_s + per_token_s * behind
            return batch_age + first_s <= self._ttft_s and behind_age + second_s <= self._ttft_s

        return Decision(self._lowest(holds))

    def _for_batch(self, load: LoadSnapshot) -> Decision:
        """Decode; the answer is kept until another request joins or one leaves, so it holds as long."""
        batch = (load.queued > 0, *((v.prompt_tokens, v.expected_tokens) for v in load.running))
        if batch != self._batch:
            self._batch = batch
            self._decision = Decision(self._project(load), holds_below_tokens=math.inf)
        return self._decision

    def _project(self, load: LoadSnapshot) -> int:
        ahead = Projection(load.running, self._length_margin, self._max_tokens)
        if load.queued or ahead.kv_peak > self._kv_capacity:
            return self._levels[-1]
        left_s = self._ttft_s + self._itl_s * ahead.expected_tokens - ahead.age_s

        def holds(level: int) -> bool:
            durations_s, longest_s = ahead.segments_s(self._planes[level])
            return bool(longest_s.max() <= self._itl_s and (np.cumsum(durations_s) <= left_s).all())

        return self._lowest(holds)

    def _lowest(self, holds: Callable[[int], bool]) -> int:
        """The lowest level that holds, taking it that each above one that holds does too; the highest if none."""
        low, high = 0, len(self._levels) - 1
        while low < high:
            middle = (low + high) // 2
            if holds(middle):
                high = middle
            else:
                low = middle + 1
        return self._levels[low]


def _levels(lowest: int, step_mhz: float, clocks_mhz: Sequence[int]) -> tuple[int, ...]:
    """Clocks at least a step apart, from the lowest up, and the highest."""
    chosen = accumulate(
        (clock for clock in clocks_mhz if clock > lowest),
        lambda last, clock: clock if clock >= last + step_mhz else last,
        initial=lowest,
    )
    return tuple(sorted({*chosen, clocks_mhz[-1]}))
