"""Whether both engines give the same record of a policy, and each the same again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from voltana.errors import PolicyError
from voltana.record import RunRecord
from voltana.sim.run.simulate import simulate
from voltana.sim.studies.check.finding import Broken

TOLERANCE = 1e-9
"""Of numbers, relative, or absolute below one."""
OWN = ("wall_s", "simulated_requests_per_s")
"""What a summary says of the simulation itself."""


def same_records(values: Mapping[str, Any], folder: Path) -> str:
    """Run a configuration on both engines and once more on the fast one.

    Args:
        values: the resolved configuration.
        folder: for the records.

    Raises:
        Broken: the records differ.
        PolicyError: a policy raised or answered what is not allowed.
    """
    records = {}
    for name in ("reference", "fast", "fast again"):
        try:
            simulate({**values, "engine": name.partition(" ")[0]}, folder / name)
        except PolicyError as error:
            raise PolicyError(str(error).replace(str(folder / name), name), error.traceback_text) from error
        records[name] = RunRecord(folder / name)
    for one, two in (("fast", "fast again"), ("reference", "fast")):
        _compare(records[one], records[two], f"{one} has", f"{two} has")
    return f"{len(records['fast'].requests())} requests, and the same again"


def _compare(one: RunRecord, two: RunRecord, first: str, second: str) -> None:
    for table in ("requests", "instances"):
        left, right = getattr(one, table)(), getattr(two, table)()
        if len(left) != len(right):
            raise Broken(f"{table}.parquet: {first} {len(left)} rows, {second} {len(right)}")
        for name in left:
            _compare_column(f"{table}.parquet: {name}", left[name], right[name], first, second)
    numbers = [_flat({k: v for k, v in each.summary.items() if k not in OWN}) for each in (one, two)]
    for key, value in numbers[0].items():
        if not _close(value, numbers[1].get(key)):
            raise Broken(f"summary.json: {key}: {first} {value}, {second} {numbers[1].get(key)}")


def _compare_column(what: str, left: pd.Series[Any], right: pd.Series[Any], first: str, second: str) -> None:
    for row, (a, b) in enumerate(zip(left, right, strict=True)):
        if not _close(a, b):
            raise Broken(f"{what} of row {row}: {first} {a}, {second} {b}")


def _flat(numbers: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in numbers.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _close(a: object, b: object) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE) or (math.isnan(a) and math.isnan(b))
    return a == b or (a is None and b is None)
