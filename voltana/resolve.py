"""Composed configurations as plain values, and what their interpolations may use."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf


def resolve(config: DictConfig) -> dict[str, Any]:
    """The configuration of a run as plain values, without Hydra's own."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    values = OmegaConf.to_container(own, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


OmegaConf.register_new_resolver("times", lambda a, b: round(float(a) * float(b), 3), replace=True)
OmegaConf.register_new_resolver(
    "nearest", lambda at, table: table[min(table, key=lambda key: abs(float(key) - float(at)))], replace=True
)
