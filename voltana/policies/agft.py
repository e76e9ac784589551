"""AGFT: a contextual bandit learns, while serving, which clock has the least energy-delay product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from statistics import pstdev
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from voltana import checks
from voltana.state import Decision, LoadSnapshot, Phase, Slo

Array = NDArray[np.float64]

TIME_RESOLUTION_S = 1e-9
"""Two times closer than this are the same."""

LEAST_SPREAD_JS = 0.05
"""Clocks whose energy-delay products spread less are taken to spread so much."""


class Agft:
    """LinUCB over clocks: context is the load of the last cycle, reward falls with its energy-delay product.

    AGFT (arXiv 2508.01744) and its released code (SusCom-Lab/AGFT @0ad25bf, the newest at hand). Every `cycle_s`:

    1. the cycle that ends has EDP = (mean power x `cycle_s`) x mean latency;
    2. the first `baseline_rounds` cycles run at the highest clock; `baseline_share` of their mean EDP is the base;
    3. reward = 2 (1 - min(2, EDP / base)) goes to the clock of the cycle and the context it was chosen in;
    4. from round `prune_from` on, every `prune_every` rounds: of the clocks tried at least `prune_tries` times those
       are dropped for good whose mean EDP lies above the least by more than `prune_spread` standard deviations of
       these means (at least 0.05 J s each); two always stay;
    5. in the first `extreme_rounds` rounds a clock whose mean reward over at least `extreme_tries` tries is
       `extreme_reward` or less is dropped at once;
    6. where the cycle broke the latency objective and `slo_aware`: highest clock for the next one, unlearned;
    7. else, first each clock once, from the highest down; then the clock with the largest
       theta x + alpha sqrt(x' A^-1 x), ties drawn by `seed`;
       alpha = `exploration` e^(-`exploration_decay` round), at least `min_exploration`.

    Idle for a cycle: the GPU's lowest clock (210 MHz on an A100), and back to the bandit's with the next batch.

    The 7 features: whether requests wait, prompt tokens and output tokens of the cycle, tokens per iteration, requests
    in the batch, share of KV in use, prefix hits (always 0 here, the radix cache is off); each standardised by its
    running mean and deviation, clipped to +-3.

    Deviations, and why. AGFT tunes one GPU that serves both phases, with time per output token as the delay; here each
    instance learns alone, and prefill, which has none, takes how long its batches had waited plus their latency. An
    eighth feature, always 1: standardised ones are 0 on average, so without it no model of a clock could hold that
    clock's mean reward. Energy is the mean of the power readings seen (a live instance may have a counter). The clocks
    are given once; the release refines their grid while it runs, and drops lower ones along with a bad one below half
    the highest clock. Its first baseline is taken with unlocked clocks. **Fitted by us**: `min_clock_mhz`, `step_mhz`
    (released: 210 and 15) and `slo_aware`; all other numbers are the release's.

    Args:
        min_clock_mhz: lowest clock to choose from.
        step_mhz: distance of the clocks; a multiple of the GPU's own.
        regularisation: the ridge of each clock's model.
    """

    reads_power = True

    def __init__(
        self,
        phase: Phase,
        slo: Slo,
        clocks_mhz: Sequence[int],
        kv_capacity_tokens: int,
        seed: int,
        *,
        min_clock_mhz: int,
        step_mhz: int,
        cycle_s: float,
        baseline_rounds: int,
        baseline_share: float,
        exploration: float,
        exploration_decay: float,
        min_exploration: float,
        regularisation: float,
        prune_from: int,
        prune_every: int,
        prune_tries: int,
        prune_spread: float,
        extreme_rounds: int,
        extreme_tries: int,
        extreme_reward: float,
        slo_aware: bool,
    ) -> None:
        self._prefill = phase == "prefill"
        self._objective_s = slo.ttft_s if self._prefill else slo.itl_s
        self._idle_mhz, self._top_mhz = clocks_mhz[0], clocks_mhz[-1]
        self._kv_capacity = kv_capacity_tokens
        self._cycle_s = checks.number("cycle_s", cycle_s, above=0)
        self._baseline_rounds = int(checks.number("baseline_rounds", baseline_rounds, low=1))
        self._baseline_share = checks.number("baseline_share", baseline_share, above=0)
        self._exploration = checks.number("exploration", exploration, low=0)
        self._exploration_decay = checks.number("exploration_decay", exploration_decay, low=0)
        self._min_exploration = checks.number("min_exploration", min_exploration, low=0)
        self._prune_from = int(checks.number("prune_from", prune_from, low=1))
        self._prune_every = int(checks.number("prune_every", prune_every, low=1))
        self._prune_tries = int(checks.number("prune_tries", prune_tries, low=1))
        self._prune_spread = checks.number("prune_spread", prune_spread, above=0)
        self._extreme_rounds = int(checks.number("extreme_rounds", extreme_rounds, low=0))
        self._extreme_tries = int(checks.number("extreme_tries", extreme_tries, low=1))
        self._extreme_reward = checks.number("extreme_reward", extreme_reward)
        self._slo_aware = slo_aware
        ridge = checks.number("regularisation", regularisation, above=0)
        lowest = checks.clock("min_clock_mhz", min_clock_mhz, clocks_mhz)
        step = checks.number("step_mhz", step_mhz, above=0)
        arms = {clock for clock in clocks_mhz if clock >= lowest and (clock - lowest) % step == 0} | {self._top_mhz}
        self.arms = {clock: Arm(ridge) for clock in sorted(arms)}
        """The clocks still in the game."""
        self._untried = sorted(arms)
        self._draw = Random(seed)
        self._scaler = Standardiser()
        self._baseline: list[float] = []
        self._round = 0
        self._clock_mhz = self._top_mhz
        self._context: Array | None = None
        self._cycle = Cycle(self._prefill)

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rules of the class."""
        if load.batch_size == 0:
            return self._decide_idle(load)
        if self._cycle.opened is None:
            self._cycle = Cycle(self._prefill, load)
        elif load.time_s - self._cycle.opened.time_s >= self._cycle_s - TIME_RESOLUTION_S:
            outcome = self._cycle.outcome(load)
            self._cycle = Cycle(self._prefill, load)
            if outcome is not None:
                self._clock_mhz = self._next_clock(outcome, load)
        self._cycle.take(load)
        return Decision(self._clock_mhz, self._cycle_s)

    def _decide_idle(self, load: LoadSnapshot) -> Decision:
        self._cycle = Cycle(self._prefill)
        if math.isinf(load.idle_s):
            return Decision(self._top_mhz)
        if load.idle_s >= self._cycle_s - TIME_RESOLUTION_S:
            return Decision(self._idle_mhz)
        return Decision(load.clock_mhz, self._cycle_s)

    def _next_clock(self, outcome: Outcome, load: LoadSnapshot) -> int:
        edp = outcome.power_w * self._cycle_s * outcome.delay_s
        context = self._scaler.scale(self._features(outcome, load))
        if len(self._baseline) < self._baseline_rounds:
            self._baseline.append(edp)
            return self._top_mhz
        self._learn(edp)
        if self._slo_aware and outcome.delay_s > self._objective_s:
            self._context = None
            return self._top_mhz
        self._context = context
        return self._choose(context)

    def _features(self, outcome: Outcome, load: LoadSnapshot) -> Array:
        prefill, tokens = self._prefill, outcome.tokens
        kv_share = 0.0 if prefill else load.batch_tokens / self._kv_capacity
        throughput = (tokens, 0.0) if prefill else (0.0, tokens)
        return np.array(
            [load.queued > 0, *throughput, tokens / outcome.iterations, load.batch_size, kv_share, 0.0],
            dtype=np.float64,
        )

    def _learn(self, edp: float) -> None:
        """Reward the clock of the cycle; prune now and then."""
        arm = self.arms.get(self._clock_mhz)
        if self._context is None or arm is None:
            return
        base = self._baseline_share * sum(self._baseline) / len(self._baseline)
        arm.learn(self._context, 2 * (1 - min(2.0, edp / base)), edp)
        self._round += 1
        extreme = arm.tries >= self._extreme_tries and arm.mean_reward <= self._extreme_reward
        if extreme and self._round <= self._extreme_rounds and len(self.arms) > 1:
            del self.arms[self._clock_mhz]
        if self._round >= self._prune_from and self._round % self._prune_every == 0:
            self._prune()

    def _prune(self) -> None:
        tried = {clock: arm.mean_edp for clock, arm in self.arms.items() if arm.tries >= self._prune_tries}
        if len(tried) < 2:
            return
        limit = min(tried.values()) + self._prune_spread * max(LEAST_SPREAD_JS, pstdev(tried.values()))
        for clock in [clock for clock, edp in tried.items() if edp > limit][: len(self.arms) - 2]:
            del self.arms[clock]

    def _choose(self, context: Array) -> int:
        while self._untried:
            clock = self._untried.pop()
            if clock in self.arms:
                return clock
        alpha = max(self._min_exploration, self._exploration * math.exp(-self._exploration_decay * self._round))
        scores = {clock: arm.score(context, alpha) for clock, arm in self.arms.items()}
        best = max(scores.values())
        return self._draw.choice([clock for clock, score in scores.items() if score >= best - 1e-9])


class Arm:
    """The linear model of one clock's reward: ridge regression with the width of its confidence."""

    def __init__(self, ridge: float) -> None:
        self._inverse: Array = np.eye(Standardiser.SIZE) / ridge
        self._seen: Array = np.zeros(Standardiser.SIZE)
        self._rewards = 0.0
        self._edps = 0.0
        self.tries = 0

    @property
    def mean_reward(self) -> float:
        """The mean reward of all tries, without unit."""
        return self._rewards / self.tries

    @property
    def mean_edp(self) -> float:
        """The mean energy-delay product of all tries, in J s."""
        return self._edps / self.tries

    def learn(self, context: Array, reward: float, edp: float) -> None:
        """Take one reward and its energy-delay product; the inverse of A + x x' by Sherman and Morrison."""
        along = self._inverse @ context
        self._inverse = self._inverse - np.outer(along, along) / (1 + context @ along)
        self._seen = self._seen + reward * context
        self._rewards += reward
        self._edps += edp
        self.tries += 1

    def score(self, context: Array, alpha: float) -> float:
        """Upper confidence bound of the reward."""
        along = self._inverse @ context
        return float(self._seen @ along + alpha * math.sqrt(context @ along))


class Standardiser:
    """Features less their running mean over their running deviation (Welford), clipped; and a 1 behind them."""

    SIZE = 8
    CLIP = 3.0

    def __init__(self) -> None:
        self._count = 0
        self._mean: Array = np.zeros(self.SIZE - 1)
        self._squares: Array = np.zeros(self.SIZE - 1)

    def scale(self, features: Array) -> Array:
        """Take the features into account and standardise them."""
        self._count += 1
        off = features - self._mean
        self._mean = self._mean + off / self._count
        self._squares = self._squares + off * (features - self._mean)
        deviation = np.sqrt(self._squares / max(1, self._count - 1))
        scaled = (features - self._mean) / np.where(deviation > 0, deviation, 1.0)
        return np.append(np.clip(scaled, -self.CLIP, self.CLIP), 1.0)


class Outcome(NamedTuple):
    """What a cycle came to: mean power in W, mean latency in s, and how much was done."""

    power_w: float
    delay_s: float
    """Mean latency of its iterations; in prefill from the arrival of the batch's oldest request."""
    tokens: float
    iterations: int


class Cycle:
    """One cycle, as seen at the start of each of its iterations."""

    def __init__(self, prefill: bool, opened: LoadSnapshot | None = None) -> None:
        self.opened = opened
        self._prefill = prefill
        self._powers: list[float] = []
        self._waits_s: list[float] = []
        self._tokens = 0

    def take(self, load: LoadSnapshot) -> None:
        """Count an iteration that is about to run: what the sensor tells, how long was waited, its tokens."""
        if load.power_w is not None:
            self._powers.append(load.power_w)
        self._waits_s.append(load.longest_wait_s)
        self._tokens += load.batch_tokens if self._prefill else load.batch_size

    def outcome(self, closing: LoadSnapshot) -> Outcome | None:
        """The cycle's figures; None if the power sensor had nothing to say, or no iteration ended."""
        assert self.opened is not None
        iterations = closing.iterations - self.opened.iterations
        if not iterations or not self._powers:
            return None
        latency_s = (closing.busy_s - self.opened.busy_s) / iterations
        waited_s = sum(self._waits_s) / len(self._waits_s) if self._prefill else 0.0
        power_w = sum(self._powers) / len(self._powers)
        return Outcome(power_w, waited_s + latency_s, self._tokens, iterations)
