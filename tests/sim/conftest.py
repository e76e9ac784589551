"""Runs of the simulator for tests: configurations composed as the commands compose them, records read back."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from sim.compose import resolve
from sim.run import simulate
from voltana.record import RunRecord

SMALL = ("duration_s=6", "rps=20", "requests=80")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def values(*overrides: str) -> dict[str, Any]:
    """The resolved configuration of voltana-sim with overrides."""
    import hydra_plugins.voltana  # noqa: F401

    with initialize_config_module("conf", version_base="1.3"):
        return resolve(compose("sim", overrides=list(overrides)))


@pytest.fixture(scope="session", name="values")
def _values() -> Callable[..., dict[str, Any]]:
    return values


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., RunRecord]:
    """Simulate a small run with overrides and read its record."""
    count = iter(range(1000))

    def go(*overrides: str) -> RunRecord:
        folder = tmp_path / str(next(count))
        simulate(values(*SMALL, *overrides), folder)
        return RunRecord(folder)

    return go
