"""Numbers in little room: rounded, or as base64 of 16-bit integers."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

_UNKNOWN = 65_535
"""Stands for NaN; the others go up to one less."""


def rounded(value: float | None, digits: int = 5) -> float | int | None:
    """To so many significant digits; None for what is no finite number."""
    if value is None or not math.isfinite(value):
        return None
    kept = float(f"{value:.{digits}g}")
    return int(kept) if kept.is_integer() else kept


def packed(values: Numbers) -> dict[str, Any]:
    """An array as `{"c": value}` where it is constant, else `{"lo", "hi", "d"}`: base64 of little-endian uint16.

    An element q is lo + q (hi - lo) / 65534, and unknown where q is 65535.
    """
    import numpy as np

    known = values[~np.isnan(values)]
    if not len(known):
        return {"c": None}
    low, high = float(known.min()), float(known.max())
    if low == high and len(known) == len(values):
        return {"c": rounded(low, 7)}
    scale = (high - low) or 1.0
    steps = np.full(len(values), _UNKNOWN, "<u2")
    steps[~np.isnan(values)] = np.rint((known - low) / scale * (_UNKNOWN - 1)).astype("<u2")
    return {"lo": low, "hi": low + scale, "d": base64.b64encode(steps.tobytes()).decode()}


def buckets(time: Numbers, value: Numbers, edges: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Least, mean over time and greatest value of a step function between neighbouring edges.

    Args:
        time: where the steps begin, rising; the last step goes on past the last edge.
        value: from each of these times on; NaN: not known.
        edges: rising, the first not before the first step.
    """
    import numpy as np

    first = np.clip(np.searchsorted(time, edges[:-1], side="right") - 1, 0, None)
    last = np.maximum(np.searchsorted(time, edges[1:], side="left"), first + 1)
    padded = np.append(value, np.nan)
    spans = np.column_stack((first, last)).ravel()
    least = np.fmin.reduceat(padded, spans)[::2]
    greatest = np.fmax.reduceat(padded, spans)[::2]
    return least, np.clip(_means(time, value, edges), least, greatest), greatest


def _means(time: Numbers, value: Numbers, edges: Numbers) -> Numbers:
    import numpy as np

    at = np.append(time, max(float(edges[-1]), float(time[-1])))
    lasts = np.where(np.isnan(value), 0.0, np.diff(at))

    def between(parts: Numbers) -> Numbers:
        return np.asarray(np.diff(np.interp(edges, at, np.concatenate([[0.0], np.cumsum(parts)]))))

    with np.errstate(invalid="ignore", divide="ignore"):
        means: Numbers = between(np.nan_to_num(value) * lasts) / between(lasts)
    return means
