"""The console scripts, and `python -m voltana MODULE` for processes that they start: our own packages come first.

A policy of one's own is found by Python's path (`PYTHONPATH=.`), so that the user's folder comes before ours. A file
there named like one of our packages (`sim.py`, `traces.py`, `conf/`) must not take its place. Importing this module
sees to it: in the process of a script, and in the workers of a sweep, which import the script anew.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from voltana import BESIDE


class _OursFirst(MetaPathFinder):
    """Finds our packages where this one is, whatever Python's path says; all else is left to others."""

    def __init__(self) -> None:
        self._beside = [str(Path(__file__).parents[1])]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As the base class says."""
        return PathFinder.find_spec(fullname, self._beside, target) if fullname in BESIDE else None


sys.meta_path.insert(0, _OursFirst())


def module_command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of ours as a process of its own."""
    return [sys.executable, "-m", "voltana", module, *arguments]


def _script(module: str, function: str) -> Callable[[], object]:
    """A console script; what it runs is named and not imported, as this package knows none of those."""

    def run() -> object:
        return getattr(import_module(module), function)()

    return run


sim = _script("sim.commands", "simulate")
check = _script("sim.check.command", "main")
profile = _script("sim.commands", "profile")
fit = _script("analysis.commands", "fit")
compare = _script("analysis.commands", "compare")
plot = _script("analysis.commands", "plot")
live = _script("live.harness.command", "main")
router = _script("live.router.command", "main")
clocks = _script("live.clocks.command", "main")
