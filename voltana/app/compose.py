"""From a section of the configuration to the object that it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def instantiate(part: Mapping[str, Any]) -> Any:
    """The object of a section that names its class by `_target_`; its `name` is for people.

    Raises:
        InstantiationException: the class refused its arguments; the console scripts tell why in one line.
    """
    from hydra.utils import instantiate

    return instantiate({key: value for key, value in part.items() if key != "name"})
