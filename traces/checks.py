"""Validation at the door: each check returns the value or says which key, what was found, what is allowed."""

import math

from voltana.errors import UserError


def fail(place: str, found: object, allowed: str) -> UserError:
    """Build the one-line error; `place` is a configuration key or `path:line`."""
    shown = "null" if found is None else repr(found)
    return UserError(f"{place}: found {shown}, allowed: {allowed}")


def positive(key: str, value: object) -> float:
    """Return a finite number above zero."""
    return _number(key, value, above=True)


def non_negative(key: str, value: object) -> float:
    """Return a finite number, zero included."""
    return _number(key, value, above=False)


def integer(key: str, value: object, least: int) -> int:
    """Return an integer not below `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise fail(key, value, f"an integer >= {least}")
    return value


def optional_integer(key: str, value: object, least: int) -> int | None:
    """Return null or an integer not below `least`."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise fail(key, value, f"null or an integer >= {least}")
    return value


def flag(key: str, value: object) -> bool:
    """Return a true-or-false value."""
    if not isinstance(value, bool):
        raise fail(key, value, "true or false")
    return value


def _number(key: str, value: object, *, above: bool) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        if math.isfinite(number) and (number > 0 or (number == 0 and not above)):
            return number
    raise fail(key, value, "a number > 0" if above else "a number >= 0")
