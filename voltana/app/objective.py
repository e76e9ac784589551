"""What a run returns to a Hydra sweeper that searches, such as Optuna's: numbers of its summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, ListConfig

from voltana.errors import UserError
from voltana.record import flatten

Objective = tuple[str, ...]


def objective_of(config: DictConfig) -> Objective:
    """The key `objective`: dotted keys of `summary.json`; none where nothing is asked for.

    Raises:
        UserError: it is neither null, nor a key, nor a list of keys.
    """
    found = config.get("objective")
    keys = [] if found is None else list(found) if isinstance(found, ListConfig) else [found]
    if not all(isinstance(key, str) and key for key in keys):
        raise UserError(
            f"objective: found {found!r}, allowed: null, a key of summary.json such as energy_j.total, or a list"
        )
    return tuple(keys)


def objectives(summary: Mapping[str, Any], keys: Objective) -> float | tuple[float, ...] | None:
    """What a sweeper is told of a run: a number for one key, a tuple for several, None for none.

    Args:
        summary: of the run.
        keys: dotted keys of numbers in it.

    Raises:
        UserError: there is no number under a key.
    """
    numbers = {
        key: float(value)
        for key, value in flatten(summary).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    for key in keys:
        if key not in numbers:
            raise UserError(f"objective: found {key!r}, allowed: {', '.join(numbers)}")
    values = tuple(numbers[key] for key in keys)
    return values[0] if len(values) == 1 else values or None
