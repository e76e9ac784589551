"""What is searched: parameters of a policy, and the values that each may take."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from voltana.errors import UserError
from voltana.files import parse_yaml

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})( log)?", re.IGNORECASE)
ALLOWED = "a range such as 0..0.5, 1..8 (whole numbers) or 0.01..10 log, or a list of two values and more"

Params = Mapping[str, float | str]
"""A point as Optuna has it: a number, or of a choice its value as JSON."""


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Args:
        low: the least.
        high: the greatest.
        whole: only whole numbers.
        log: spread evenly over their logarithm.
    """

    low: float
    high: float
    whole: bool
    log: bool

    def distribution(self) -> BaseDistribution:
        """For Optuna."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def value(self, drawn: float | str) -> Any:
        """A value for the policy."""
        return int(drawn) if self.whole else float(drawn)


@dataclass(frozen=True)
class Choice:
    """One of some values, of any kind; kept as JSON."""

    texts: tuple[str, ...]

    def distribution(self) -> BaseDistribution:
        """For Optuna."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.texts)

    def value(self, drawn: float | str) -> Any:
        """A value for the policy."""
        return json.loads(str(drawn))


Space = Mapping[str, Range | Choice]
"""By dotted key below `policy`."""


def read_space(asked: object) -> Space:
    """The space of a command line.

    Args:
        asked: a mapping from dotted keys below `policy`, or the path of a YAML file that holds one.

    Raises:
        UserError: the file cannot be read, or something in it is wrong.
    """
    whose = "space"
    if isinstance(asked, str):
        whose = asked
        try:
            asked = parse_yaml(Path(asked).read_text(encoding="utf-8"))
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            raise UserError(f"space: found {whose!r}, allowed: a mapping, or a YAML file ({error})") from error
    if not isinstance(asked, dict) or not asked or not all(isinstance(key, str) for key in asked):
        raise UserError(f"{whose}: found {asked!r}, allowed: a mapping of keys of the policy, such as {{a.b: 0..0.5}}")
    return {key: _parameter(f"{whose}: {key}", value) for key, value in asked.items()}


def _parameter(whose: str, asked: object) -> Range | Choice:
    if isinstance(asked, list):
        texts = tuple(json.dumps(each) for each in asked)
        if len(set(texts)) < max(2, len(texts)):
            raise UserError(f"{whose}: found {asked!r}, allowed: {ALLOWED}, all different")
        return Choice(texts)
    match = _RANGE.fullmatch(asked.strip()) if isinstance(asked, str) else None
    if match is None:
        found = "no value, which stands after a colon and a space" if asked is None else repr(asked)
        raise UserError(f"{whose}: found {found}, allowed: {ALLOWED}")
    low, high, log = float(match[1]), float(match[2]), match[3] is not None
    if not low < high or (log and low <= 0):
        raise UserError(f"{whose}: found {asked!r}, allowed: from less to more{', above 0' if log else ''}")
    return Range(low, high, all(re.fullmatch(r"[-+]?\d+", text) for text in match.groups()[:2]), log)


def refuse_unknown(space: Space, policy: Mapping[str, Any]) -> None:
    """Look whether a policy has all keys.

    Raises:
        UserError: it has one not.
    """
    known = _keys(policy)
    for key in space:
        if key not in known:
            raise UserError(f"space: found {key!r}, allowed: keys of the policy: {', '.join(sorted(known))}")


def _keys(part: Mapping[str, Any], above: str = "") -> set[str]:
    found = set()
    for key, value in part.items():
        if isinstance(value, dict):
            found |= _keys(value, f"{above}{key}.")
        elif key != "_target_" and f"{above}{key}" != "name":
            found.add(f"{above}{key}")
    return found


def at(policy: Mapping[str, Any], space: Space, params: Params) -> dict[str, Any]:
    """A policy at a point of the space.

    Args:
        policy: the section `policy` of a configuration.
        space: the space.
        params: the point.
    """
    changed = copy.deepcopy(dict(policy))
    for key, parameter in space.items():
        part = changed
        *way, last = key.split(".")
        for step in way:
            part = part[step]
        part[last] = parameter.value(params[key])
    return changed
