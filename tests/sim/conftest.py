"""Runs of the simulator for tests: configurations composed as the commands compose them, records read back."""

from collections.abc import Callable, Iterator
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


@pytest.fixture(scope="session", name="values")
def _values() -> Callable[..., dict[str, Any]]:
    return compose_sim


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., RunRecord]:
    """Simulate a small run with overrides and read its record."""
    count = iter(range(1000))

    def go(*overrides: str) -> RunRecord:
        folder = tmp_path / str(next(count))
        simulate(compose_sim(*SMALL, *overrides), folder)
        return RunRecord(folder)

    return go
