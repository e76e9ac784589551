"""POLCA: clocks are capped where the whole cluster draws too near the power it was provisioned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from voltana import checks
from voltana.errors import UserError
from voltana.state import Decision, LoadSnapshot, Phase


class Polca:
    """Two thresholds on cluster power: above the first low-priority clocks are capped, above the second all.

    POLCA (Patel et al., ASPLOS 2024, arXiv 2308.12908) as its abstract and later descriptions tell it. Whenever the
    cluster's power sensors have a reading, as a share of `provisioned_w`:

    1. above `t2`: low priority at `deep_cap_mhz`, high priority at `high_cap_mhz`;
    2. above `t1`: low priority at `low_cap_mhz`, high priority free, unless already capped;
    3. a threshold that was exceeded counts as such until power has been `hysteresis` below it for `uncap_after_s`;
    4. free: highest clock.

    Every instance runs this rule by itself on the same cluster readings, which all see, so they agree but for the
    moment each is asked in.

    Deviations, and why. POLCA protects a power budget that is oversubscribed; it does not save energy for its own
    sake, and no other policy here has its goal. Its priorities are those of customers; requests here have none, so
    the instances of one phase are of low priority (decode has the slack and the higher draw). It acts
    out of band within tens of seconds and brakes hard in an emergency, here it acts within a sensor period and brakes
    by `deep_cap_mhz`, without a power brake. The caps (low priority at the A100's base clock of 1275, then 1110 MHz,
    high priority 1305 MHz), thresholds (80 and 89 %) and hysteresis (5 %) are the paper's, as later descriptions tell
    them. **Fitted by us**: `uncap_after_s` and `low_priority`; `provisioned_w` is the limit of all GPUs.

    Args:
        provisioned_w: power of the cluster that counts as 100 %.
        t1, t2: thresholds as shares of it.
        hysteresis: how far below a threshold it is left, as a share of `provisioned_w`.
        uncap_after_s: how long power must have been there.
        low_priority: the phase whose instances are capped first.
        low_cap_mhz: clock of low priority above `t1`.
        deep_cap_mhz: clock of low priority above `t2`.
        high_cap_mhz: clock of high priority above `t2`.
    """

    reads_power = True

    def __init__(
        self,
        phase: Phase,
        clocks_mhz: Sequence[int],
        *,
        provisioned_w: float,
        t1: float,
        t2: float,
        hysteresis: float,
        uncap_after_s: float,
        low_priority: Phase,
        low_cap_mhz: int,
        deep_cap_mhz: int,
        high_cap_mhz: int,
    ) -> None:
        provisioned = checks.number("provisioned_w", provisioned_w, above=0)
        checks.number("t1", t1, above=0)
        checks.number("t2", t2, low=t1)
        margin_w = provisioned * checks.number("hysteresis", hysteresis, low=0, high=t1)
        hold_s = checks.number("uncap_after_s", uncap_after_s, low=0)
        if low_priority not in ("prefill", "decode"):
            raise UserError(f"low_priority: found {low_priority!r}, allowed: prefill, decode")
        low, deep, high = (
            checks.clock(name, value, clocks_mhz)
            for name, value in (
                ("low_cap_mhz", low_cap_mhz),
                ("deep_cap_mhz", deep_cap_mhz),
                ("high_cap_mhz", high_cap_mhz),
            )
        )
        top = clocks_mhz[-1]
        self._clocks = (top, low, deep) if phase == low_priority else (top, top, high)
        self._first = Threshold(t1 * provisioned, t1 * provisioned - margin_w, hold_s)
        self._second = Threshold(t2 * provisioned, t2 * provisioned - margin_w, hold_s)

    def decide(self, load: LoadSnapshot) -> Decision:
        """Apply the rules of the class."""
        if load.cluster_power_w is None:
            return Decision(self._clocks[0])
        first = self._first.exceeded(load.time_s, load.cluster_power_w)
        second = self._second.exceeded(load.time_s, load.cluster_power_w)
        return Decision(self._clocks[2 if second else 1 if first else 0])


@dataclass
class Threshold:
    """A threshold with hysteresis in power and time."""

    enter_w: float
    leave_w: float
    hold_s: float
    _on: bool = False
    _below_since_s: float | None = None

    def exceeded(self, time_s: float, power_w: float) -> bool:
        """Take a reading into account; whether the threshold counts as exceeded."""
        if power_w > self.enter_w:
            self._on = True
        if power_w > self.leave_w:
            self._below_since_s = None
        elif self._below_since_s is None:
            self._below_since_s = time_s
        if self._on and self._below_since_s is not None and time_s - self._below_since_s >= self.hold_s:
            self._on = False
        return self._on
