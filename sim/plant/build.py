"""From a checked configuration to the plant, and what it sets bounds to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from voltana.app.config import PlantConfig, RunConfig
from voltana.app.serving import DecodeLimits, DecodeServing
from voltana.errors import UserError
from voltana.section import parse
from voltana.sim.plant.engine import EngineSpec
from voltana.sim.plant.gpu import GpuSpec
from voltana.sim.plant.model import ModelSpec
from voltana.sim.plant.plant import Plant


def build_plant(config: PlantConfig) -> Plant:
    """The physics of one instance; the same object for the same configuration, with what it has worked out so far.

    Raises:
        UserError: a bad key or value in `gpu`, `model` or `serving.engine`, or weights that leave no room for KV.
    """
    return _remembered(json.dumps([config.gpu, config.model, config.serving.engine], sort_keys=True))


@lru_cache(maxsize=4)
def _remembered(sections: str) -> Plant:
    return plant_of(*json.loads(sections))


def plant_of(gpu: Mapping[str, Any], model: Mapping[str, Any], engine: Mapping[str, Any]) -> Plant:
    """A plant of its own from the three sections.

    Raises:
        UserError: as `build_plant`.
    """
    return Plant(parse(GpuSpec, gpu, "gpu"), parse(ModelSpec, model, "model"), parse(EngineSpec, engine, "engine"))


def decode_limits(section: DecodeServing, plant: Plant, key: str = "serving.decode") -> DecodeLimits:
    """What bounds the batches of a decode instance.

    Raises:
        UserError: `kv_tokens` is more than GPU memory leaves.
    """
    asked, room = section.kv_tokens, plant.kv_capacity_tokens
    if asked != "auto" and asked > room:
        raise UserError(f"{key}.kv_tokens: found {asked}, allowed: up to {room}, what GPU memory leaves")
    return section.within(room if asked == "auto" else asked)


def gpus_per_host(config: RunConfig, plant: Plant) -> int:
    """GPUs of a host.

    Raises:
        UserError: `cluster.gpus_per_host` would split an instance.
    """
    found, tp = config.cluster.gpus_per_host, plant.model.tp
    if found % tp:
        raise UserError(f"cluster.gpus_per_host: found {found}, allowed: a multiple of model.tp = {tp}")
    return found
