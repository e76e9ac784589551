"""Composed configurations as plain values, and what their interpolations may use."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from voltana.clock_words import in_mhz
from voltana.errors import UserError

NOT_OF_THE_RUN = ("hydra", "objective", "overwrite", "replay")
"""Keys that say how to go about a run, or where its configuration is from: they are not in its record."""


def resolve(config: DictConfig, sides: Mapping[str, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """The configuration of a run as plain values, without `NOT_OF_THE_RUN`, and with its clocks in MHz.

    Args:
        config: as Hydra composed it.
        sides: by phase, the values that go with the GPU it names in `cluster`.
    """
    values = OmegaConf.to_container(without_hydra(config), resolve=True)
    assert isinstance(values, dict)
    model = values.get("model")
    if isinstance(model, dict) and "path" in model:
        from voltana.app.huggingface import from_path

        values["model"] = from_path(model)
    for phase, own in (sides or {}).items():
        values["cluster"][phase].update(own)
    for key in ("planner", "policy", "profile"):
        if key in values:
            values[key] = section_in_mhz(key, values)
    return {str(key): value for key, value in values.items() if key not in NOT_OF_THE_RUN}


def section_in_mhz(section: str, values: Mapping[Any, Any]) -> Any:
    """A section of a configuration with its clocks in MHz.

    Parts of a policy go by the GPU of their phase, everything else by `gpu`.
    """
    gpu, found = values.get("gpu"), values[section]
    if not isinstance(gpu, dict) or not isinstance(found, dict):
        return found
    return {key: in_mhz({key: value}, _gpu_of(key, values, gpu))[key] for key, value in found.items()}


def _gpu_of(key: str, values: Mapping[Any, Any], shared: dict[str, Any]) -> dict[str, Any]:
    cluster, phase = values.get("cluster"), key.partition("_")[0]
    side = cluster.get(phase) if isinstance(cluster, dict) else None
    own = side.get("gpu") if isinstance(side, dict) else None
    return own if isinstance(own, dict) else shared


def without_hydra(config: DictConfig) -> DictConfig:
    """The configuration without Hydra's own section."""
    return (
        OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]) if "hydra" in config else config
    )


def repeats(config: DictConfig) -> bool:
    """Whether the values of a configuration depend on nothing beside it: no time, environment, file or other run."""
    own = without_hydra(config)
    if OmegaConf.select(own, "model.path") is not None:
        return False
    used = set(re.findall(r"\$\{\s*([\w.]+)\s*:", json.dumps(OmegaConf.to_container(own))))
    return config.get("replay") is None and used <= _RESOLVERS and not OmegaConf.missing_keys(own)


def overwrite_of(config: DictConfig) -> bool:
    """The key `overwrite`.

    Raises:
        UserError: it is neither true nor false.
    """
    found = config.get("overwrite", False)
    if not isinstance(found, bool):
        raise UserError(f"overwrite: found {found!r}, allowed: true or false")
    return found


_RESOLVERS = {"at", "nearest", "oc.select", "times"}
"""Those whose answer depends on the configuration alone."""


def _plain(number: float) -> float:
    return int(number) if number == int(number) else number


OmegaConf.register_new_resolver(
    "nearest", lambda at, table: table[min(table, key=lambda key: abs(float(key) - float(at)))], replace=True
)
OmegaConf.register_new_resolver("times", lambda share, whole: _plain(round(share * whole, 6)), replace=True)
OmegaConf.register_new_resolver("at", lambda values, index: values[int(index)], replace=True)
