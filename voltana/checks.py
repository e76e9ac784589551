"""Checks at the door of a policy: each raises a UserError that names the parameter, what was found, what is allowed."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

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
