"""A calibrated power cap on decode and a window of clocks on prefill, both released while latency is late."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from voltana import checks
from voltana.errors import UserError
from voltana.state import Decision, LoadSnapshot, Slo


class PowerCap:
    """Decode: the highest clock under a power cap; the GPU itself lowers its clock to stay below.

    After a measurement study of power caps and clock windows by phase (arXiv 2609.11133): a cap on decode calibrated
    just above its throughput cliff, at 80 to 90 % of the natural draw, and a window of clocks on prefill whose floor
    guarantees latency. Its gains are those of mixture-of-experts models; dense ones gain about a fifth of that. Another
    study finds the opposite (arXiv 2605.11999): on an H200 decode draws 137 to 300 of 700 W, so that no cap ever
    binds, and locking the clock is better everywhere. Both hold for what they capped: a cap at a nominal value does not
    bind on decode, a calibrated one does. `python -m voltana.sim.studies.power_cap` finds that cap for a setting. In
    this order:

    1. the tail of measured iteration latencies over `window_s` is above the ITL objective less `margin`: no cap;
    2. once released, none until the tail is within `reapply_share` of that budget;
    3. else the cap.

    Deviations, and why. The study caps by hand; when to release is told only as "on a tail-latency violation", so
    tail, window and return are ours. **Fitted by us**: `cap_w` and `margin`.

    Args:
        cap_w: of each GPU; within what the GPU takes.
        releases: False: the cap stays whatever happens (rules 1 and 2 off), as in calibration.
        margin: share of the ITL objective held back; below 1.
        window_s: latencies so old count.
        quantile: what the tail is.
        reapply_share: of the budget; the cap returns at or below it.
    """

    def __init__(
        self,
        slo: Slo,
        clocks_mhz: Sequence[int],
        power_limits_w: tuple[float, float],
        *,
        cap_w: float,
        releases: bool,
        margin: float,
        window_s: float,
        quantile: float,
        reapply_share: float,
    ) -> None:
        low, high = power_limits_w
        if not low <= checks.number("cap_w", cap_w, above=0) <= high:
            raise UserError(f"cap_w: found {cap_w!r}, allowed: what the GPU takes, {low:g} to {high:g} W")
        self._tail = TailWatch(slo.itl_s, margin, window_s, quantile, reapply_share)
        self._releases = releases
        holds = 0.0 if releases else math.inf
        self._capped = Decision(clocks_mhz[-1], holds_below_tokens=holds, power_cap_w=cap_w)
        self._free = Decision(clocks_mhz[-1])

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rules of the class."""
        return self._free if self._releases and self._tail.is_late(load) else self._capped


class ClockWindow:
    """Prefill: the clock may move within a window; the highest clock while the tail of TTFT is late.

    The prefill side of the power-cap study: compute-bound work runs into the power limit by itself, so its clocks are
    bounded instead. What a GPU makes of such a window (`nvidia-smi -lgc LOW,HIGH`): its upper end under load, its
    lower end when idle. The first tokens measured are those of each batch's oldest request. **Fitted by us**:
    `high_mhz` and `margin`; `low_mhz` is VoltanaLLM's low clock.

    Args:
        low_mhz: clock when idle for `idle_s`.
        high_mhz: clock under load.
        idle_s: time without iterations after which the GPU falls to the lower end.
        releases, margin, window_s, quantile, reapply_share: as of `PowerCap`, on the TTFT objective.
    """

    def __init__(
        self,
        slo: Slo,
        clocks_mhz: Sequence[int],
        *,
        low_mhz: int,
        high_mhz: int,
        idle_s: float,
        releases: bool,
        margin: float,
        window_s: float,
        quantile: float,
        reapply_share: float,
    ) -> None:
        self._low_mhz = checks.clock("low_mhz", low_mhz, clocks_mhz)
        self._high_mhz = checks.clock("high_mhz", high_mhz, clocks_mhz)
        if self._low_mhz > self._high_mhz:
            raise UserError(f"low_mhz: found {low_mhz}, allowed: up to high_mhz = {high_mhz}")
        self._top_mhz = clocks_mhz[-1]
        self._idle_s = checks.number("idle_s", idle_s, above=0)
        self._tail = TailWatch(slo.ttft_s, margin, window_s, quantile, reapply_share)
        self._releases = releases

    def decide(self, load: LoadSnapshot) -> Decision:
        """The clock within the window, or above it."""
        late = self._releases and self._tail.is_late(load)
        if load.batch_size:
            return Decision(self._top_mhz if late else self._high_mhz, self._idle_s)
        return Decision(self._low_mhz)


class TailWatch:
    """Tells whether the tail of measured latency is late, and remembers it until the tail is well in time.

    A sample is the time that a batch took from the longest wait in it to its end (0 wait in decode), taken from the
    growth of an instance's counters; several iterations between two snapshots count as one of their mean latency.
    """

    def __init__(
        self, objective_s: float, margin: float, window_s: float, quantile: float, reapply_share: float
    ) -> None:
        self._budget_s = objective_s * (1 - checks.number("margin", margin, above=-10, high=0.99))
        self._window_s = checks.number("window_s", window_s, above=0)
        self._quantile = checks.number("quantile", quantile, above=0, high=1)
        self._return_s = self._budget_s * checks.number("reapply_share", reapply_share, above=0, high=1)
        self._samples: deque[tuple[float, float]] = deque()
        self._before: LoadSnapshot | None = None
        self._late = False

    def is_late(self, load: LoadSnapshot) -> bool:
        """Take a snapshot into account and judge the window that ends with it."""
        before, self._before = self._before, load
        iterations = load.iterations - before.iterations if before else 0
        if before and iterations:
            latency_s = (load.busy_s - before.busy_s) / iterations
            self._samples.append((load.time_s, before.longest_wait_s + latency_s))
        while self._samples and self._samples[0][0] <= load.time_s - self._window_s:
            self._samples.popleft()
        tail_s = self._tail_s()
        self._late = tail_s > (self._return_s if self._late else self._budget_s)
        return self._late

    def _tail_s(self) -> float:
        if not self._samples:
            return 0.0
        ranked = sorted(latency_s for _, latency_s in self._samples)
        return ranked[min(len(ranked) - 1, int(self._quantile * len(ranked)))]
