"""Configurations of simulated runs as plain values."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voltana import conf
from voltana.app.kept import KeptCompositions
from voltana.errors import UserError
from voltana.state import PHASES, Phase

if TYPE_CHECKING:
    from omegaconf import DictConfig

SHIPPED = Path(conf.__path__[0])


def compose_sim(*overrides: str, folders: Sequence[Path] = ()) -> dict[str, Any]:
    """The resolved configuration of voltana-sim with overrides, for use from Python.

    Args:
        overrides: as they are typed.
        folders: of configuration files beside the shipped ones, as `--config-dir` names them.
    """
    kept = KeptCompositions(SHIPPED, *folders)
    found = kept.find("values", *overrides)
    if found is None:
        found, again = _composed(overrides, folders)
        if again:
            kept.keep(found, "values", *overrides)
            kept.save()
    return found


def _composed(overrides: Sequence[str], folders: Sequence[Path]) -> tuple[dict[str, Any], bool]:
    import hydra_plugins.voltana  # noqa: F401 - makes its launcher known to the configuration
    from hydra import compose, initialize_config_module

    from voltana.app import counts
    from voltana.app.resolve import repeats

    counts.register()
    paths = ",".join(json.dumps(f"file://{folder.resolve()}") for folder in folders)
    with initialize_config_module("voltana.conf", version_base="1.3"):
        config = compose("sim", overrides=[*([f"hydra.searchpath=[{paths}]"] if folders else []), *overrides])
        return run_values(config, overrides), repeats(config)


def run_values(config: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of a run as its record has it.

    Args:
        config: as Hydra composed it.
        overrides: what it was composed with beside conf/sim.yaml.

    Raises:
        UserError: `replay` is set and its record cannot be simulated again.
    """
    from voltana.app.resolve import resolve

    if config.replay is not None:
        from voltana.sim.run.replay import replay_config

        config = replay_config(config, overrides)
    return resolve(config, {phase: _side(phase, name, overrides) for phase, name in named_gpus(config).items()})


def named_gpus(config: DictConfig) -> dict[Phase, str]:
    """The phases that name a GPU of their own in `cluster`."""
    from omegaconf import OmegaConf

    found = {phase: OmegaConf.select(config, f"cluster.{phase}.gpu") for phase in PHASES}
    return {phase: name for phase, name in found.items() if isinstance(name, str)}


def _side(phase: Phase, name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What goes with the GPU that a phase names: as the run would have it with `gpu=name`, by the Hydra at work."""
    from hydra import compose
    from hydra.errors import HydraException

    from voltana.app.cli import explain
    from voltana.app.resolve import resolve

    shared = [word for word in overrides if not re.match(r"[+~]*(gpu|cluster|replay|hydra)\b", word)]
    try:
        values = resolve(compose("sim", overrides=[*shared, f"gpu={name}"]))
    except HydraException as error:
        raise UserError(f"cluster.{phase}.gpu: {explain(error)}") from error
    clocks = values["profile"]["clocks_mhz"]
    return {"gpu": values["gpu"], "engine": values["serving"]["engine"], "profile_clocks_mhz": clocks}
