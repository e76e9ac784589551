"""From a checked configuration to the plant, and what it sets bounds to."""

from __future__ import annotations

import json
from functools import lru_cache

from voltana.app.config import PlantConfig, RunConfig
from voltana.errors import UserError
from voltana.sim.plant.engine import EngineSpec
from voltana.sim.plant.gpu import GpuSpec
from voltana.sim.plant.model import ModelSpec
from voltana.sim.plant.plant import Plant


def build_plant(config: PlantConfig) -> Plant:
    """The physics of one instance; the same object for the same configuration, with what it has worked out so far.

    Raises:
        UserError: a bad key or value in `gpu`, `model` or `serving.engine`, or weights that leave no room for KV.
    """
    return _plant(json.dumps([config.gpu, config.model, config.serving.engine], sort_keys=True))


@lru_cache(maxsize=4)
def _plant(sections: str) -> Plant:
    gpu, model, engine = json.loads(sections)
    return Plant(GpuSpec.from_mapping(gpu), ModelSpec.from_mapping(model), EngineSpec.from_mapping(engine))


def kv_tokens(config: PlantConfig, plant: Plant) -> int:
    """KV tokens that a decode instance holds.

    Raises:
        UserError: `serving.decode.kv_tokens` is more than GPU memory leaves.
    """
    asked, room = config.serving.decode.kv_tokens, plant.kv_capacity_tokens
    if asked == "auto":
        return room
    if asked > room:
        raise UserError(f"serving.decode.kv_tokens: found {asked}, allowed: up to {room}, what GPU memory leaves")
    return asked


def gpus_per_host(config: RunConfig, plant: Plant) -> int:
    """GPUs of a host.

    Raises:
        UserError: `cluster.gpus_per_host` would split an instance.
    """
    found, tp = config.cluster.gpus_per_host, plant.model.tp
    if found % tp:
        raise UserError(f"cluster.gpus_per_host: found {found}, allowed: a multiple of model.tp = {tp}")
    return found
