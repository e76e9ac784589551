"""Composed configurations as plain values, and what their interpolations may use."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from voltana.errors import UserError

NOT_OF_THE_RUN = ("hydra", "overwrite", "replay")
"""Keys that say how to go about a run, or where its configuration is from: they are not in its record."""


def resolve(config: DictConfig) -> dict[str, Any]:
    """The configuration of a run as plain values, without `NOT_OF_THE_RUN`."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key not in NOT_OF_THE_RUN])
    values = OmegaConf.to_container(own, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def overwrite_of(config: DictConfig) -> bool:
    """The key `overwrite`.

    Raises:
        UserError: it is neither true nor false.
    """
    found = config.get("overwrite", False)
    if not isinstance(found, bool):
        raise UserError(f"overwrite: found {found!r}, allowed: true or false")
    return found


OmegaConf.register_new_resolver(
    "nearest", lambda at, table: table[min(table, key=lambda key: abs(float(key) - float(at)))], replace=True
)
OmegaConf.register_new_resolver("at", lambda values, index: values[int(index)], replace=True)
