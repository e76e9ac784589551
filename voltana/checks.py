"""Checks in constructors of policies and traces: each returns the value.

A wrong one is a `UserError` that names the parameter or key, what was found and what is allowed.
"""

import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeGuard

from voltana.errors import UserError


def number(
    name: str, value: float, *, above: float | None = None, low: float | None = None, high: float | None = None
) -> float:
    """Check that a parameter is a number within its bounds (`above` is exclusive) and return it."""
    bounds = [
        text
        for text in (
            None if above is None else f"> {above:g}",
            None if low is None else f">= {low:g}",
            None if high is None else f"<= {high:g}",
        )
        if text
    ]
    fits = isinstance(value, int | float) and not isinstance(value, bool)
    fits = (
        fits and (above is None or value > above) and (low is None or value >= low) and (high is None or value <= high)
    )
    if not fits:
        raise UserError(f"{name}: found {value!r}, allowed: a number {' and '.join(bounds)}".rstrip())
    return value


def refused(place: str, found: object, allowed: str) -> UserError:
    """The error of a value that is not allowed; `place` is a configuration key or `path:line`."""
    shown = "null" if found is None else repr(found)
    return UserError(f"{place}: found {shown}, allowed: {allowed}")


def positive(key: str, value: object) -> float:
    """Check that a value is a finite number above zero and return it."""
    if not _finite(value) or value <= 0:
        raise refused(key, value, "a number > 0")
    return float(value)


def non_negative(key: str, value: object) -> float:
    """Check that a value is a finite number, zero included, and return it."""
    if not _finite(value) or value < 0:
        raise refused(key, value, "a number >= 0")
    return float(value)


def integer(key: str, value: object, least: int) -> int:
    """Check that a value is an integer not below `least` and return it."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise refused(key, value, f"an integer >= {least}")
    return value


def optional_integer(key: str, value: object, least: int) -> int | None:
    """Check that a value is null or an integer not below `least` and return it."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
        raise refused(key, value, f"null or an integer >= {least}")
    return value


def flag(key: str, value: object) -> bool:
    """Check that a value is true or false and return it."""
    if not isinstance(value, bool):
        raise refused(key, value, "true or false")
    return value


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def budget_s(objective_s: float, margin: float, objective_ms: float | None = None) -> float:
    """The latency that a policy controls to: the run's objective, or one of its own, less a share held back."""
    if objective_ms is not None:
        objective_s = number("objective_ms", objective_ms, above=0) / 1e3
    return objective_s * (1 - number("margin", margin, above=-10, high=0.99))


def clock(name: str, value: int, supported_mhz: Sequence[int]) -> int:
    """Check that the GPU has a clock and return it."""
    if isinstance(value, bool) or value not in supported_mhz:
        raise UserError(f"{name}: found {value!r}, allowed: {describe_clocks(supported_mhz)}")
    return int(value)


def levels(name: str, values: Sequence[Any] | str, supported_mhz: Sequence[int]) -> tuple[int, ...]:
    """Check a list of clocks, or a range like "1005..1410" of all the GPU has; return it ascending, each once."""
    chosen: list[Any] = []
    if not isinstance(values, str):
        chosen = list(values) if isinstance(values, Sequence) else []
    elif ends := re.fullmatch(r"(\d+)\.\.(\d+)", values):
        low, high = (clock(name, int(end), supported_mhz) for end in ends.groups())
        chosen = [c for c in supported_mhz if low <= c <= high]
    if not chosen:
        raise UserError(
            f"{name}: found {values!r}, allowed: clocks, a list or LOW..HIGH, {describe_clocks(supported_mhz)}"
        )
    return tuple(sorted({clock(name, value, supported_mhz) for value in chosen}))


def describe_clocks(supported_mhz: Sequence[int]) -> str:
    """The supported clocks in words, as a range where they are evenly spaced."""
    steps = {b - a for a, b in pairwise(supported_mhz)}
    if len(steps) == 1:
        return f"{supported_mhz[0]} to {supported_mhz[-1]} MHz in steps of {steps.pop()}"
    return ", ".join(map(str, supported_mhz)) + " MHz"
