"""Configurations of simulated runs as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from voltana.app.resolve import resolve

if TYPE_CHECKING:
    from omegaconf import DictConfig


def compose_sim(*overrides: str) -> dict[str, Any]:
    """The resolved configuration of voltana-sim with overrides, for use from Python."""
    import hydra_plugins.voltana  # noqa: F401 - makes its launcher known to the configuration
    from hydra import compose, initialize_config_module

    with initialize_config_module("voltana.conf", version_base="1.3"):
        return run_values(compose("sim", overrides=list(overrides)), overrides)


def run_values(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run as its record has it.

    Args:
        config: as Hydra composed it.
        overrides: what it was composed with beside conf/sim.yaml.

    Raises:
        UserError: `replay` is set and its record cannot be simulated again.
    """
    if config.replay is not None:
        from voltana.sim.run.replay import replay_config

        config = replay_config(config, overrides)
    return resolve(config)
