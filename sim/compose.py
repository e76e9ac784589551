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


OmegaConf.register_new_resolver("times", lambda a, b: round(float(a) * float(b), 3), replace=True)
OmegaConf.register_new_resolver(
    "nearest", lambda at, table: table[min(table, key=lambda key: abs(float(key) - float(at)))], replace=True
)


def compose_sim(*overrides: str) -> dict[str, Any]:
    """The resolved configuration of voltana-sim with overrides, for use from Python."""
    import hydra_plugins.voltana  # noqa: F401 - makes its launcher known to the configuration
    from hydra import compose, initialize_config_module

    with initialize_config_module("conf", version_base="1.3"):
        return resolve(compose("sim", overrides=list(overrides)))
