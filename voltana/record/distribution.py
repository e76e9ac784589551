"""Mean and percentiles of a stream of positive numbers in bounded memory."""

from __future__ import annotations

import math
from array import array

import numpy as np
from numpy.typing import NDArray

EXACT = 100_000
"""So many values are kept as they are; percentiles of more are read off a histogram."""
RESOLUTION = 1e-3
"""Ratio of neighbouring buckets less one: a percentile is off by half of it at most."""
LOWEST, HIGHEST = 1e-9, 1e9
"""What lies outside counts as these."""

_WIDTH = math.log1p(RESOLUTION)


class Distribution:
    """Takes numbers one by one; mean and percentiles are exact up to `EXACT` of them."""

    def __init__(self) -> None:
        self._values = array("d")
        self._folded = 0
        self._sum = 0.0
        self._counts: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        """Numbers taken."""
        return self._folded + len(self._values)

    def add(self, value: float) -> None:
        """Take a number, above zero; in whatever unit, that of the mean and the percentiles."""
        self._values.append(value)
        if len(self._values) > EXACT:
            self._fold()

    def mean(self) -> float:
        """Arithmetic mean; there must be a number."""
        kept = np.frombuffer(self._values)
        return float(kept.mean()) if not self._folded else (self._sum + float(kept.sum())) / len(self)

    def percentiles(self, shares: tuple[float, ...]) -> tuple[float, ...]:
        """The values below which these percentages of the numbers lie; there must be a number."""
        if not self._folded:
            return tuple(np.percentile(np.frombuffer(self._values), shares).tolist())
        self._fold()
        assert self._counts is not None
        reached = np.searchsorted(np.cumsum(self._counts), np.array(shares) / 100 * (self._folded - 1), side="right")
        return tuple((LOWEST * np.exp(reached * _WIDTH)).tolist())

    def _fold(self) -> None:
        """Move what is kept into the histogram."""
        values = np.array(self._values)
        self._values = array("d")
        if self._counts is None:
            self._counts = np.zeros(round(math.log(HIGHEST / LOWEST) / _WIDTH) + 1, np.int64)
        buckets = np.rint(np.log(np.clip(values, LOWEST, HIGHEST) / LOWEST) / _WIDTH).astype(np.int64)
        np.add.at(self._counts, buckets, 1)
        self._folded += len(values)
        self._sum += float(values.sum())
