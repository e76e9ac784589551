"""Clocks of a configuration that follow the GPU: `max`, `knee`, shares of the highest clock, and ranges of them.

A policy gets MHz; these words are replaced once, when a configuration is composed, so its record has MHz too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

CLOCK_KEYS = ("clock_min_mhz", "clock_max_mhz", "clock_step_mhz", "knee_mhz")
"""What is read of a section `gpu`; without all of them it has no clocks yet (`gpu=auto`)."""


def in_mhz(values: Any, gpu: Mapping[str, Any]) -> Any:
    """The same values with every clock in MHz.

    Of a mapping, the keys that end in `_mhz` are clocks. `max` is the highest; `knee` the highest supported one up to
    the knee of the voltage curve; a number with a point from 0 to 1 the supported one nearest to that share of the
    highest; ``LOW..HIGH`` takes the same words. Whatever else there is stays, for the policy to check, and so does
    ``clock_mhz: max``: that policy takes the highest clock of the GPU it drives.

    Args:
        values: a section, a list of sections or a value.
        gpu: the section `gpu`.
    """
    if any(not isinstance(gpu.get(key), int | float) for key in CLOCK_KEYS):
        return values
    if isinstance(values, Mapping):
        return {
            key: _clocks(value, gpu)
            if str(key).endswith("_mhz") and (key, value) != ("clock_mhz", "max")
            else in_mhz(value, gpu)
            for key, value in values.items()
        }
    return [in_mhz(value, gpu) for value in values] if isinstance(values, list) else values


def _clocks(value: Any, gpu: Mapping[str, Any]) -> Any:
    if isinstance(value, list | tuple):
        return [_clock(each, gpu) for each in value]
    ends = re.fullmatch(r"(\w+|\d?\.\d+)\.\.(\w+|\d?\.\d+)", value) if isinstance(value, str) else None
    if ends is None:
        return _clock(value, gpu)
    return "..".join(str(_clock(_number(end), gpu)) for end in ends.groups())


def _number(text: str) -> Any:
    return float(text) if re.fullmatch(r"\d?\.\d+", text) else text


def _clock(value: Any, gpu: Mapping[str, Any]) -> Any:
    low, high, step, knee = (gpu[key] for key in CLOCK_KEYS)
    if value == "max":
        return high
    if value == "knee":
        return low + int((knee - low) // step) * step
    if isinstance(value, float) and 0.0 < value <= 1.0:
        return min(range(low, high + 1, step), key=lambda clock: abs(clock - value * high))
    return value
