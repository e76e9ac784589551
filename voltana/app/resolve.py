"""Composed configurations as plain values, and what their interpolations may use."""

from __future__ import annotations

import json
import re
from typing import Any

from omegaconf import DictConfig, OmegaConf

from voltana.clock_words import in_mhz
from voltana.errors import UserError

NOT_OF_THE_RUN = ("hydra", "objective", "overwrite", "replay")
"""Keys that say how to go about a run, or where its configuration is from: they are not in its record."""


def resolve(config: DictConfig) -> dict[str, Any]:
    """The configuration of a run as plain values, without `NOT_OF_THE_RUN`, and with its clocks in MHz."""
    values = OmegaConf.to_container(without_hydra(config), resolve=True)
    assert isinstance(values, dict)
    model = values.get("model")
    if isinstance(model, dict) and "path" in model:
        from voltana.app.huggingface import from_path

        values["model"] = from_path(model)
    gpu = values.get("gpu", {})
    words = ("policy", "profile") if isinstance(gpu, dict) else ()
    return {
        str(key): in_mhz(value, gpu) if key in words else value
        for key, value in values.items()
        if key not in NOT_OF_THE_RUN
    }


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
