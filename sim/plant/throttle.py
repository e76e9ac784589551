"""The power limit: a GPU that would draw more than it may alternates between two clocks so that it draws just that."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """One iteration at one load."""

    seconds: float
    joules: float
    clock_mhz: float


def under_limit(
    run: Callable[[float], tuple[float, float]],
    clocks: Sequence[float],
    asked_mhz: float,
    limit_w: float,
    guess_mhz: float = 0.0,
) -> Point:
    """Time, energy and mean clock of an iteration when mean power may not exceed `limit_w`.

    `run(clock)` gives seconds and joules at a clock; power must rise with the clock. Of the highest supported clock
    within the limit and the next one up, the share x of the work that is done at the upper solves
    ``E_low + x (E_up - E_low) = limit * (T_low + x (T_up - T_low))``. At the lowest clock the limit is given up.
    `guess_mhz`, say the last answer, only saves the search.
    """
    seconds, joules = run(asked_mhz)
    if joules <= limit_w * seconds or asked_mhz <= clocks[0]:
        return Point(seconds, joules, asked_mhz)
    above = bisect_left(clocks, asked_mhz)
    low = bisect_right(clocks, guess_mhz) - 1
    if 0 < low < above - 1:
        mixed = _between(run, clocks[low], clocks[low + 1], limit_w)
        if mixed is not None:
            return mixed
    low = _highest_within(lambda i: _over(run, clocks[i], limit_w), above, low)
    return between(run, clocks[low], clocks[low + 1] if low + 1 < above else asked_mhz, limit_w)


def _highest_within(over: Callable[[int], bool], above: int, guess: int) -> int:
    """The highest index below `above` that is not over, the lowest if all are; looked for around the guess."""
    if not 0 < guess < above:
        return bisect_left(range(1, above), True, key=over)
    low = guess
    while low > 0 and over(low):
        low -= 1
    while low + 1 < above and not over(low + 1):
        low += 1
    return low


def between(run: Callable[[float], tuple[float, float]], low_mhz: float, up_mhz: float, limit_w: float) -> Point:
    """Mix a clock within the limit with one above it; the lower alone if even that is above."""
    mixed = _between(run, low_mhz, up_mhz, limit_w)
    return mixed if mixed is not None else Point(*run(low_mhz), low_mhz)


def _between(
    run: Callable[[float], tuple[float, float]], low_mhz: float, up_mhz: float, limit_w: float
) -> Point | None:
    """Mix two clocks so that mean power is the limit; None unless the lower is within it and the upper above."""
    low_s, low_j = run(low_mhz)
    spare = limit_w * low_s - low_j
    if spare <= 0.0:
        return None
    up_s, up_j = run(up_mhz)
    excess = up_j - limit_w * up_s
    if excess <= 0.0:
        return None
    share = spare / (spare + excess)
    seconds = low_s + share * (up_s - low_s)
    clock = ((1.0 - share) * low_s * low_mhz + share * up_s * up_mhz) / seconds
    return Point(seconds, low_j + share * (up_j - low_j), clock)


def _over(run: Callable[[float], tuple[float, float]], clock_mhz: float, limit_w: float) -> bool:
    seconds, joules = run(clock_mhz)
    return joules > limit_w * seconds
