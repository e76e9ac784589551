"""Times of another host: its monotonic clock has another origin, and readings of GPUs carry that clock's times."""

from __future__ import annotations

import math


class HostClock:
    """Turns times of the monotonic clock of an owner's host into this one's.

    An answer was written between the moment it was asked for and the moment it came, so each round trip bounds the
    difference of the two clocks from both sides. The bounds of all trips together are narrower than those of one. If
    they exclude each other, the clocks have drifted apart, and the newest hold. On the same host the difference is 0,
    which no trip excludes; so 0 is taken as long as it can be.
    """

    def __init__(self) -> None:
        self._low_s, self._high_s = -math.inf, math.inf

    def answered(self, asked_s: float, told_s: float, came_s: float) -> None:
        """A reading came.

        Args:
            asked_s, came_s: on this host's clock.
            told_s: when it was taken, on the owner's.
        """
        low_s, high_s = told_s - came_s, told_s - asked_s
        if low_s > self._high_s or high_s < self._low_s:
            self._low_s, self._high_s = low_s, high_s
        self._low_s, self._high_s = max(low_s, self._low_s), min(high_s, self._high_s)

    @property
    def ahead_s(self) -> float:
        """How far the owner's clock is ahead of this one."""
        if self._low_s <= 0 <= self._high_s:
            return 0.0
        return (self._low_s + self._high_s) / 2

    def here(self, told_s: float) -> float:
        """A time of the owner's on this host's clock."""
        return told_s - self.ahead_s
