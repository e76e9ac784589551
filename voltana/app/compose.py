"""From a section of the configuration to the object that it names."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from voltana.errors import UserError


def instantiate(part: Mapping[str, Any]) -> Any:
    """The object of a section that names its class by `_target_`, made of plain values; its `name` is for people.

    Raises:
        UserError: the class refused its arguments.
        InstantiationException: so it did, or there is no such class; the console scripts tell why in one line.
    """
    values = {key: value for key, value in part.items() if key != "name"}
    try:
        return _made(**values)
    except UserError:
        raise
    except Exception:
        from hydra.utils import instantiate  # not for what is plain: it takes a sixth of a second to import

        return instantiate({"_convert_": "all"} | values)


def _made(_target_: str, **arguments: Any) -> Any:
    """The object of a section without sections or settings of Hydra's within it."""
    if any(key.startswith("_") or isinstance(value, Mapping) for key, value in arguments.items()):
        raise ValueError
    module, _, name = _target_.rpartition(".")
    return getattr(import_module(module), name)(**arguments)
