"""EcoFreq with an EcoPred that corrects itself from the latencies it meets while serving.

The VoltanaLLM paper calls its predictor online-adaptive without saying how (arXiv 2509.04827, 2026 version). Here the
ratio of measured to predicted latency is followed by a mean that forgets, so a machine that turns slower by any factor
is followed within a few times `memory_s`; the spread of recent ratios gives a margin that holds with a stated
confidence, as in split conformal prediction (Lei et al., "Distribution-Free Predictive Inference", 2018).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

from voltana import checks
from voltana.policies.ecofreq import EcoFreq
from voltana.prediction.ecopred import EcoPred, LevelTable
from voltana.state import Decision, LoadSnapshot, Phase, Slo


class LatencyRatio:
    """How many times as long as predicted iterations take, followed while serving.

    Args:
        memory_s: time constant of the mean, in seconds of iterations run.
        confidence: share of the iterations that shall not exceed prediction times `safe`; None: `safe` is the mean.
        recent: measurements whose spread counts.
    """

    def __init__(self, memory_s: float, confidence: float | None, recent: int = 200) -> None:
        self._memory_s = memory_s
        self._confidence = confidence
        self._recent = recent
        self._log_mean = 0.0
        self._surprises: deque[float] = deque()
        self._sorted: list[float] = []
        self.safe = 1.0
        """What predictions are to be multiplied by."""

    def observe(self, measured_s: float, predicted_s: float, busy_s: float) -> None:
        """Take the mean latency of iterations that took `busy_s` together."""
        surprise = math.log(measured_s / predicted_s) - self._log_mean
        self._log_mean += surprise * -math.expm1(-busy_s / self._memory_s)
        self.safe = math.exp(self._log_mean + self._margin(surprise))

    def _margin(self, surprise: float) -> float:
        """The quantile of recent surprises."""
        if self._confidence is None:
            return 0.0
        self._surprises.append(surprise)
        insort(self._sorted, surprise)
        if len(self._surprises) > self._recent:
            del self._sorted[bisect_left(self._sorted, self._surprises.popleft())]
        return self._sorted[min(len(self._sorted) - 1, int(self._confidence * len(self._sorted)))]


_NEVER = LoadSnapshot(0.0, 0, 0, 0, 0, 0, 0.0, math.inf, 0, 0)


class EcoFreqOnline(EcoFreq):
    """EcoFreq whose predictions are corrected by measured latencies.

    Before it applies EcoFreq's rule it compares what the iterations since its last answer took with what was predicted
    for them, and divides its budget by the ratio that it follows. Answers stand for `hold_s`, or until the batch
    changes. Iterations within `settle_s` of a clock change are not compared, because part of them ran at another clock.

    Args: as `EcoFreq`, which decides at every iteration, and
        memory_s: time constant of the correction, in seconds of iterations.
        confidence: share of iterations that the corrected prediction shall cover; null: the mean alone.
        hold_s: an answer is not reconsidered before the batch has run so long or changed.
        settle_s: time until a commanded clock is in force for certain.
        knee_mhz: the clock up to which speed is cheap; None: no such.
        reserve: share of the budget kept free at levels below the knee.

    Up to the knee of the voltage curve a faster clock costs hardly more energy per unit of work, above it much more. So
    speed is bought early where it is cheap: a level below the knee must leave `reserve` of the budget free, lest what
    it leaves undone has to be caught up with above the knee.
    """

    def __init__(
        self,
        phase: Phase,
        slo: Slo,
        clocks_mhz: Sequence[int],
        predictor: EcoPred,
        *,
        levels_mhz: Sequence[int] | str,
        margin: float,
        idle_s: float,
        memory_s: float,
        confidence: float | None,
        hold_s: float,
        settle_s: float,
        knee_mhz: int | None,
        reserve: float,
    ) -> None:
        super().__init__(
            phase,
            slo,
            clocks_mhz,
            predictor,
            levels_mhz=levels_mhz,
            margin=margin,
            objective_ms=None,
            interval_s=0.0,
            rate_window_s=1.0,
            max_requests_per_s=None,
            max_tokens_per_s=None,
            idle_s=idle_s,
        )
        self._phase = phase
        self._predictor = predictor
        self._ratio = LatencyRatio(
            checks.number("memory_s", memory_s, above=0),
            None if confidence is None else checks.number("confidence", confidence, above=0, high=0.999),
        )
        self._hold_s = checks.number("hold_s", hold_s, low=0)
        self._settle_s = checks.number("settle_s", settle_s, low=0)
        reserved = checks.number("reserve", reserve, low=0, high=0.99)
        if knee_mhz is not None:
            below = checks.clock("knee_mhz", knee_mhz, clocks_mhz)
            self._latency = _stretched(self._latency, [1 / (1 - reserved * (f < below)) for f in self._levels])
        self._asked = _NEVER
        self._answer = Decision(self._levels[0])
        self._changed_s = -math.inf

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rule of the class."""
        if load.batch_size and self._stands(load):
            return self._answer
        self._learn(load)
        answer = super().decide(load)
        if answer.clock_mhz != load.clock_mhz:
            self._changed_s = load.time_s
        self._asked, self._answer = load, self._held(load, answer)
        return self._answer

    def _lowest_within(self, budget_s: float, batch: float, tokens: float) -> Decision:
        return super()._lowest_within(budget_s / self._ratio.safe, batch, tokens)

    def _stands(self, load: LoadSnapshot) -> bool:
        """Whether nothing has happened since the last answer but tokens made by the same batch, and not too many."""
        last = self._asked
        made = last.batch_size * (load.iterations - last.iterations)
        same = (load.batch_size, load.queued) == (last.batch_size, last.queued)
        same = same and self._phase == "decode" and load.batch_tokens - last.batch_tokens == made
        return same and load.batch_tokens < self._answer.holds_below_tokens

    def _held(self, load: LoadSnapshot, answer: Decision) -> Decision:
        """The answer with its promise cut to `hold_s`."""
        if not load.batch_size:
            return answer
        iterations = max(1, math.ceil(self._hold_s / max(1e-6, self._predicted_s(load, 1, answer.clock_mhz))))
        until = load.batch_tokens + load.batch_size * iterations
        return answer._replace(holds_below_tokens=min(answer.holds_below_tokens, until))

    def _learn(self, load: LoadSnapshot) -> None:
        """Compare the iterations since the last answer with what was predicted for them."""
        last = self._asked
        iterations = load.iterations - last.iterations
        if not last.batch_size or iterations <= 0 or last.time_s < self._changed_s + self._settle_s:
            return
        predicted_s = self._predicted_s(last, iterations, self._answer.clock_mhz)
        busy_s = load.busy_s - last.busy_s
        if predicted_s > 0 and busy_s > 0:
            self._ratio.observe(busy_s / iterations, predicted_s, busy_s)

    def _predicted_s(self, load: LoadSnapshot, iterations: int, clock_mhz: int) -> float:
        """Mean latency predicted for the next iterations of a batch."""
        if self._phase == "prefill":
            return self._predictor.prefill_s(load.batch_tokens, clock_mhz)
        tokens = load.batch_tokens + load.batch_size * (iterations - 1) / 2
        return self._predictor.decode_s(load.batch_size, tokens, clock_mhz)


def _stretched(table: LevelTable, factors: Sequence[float]) -> LevelTable:
    """Latencies of each level times a factor, as if the level were so much slower."""
    return LevelTable(
        tuple(
            tuple((a * x, b * x, c * x) for (a, b, c), x in zip(levels, factors, strict=True))
            for levels in table.by_bin
        )
    )
