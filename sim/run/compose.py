"""Configurations as plain values."""

from __future__ import annotations

from typing import Any

from voltana.app.resolve import resolve


def compose_sim(*overrides: str) -> dict[str, Any]:
    """The resolved configuration of voltana-sim with overrides, for use from Python."""
    import hydra_plugins.voltana  # noqa: F401 - makes its launcher known to the configuration
    from hydra import compose, initialize_config_module

    with initialize_config_module("voltana.conf", version_base="1.3"):
        return resolve(compose("sim", overrides=list(overrides)))
