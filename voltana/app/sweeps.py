"""Sweeps as their runs see them, under whichever launcher."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from voltana.errors import UserError
from voltana.files import parse_yaml


def this_sweep() -> dict[str, Any] | None:
    """Which sweep the present Hydra job belongs to; None for a single run."""
    import yaml
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        return None
    told = Path(str(hydra.sweep.dir)) / "multirun.yaml"  # Hydra's sweeper leaves it there before the first job
    try:
        return sweep_of(parse_yaml(told.read_text())["hydra"]["overrides"])
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return None


def sweep_of(overrides: Any) -> dict[str, Any]:
    """A sweep in its runs' provenance: one that is started again to go on is the same.

    Args:
        overrides: `hydra.overrides` of the sweep itself, as they were typed.
    """
    told = [word for word in overrides["task"] if not word.startswith("overwrite=")]
    told += [word for word in overrides["hydra"] if word.startswith("hydra.sweeper.params")]
    return {"id": hashlib.sha256("\0".join(told).encode()).hexdigest()[:12], "overrides": told}


def refuse_experiment_alone() -> None:
    """Refuse a preset that sweeps where a single run was asked for.

    Raises:
        UserError: it is so.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    chosen = hydra.runtime.choices.get("experiment")
    if chosen is not None and hydra.mode is not RunMode.MULTIRUN and hydra.sweeper.get("params"):
        raise UserError(f"experiment: found {chosen} for a single run, allowed: with -m, as it is a sweep")
