"""Policies for energy-efficient LLM serving: what a controller sees, what it decides, how it predicts.

The policies know no simulator, no server and no GPU driver: the same objects run in `sim` and in `live`. To run and
compare from Python: `simulate`, `load`, `compare` (`voltana.api`), which are imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

from voltana.compiled import obey as _obey

if TYPE_CHECKING:
    from voltana.api import Record, Records, UserError, compare, load, simulate

__all__ = ["Record", "Records", "UserError", "compare", "load", "simulate"]
__version__ = "0.1.0"
_obey()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from voltana import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
