"""What Hydra does to loggers in other tests of the same process is undone: it disables those that exist."""

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _loggers_speak(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("voltana.live") and isinstance(logger, logging.Logger):
            monkeypatch.setattr(logger, "disabled", False)
    yield
