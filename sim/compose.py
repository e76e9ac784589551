"""Configurations as plain values."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf


def resolve(config: DictConfig) -> dict[str, Any]:
    """The configuration of a run as plain values, without Hydra's own."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    values = OmegaConf.to_container(own, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
