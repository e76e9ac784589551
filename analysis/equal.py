"""Energy at equal attainment: what a policy saves once the baseline fails as many requests.

A lower clock always saves energy; it is paid for in requests that come late. So a saving says something only between
points that meet both objectives (`joint_attainment`) equally often. Two ways lead there, run by run with the same seed:

*Over its own dial.* Runs of one policy at one setting that differ in a parameter draw a line of energy over attainment.
Points that another of them beats in both are left out; between neighbours the line is straight. It is read at the
attainment of the baseline at the same setting. Where every point attains more than that, the cheapest is taken.

*Over the rate.* The baseline's runs at other rates, all else equal, draw its attainment and its energy per completed
request over the rate, straight between neighbours. The nearest rate at which it attains what the policy does at its own
rate is where it is as bad (or as good); the energies per request of both are compared there.

Nothing is extrapolated. Where a policy attains more than the baseline does at any rate, their energies at the policy's
own rate are compared, which is less than it saves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from voltana.analysis.runs import RATE, Run, RunSet, Value

DIAL, OVER_RATE = "dial", "rate"
"""How the energies were brought to the same attainment."""


class Spot(NamedTuple):
    """A run of the baseline at a rate."""

    rate: float
    attainment: float
    request_j: float
    """Energy per completed request."""


class DialPoint(NamedTuple):
    """A run of a policy at one position of its dial."""

    attainment: float
    energy_j: float


class Equal:
    """Savings at equal attainment within a set of runs.

    Args:
        runs: what is compared.
        baseline: the policy that the others are brought level with.
    """

    def __init__(self, runs: RunSet, baseline: str) -> None:
        self._runs, self._baseline = runs, baseline
        self._spots: dict[tuple[object, ...], list[Spot]] = {}
        for run in runs.runs:
            if run.policy == baseline and (spot := _spot(run)) is not None:
                self._spots.setdefault(self._place(run), []).append(spot)
        for spots in self._spots.values():
            spots.sort()

    def savings(self, setting: Mapping[str, Value], policy: str) -> tuple[list[float], str | None]:
        """What a policy saves at a setting, in %: a number per run whose seed the baseline has too; and how.

        The dial is asked first, as it compares at the same rate. Empty and None where neither way leads to a number.
        """
        if policy == self._baseline:
            return [], None
        own = self._runs.at(setting, policy)
        family = {each.policy for run in own for each in self._family(run, setting)}
        if len(family) > 1 and self._baseline not in family:
            by_dial = [saving for run in own if (saving := self._by_dial(run, setting)) is not None]
            if by_dial:
                return by_dial, DIAL
        by_rate = [saving for run in own if (saving := self._by_rate(run)) is not None]
        return by_rate, OVER_RATE if by_rate else None

    def _place(self, run: Run) -> tuple[object, ...]:
        """What a run shares with others that differ from it in the rate alone."""
        return run.seed, *(repr(value) for key, value in run.setting.items() if key != RATE)

    def _family(self, run: Run, setting: Mapping[str, Value]) -> list[Run]:
        """The runs of the same policy with the same seed at a setting, whatever its parameters."""
        name = run.name("policy")
        return [
            each
            for each in self._runs.runs
            if each.setting == setting and each.seed == run.seed and each.name("policy") == name
        ]

    def _by_dial(self, run: Run, setting: Mapping[str, Value]) -> float | None:
        base = [each for each in self._runs.at(setting, self._baseline) if each.seed == run.seed]
        level, used = (base[0].number(*path) for path in (_JOINT, _ENERGY)) if base else (None, None)
        points = [
            DialPoint(met, energy)
            for each in self._family(run, setting)
            if (met := each.number(*_JOINT)) is not None and (energy := each.number(*_ENERGY)) is not None
        ]
        least = energy_at(points, level) if level is not None else None
        return 100 * (1 - least / used) if least is not None and used else None

    def _by_rate(self, run: Run) -> float | None:
        own = _spot(run)
        spots = self._spots.get(self._place(run))
        if own is None or not spots:
            return None
        base_j = request_j_at(spots, own)
        return 100 * (1 - own.request_j / base_j) if base_j else None


def energy_at(points: Sequence[DialPoint], attainment: float) -> float | None:
    """Energy of a dial at an attainment, between its neighbours that nothing beats; None where no point attains it."""
    best: list[DialPoint] = []
    for point in sorted(points, key=lambda each: (-each.attainment, each.energy_j)):
        if not best or point.energy_j < best[-1].energy_j:
            best.append(point)
    if not best or best[0].attainment < attainment:
        return None
    for above, below in pairwise(best):
        if below.attainment < attainment:
            share = (attainment - below.attainment) / (above.attainment - below.attainment)
            return below.energy_j + share * (above.energy_j - below.energy_j)
    return best[-1].energy_j


def request_j_at(spots: Sequence[Spot], own: Spot) -> float | None:
    """Energy per request of the baseline at the rate nearest to a policy's at which it attains the same.

    Args:
        spots: of the baseline, by rising rate.
        own: of the policy.

    Returns:
        None where the baseline attains more at every rate, or has no run at the policy's rate and none to read it off.
    """
    crossings = [spot for spot in spots if spot.attainment == own.attainment]
    for left, right in pairwise(spots):
        if min(left.attainment, right.attainment) < own.attainment < max(left.attainment, right.attainment):
            share = (own.attainment - left.attainment) / (right.attainment - left.attainment)
            crossings.append(Spot(*(a + share * (b - a) for a, b in zip(left, right, strict=True))))
        elif left.attainment == right.attainment == own.attainment and left.rate < own.rate < right.rate:
            share = (own.rate - left.rate) / (right.rate - left.rate)
            crossings.append(
                Spot(own.rate, own.attainment, left.request_j + share * (right.request_j - left.request_j))
            )
    if crossings:
        return min(crossings, key=lambda each: (abs(each.rate - own.rate), each.rate)).request_j
    if own.attainment > max(spot.attainment for spot in spots):
        return next((spot.request_j for spot in spots if math.isclose(spot.rate, own.rate)), None)
    return None


_JOINT, _ENERGY, _PER_REQUEST = ("joint_attainment",), ("energy_j", "total"), ("energy_per_request_j",)


def _spot(run: Run) -> Spot | None:
    """None where its rate or a number is not known, or nothing was completed."""
    met, request_j = run.number(*_JOINT), run.number(*_PER_REQUEST, may_lack=True)
    rate = run.rate
    return None if rate is None or met is None or request_j is None else Spot(rate, met, request_j)
