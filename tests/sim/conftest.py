"""Runs of the simulator for tests: configurations composed as the commands compose them, records read back."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from voltana.record import RunRecord
from voltana.sim.run.compose import compose_sim
from voltana.sim.run.simulate import simulate

SMALL = ("duration_s=6", "rps=20", "requests=80")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(cache: Path) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield


@cache
def _composed(*overrides: str) -> dict[str, Any]:
    return compose_sim(*overrides)


def composed(*overrides: str) -> dict[str, Any]:
    """As `compose_sim`, which takes three times as long as a small run: once for both engines."""
    engines = [word for word in overrides if word.startswith("engine=")]
    values = deepcopy(_composed(*(word for word in overrides if word not in engines)))
    return values | {"engine": engines[-1].partition("=")[2]} if engines else values


@pytest.fixture(scope="session", name="values")
def _values() -> Callable[..., dict[str, Any]]:
    return composed


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., RunRecord]:
    """Simulate a small run with overrides and read its record."""
    count = iter(range(1000))

    def go(*overrides: str) -> RunRecord:
        folder = tmp_path / str(next(count))
        simulate(composed(*SMALL, *overrides), folder)
        return RunRecord(folder)

    return go
