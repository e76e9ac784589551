"""Instances over time: the step functions of `instances.parquet`, cut to a window."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from voltana.analysis.runs import Run
from voltana.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]

QUANTITIES = ("clock_mhz", "batch_size", "power_w")
_DENSE_CHANGES = 400
_MEANS = 100


@dataclass(frozen=True)
class Series:
    """A step function: `value[i]` holds from `time_s[i]` to `time_s[i + 1]`; the last value ends it. NaN: not known."""

    name: str
    phase: str
    time_s: Numbers
    value: Numbers
    smooth: tuple[Numbers, Numbers] | None
    """Times and means over time, where the steps are too dense to read."""


def read_timeline(run: Run, window: Any = None) -> dict[str, list[Series]]:
    """Clock, batch size and power of every instance, prefill first.

    Raises:
        UserError: the record has no instances, or the window is empty or outside of the run.
    """
    frame = run.record.instances()
    if frame.empty:
        raise UserError(f"{run.record.folder}: no instance was recorded")
    last = float(frame["time_s"].max())
    end = last if run.record.unfinished else run.number("end_s")
    start, stop = _window(window, float(frame["time_s"].min()), max(end or 0.0, last))
    instances = {str(name): rows for name, rows in frame.groupby("instance")}
    return {
        name: [_series(instances[name], quantity, start, stop) for quantity in QUANTITIES]
        for name in sorted(instances, key=lambda name: _order(name, str(instances[name]["phase"].iloc[0])))
    }


def _window(window: Any, start: float, end: float) -> tuple[float, float]:
    if window is None:
        return start, end
    numbers = window if isinstance(window, list) else []
    if len(numbers) != 2 or not all(isinstance(number, int | float) for number in numbers):
        raise UserError(f"window: found {window}, allowed: two numbers in seconds, window=[60,80]")
    low, high = max(float(numbers[0]), start), min(float(numbers[1]), end)
    if low >= high:
        raise UserError(f"window: found {window}, allowed: an interval that overlaps the run, {start:g} to {end:g} s")
    return low, high


def _series(rows: pd.DataFrame, quantity: str, start: float, stop: float) -> Series:
    import numpy as np

    time, value = rows["time_s"].to_numpy(float), rows[quantity].to_numpy(float)
    first = max(int(np.searchsorted(time, start, side="right")) - 1, 0)
    last = max(int(np.searchsorted(time, stop, side="left")), first + 1)
    time = np.append(np.clip(time[first:last], start, None), stop)
    value = np.append(value[first:last], value[last - 1])
    dense = quantity != "clock_mhz" and len(time) > _DENSE_CHANGES
    return Series(quantity, str(rows["phase"].iloc[0]), time, value, _means(time, value) if dense else None)


def _means(time: Numbers, value: Numbers) -> tuple[Numbers, Numbers]:
    """Means over what is known of equal spans of time, exact for a step function, at the middles of the spans."""
    import numpy as np

    edges = np.linspace(time[0], time[-1], _MEANS + 1)
    known_s = np.where(np.isnan(value[:-1]), 0.0, np.diff(time))

    def over_spans(parts: Numbers) -> Numbers:
        total = np.concatenate([[0.0], np.cumsum(parts)])
        return np.diff(np.interp(edges, time, total))

    with np.errstate(invalid="ignore"):
        means = over_spans(np.nan_to_num(value[:-1]) * known_s) / over_spans(known_s)
    return (edges[:-1] + edges[1:]) / 2, means


def _order(name: str, phase: str) -> tuple[bool, list[tuple[bool, int, str]]]:
    parts = re.split(r"(\d+)", name)
    return phase != "prefill", [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
