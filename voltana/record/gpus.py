"""The GPUs of a configuration, whose phases may have some of their own (`cluster.prefill`, `cluster.decode`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from voltana.state import PHASES, Phase


def side_of(config: Mapping[str, Any], phase: Phase) -> Mapping[str, Any]:
    """What a phase has of its own; empty in records that have no such section."""
    cluster = config.get("cluster")
    side = cluster.get(phase) if isinstance(cluster, Mapping) else None
    return side if isinstance(side, Mapping) else {}


def gpu_of(config: Mapping[str, Any], phase: Phase) -> dict[str, Any]:
    """The section `gpu` that holds for a phase; empty where there is none."""
    side = side_of(config, phase)
    gpu = side.get("gpu") or config.get("gpu")
    limit_w = side.get("power_limit_w")
    return {**(gpu if isinstance(gpu, Mapping) else {}), **({} if limit_w is None else {"power_limit_w": limit_w})}


def about_gpus(config: Mapping[str, Any]) -> dict[str, Any]:
    """The GPUs as summaries and tables tell them.

    Returns:
        `name`, of both where prefill and decode differ; `power`, "scaled" if that of any is, else "measured"; of two,
        `scaled`: which are. Empty where the configuration names none.
    """
    gpus = {gpu["name"]: gpu.get("power") for gpu in (gpu_of(config, phase) for phase in PHASES) if "name" in gpu}
    if not gpus:
        return {}
    scaled = [name for name, power in gpus.items() if power == "scaled"]
    about = {"name": " + ".join(map(str, gpus)), "power": "scaled" if scaled else "measured"}
    return {**about, "scaled": scaled} if scaled and len(gpus) > 1 else about
