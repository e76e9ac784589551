"""From a checked configuration to the plant, and what it sets bounds to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from voltana.app.config import ClusterRun, PlantConfig, RunConfig
from voltana.app.serving import DecodeLimits, DecodeServing, Side
from voltana.errors import UserError
from voltana.section import parse
from voltana.sim.plant.engine import EngineSpec
from voltana.sim.plant.gpu import GpuSpec
from voltana.sim.plant.model import ModelSpec
from voltana.sim.plant.plant import Plant
from voltana.state import PHASES, Phase


class Plants(NamedTuple):
    """The physics of an instance of each phase; the same object where they are alike."""

    prefill: Plant
    decode: Plant

    def of(self, phase: Phase) -> Plant:
        """That of a phase."""
        return self.prefill if phase == "prefill" else self.decode


def build_plants(config: ClusterRun) -> Plants:
    """The physics of a run.

    Raises:
        UserError: as `build_plant`; it names the phase, if that has sections of its own.
    """
    return Plants(*(_of_phase(config, phase) for phase in PHASES))


def _of_phase(config: ClusterRun, phase: Phase) -> Plant:
    try:
        return build_plant(config.side(phase))
    except UserError as error:
        raise UserError(f"cluster.{phase}: {error}" if config.cluster.side(phase) != Side() else str(error)) from error


def build_plant(config: PlantConfig) -> Plant:
    """The physics of one instance; the same object for the same configuration, with what it has worked out so far.

    Raises:
        UserError: a bad key or value in `gpu`, `model` or `serving.engine`, or weights that leave no room for KV.
    """
    return _remembered(json.dumps([config.gpu, config.model, config.serving.engine], sort_keys=True))


@lru_cache(maxsize=8)
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
    return _hold_whole(config.cluster.gpus_per_host, "model.tp", plant.model.tp)


def hosts(config: RunConfig, plants: Plants) -> list[int]:
    """The host of every instance's GPUs, prefill first: filled one after another, each with GPUs of one kind.

    Raises:
        UserError: as `gpus_per_host`.
    """
    size, taken, host = config.cluster.gpus_per_host, 0, 0
    counts, places = (config.cluster.prefill_instances, config.cluster.decode_instances), []
    for phase, count in zip(PHASES, counts, strict=True):
        own_tp = config.cluster.side(phase).tp is not None
        tp = plants.of(phase).model.tp
        _hold_whole(size, f"cluster.{phase}.tp" if own_tp else "model.tp", tp)
        other_kind = phase == "decode" and plants.decode.gpu.name != plants.prefill.gpu.name
        for number in range(count):
            if taken + tp > size or (other_kind and not number):
                taken, host = 0, host + 1
            places.append(host)
            taken += tp
    return places


def _hold_whole(size: int, key: str, tp: int) -> int:
    if size % tp:
        raise UserError(f"cluster.gpus_per_host: found {size}, allowed: a multiple of {key} = {tp}")
    return size
