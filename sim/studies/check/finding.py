"""What a check comes to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from voltana.errors import PolicyError

ANSWERS = "answers"
"""The check on which all others of a part depend: whether they are allowed."""


class Finding(NamedTuple):
    """One row of the table."""

    part: str
    """Of the policy: `decode_controller` and the like, or `all` of them together."""
    check: str
    passed: bool | None
    """None: there was nothing to check."""
    detail: str
    traceback: str = ""
    """Of the policy's own code, where it raised."""


class Broken(Exception):  # noqa: N818 - not an error of ours, but what is looked for
    """A promise that does not hold; the message says where."""


def check(part: str, name: str, look: Callable[[], str]) -> Finding:
    """Run a check: it returns a detail or raises `Broken`; a policy that raises or answers wrongly has failed it."""
    try:
        return Finding(part, name, True, look())
    except Broken as broken:
        return Finding(part, name, False, str(broken))
    except PolicyError as error:
        return Finding(part, name, False, str(error), error.traceback_text)


def time_of(spent_ns: Sequence[int], limit_us: float) -> str:
    """The detail of what answers took.

    Args:
        spent_ns: of each answer, nanoseconds.
        limit_us: what the median may be, microseconds.

    Raises:
        Broken: it is more.
    """
    took_us = sorted(spent / 1e3 for spent in spent_ns)
    median, p99 = took_us[len(took_us) // 2], took_us[int(0.99 * (len(took_us) - 1))]
    if median > limit_us:
        raise Broken(f"median {median:.0f} us per answer, allowed: up to {limit_us:g} us (check.decision_us)")
    return f"median {median:.1f} us, p99 {p99:.1f} us"
