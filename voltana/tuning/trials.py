"""What trials came to, which of them no other beats, and which is taken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from voltana.app.objective import Objective
from voltana.errors import UserError
from voltana.intervals import half_width
from voltana.tuning.space import Params

Values = tuple[float, ...]
"""One for each objective."""


def wanted_high(key: str) -> bool:
    """Whether more of a number is better: shares in time, goodput and throughput; of all others, less is."""
    return "attainment" in key or key.startswith(("goodput", "throughput"))


@dataclass(frozen=True)
class Trial:
    """A point of the space, or the policy as it is.

    Args:
        label: tells it from the others; a part of the name of its policy, and the name of its folder.
        params: the point; empty for the policy as it is.
        seeds: what each seed came to, as far as it was run.
        given_up: why not all seeds were run; empty: all were.
    """

    label: str
    params: Params
    seeds: tuple[Values, ...]
    given_up: str = ""

    @property
    def mean(self) -> Values:
        """Over the seeds."""
        return tuple(math.fsum(each) / len(each) for each in zip(*self.seeds, strict=True))

    def half(self, place: int) -> float | None:
        """Of the 95 % interval of an objective's mean; None: of two seeds and less."""
        return half_width([each[place] for each in self.seeds]) if len(self.seeds) > 2 else None


def _signed(values: Values, objective: Objective) -> Values:
    """Turned so that less is better."""
    return tuple(-value if wanted_high(key) else value for key, value in zip(objective, values, strict=True))


def beats(one: Values, other: Values, objective: Objective) -> bool:
    """Whether one is no worse in every objective, and better in at least one."""
    ours, theirs = _signed(one, objective), _signed(other, objective)
    return ours != theirs and all(mine <= his for mine, his in zip(ours, theirs, strict=True))


def beaten_so_far(seeds: Sequence[Values], finished: Iterable[Trial], objective: Objective) -> Trial | None:
    """A finished trial that beats another with every seed that the other has been run with."""
    return next(
        (
            trial
            for trial in finished
            if all(beats(theirs, ours, objective) for theirs, ours in zip(trial.seeds, seeds, strict=False))
        ),
        None,
    )


def front(trials: Iterable[Trial], objective: Objective) -> list[Trial]:
    """The finished trials that no other beats in their means, best in the first objective first."""
    finished = list({trial.label: trial for trial in trials if not trial.given_up}.values())
    best = [one for one in finished if not any(beats(other.mean, one.mean, objective) for other in finished)]
    return sorted(best, key=lambda trial: _signed(trial.mean, objective))


def bounds(keep: object, as_it_is: Trial, objective: Objective) -> Mapping[str, float]:
    """What must be kept, by objective: as was asked for, or what the policy as it is reaches in all but the first.

    Raises:
        UserError: `keep` is no mapping of objectives to numbers.
    """
    if keep is None:
        return dict(list(zip(objective, as_it_is.mean, strict=True))[1:])
    if not isinstance(keep, dict) or not all(_is_bound(key, value, objective) for key, value in keep.items()):
        raise UserError(f"keep: found {keep!r}, allowed: numbers by objective, which are {', '.join(objective)}")
    return {str(key): float(value) for key, value in keep.items()}


def _is_bound(key: object, value: object, objective: Objective) -> bool:
    return key in objective and isinstance(value, int | float) and not isinstance(value, bool)


def chosen(best: Iterable[Trial], kept: Mapping[str, float], objective: Objective) -> Trial | None:
    """The trial of a front with the best first objective of those that keep the bounds; None: none does."""
    for trial in best:
        values = dict(zip(objective, trial.mean, strict=True))
        if all(values[key] >= bound if wanted_high(key) else values[key] <= bound for key, bound in kept.items()):
            return trial
    return None


def change_pct(trial: Trial, as_it_is: Trial, place: int) -> tuple[float, float | None]:
    """By how many per cent an objective differs from the policy as it is, seed by seed: mean, half of its interval."""
    each = [
        100 * (ours[place] / theirs[place] - 1) if theirs[place] else math.nan
        for ours, theirs in zip(trial.seeds, as_it_is.seeds, strict=True)
    ]
    return math.fsum(each) / len(each), half_width(each) if len(each) > 2 else None
