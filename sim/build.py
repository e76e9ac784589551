"""From a checked configuration to the parts of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from sim.config import PlantConfig, SimConfig
from sim.limits import Actuation, DecodeLimits, LinkSpec, PrefillLimits
from sim.noise import latency_noise, length_predictor
from sim.plant import EngineSpec, GpuSpec, ModelSpec, Plant
from sim.predictor import load_predictor
from sim.sensor import SensorSpec
from sim.spec import ClusterSpec, Drift
from sim.truth import Truth
from traces import Request, request_stream
from voltana.build import build_policy
from voltana.ecopred import EcoPred
from voltana.errors import UserError
from voltana.state import FrequencyController, Phase, Router, Slo


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


class RunBuilder:
    """Builds the parts of one run, each at most once.

    Args:
        config: the checked configuration.
    """

    def __init__(self, config: SimConfig) -> None:
        self._config = config
        self.plant = build_plant(config)
        self.slo = Slo(config.slo.ttft_ms * config.slo.scale / 1e3, config.slo.itl_ms * config.slo.scale / 1e3)
        self._seeds = _seeds(config.seed)

    @cached_property
    def _predictor(self) -> EcoPred:
        return load_predictor(self._config.predictor, self._config, self.plant)

    def requests(self) -> Iterator[Request]:
        """The request stream."""
        config = self._config
        return request_stream(
            _instantiate(config.trace),
            _instantiate(config.arrival),
            duration_s=config.duration_s,
            requests=config.requests,
            seed=config.seed,
        )

    def cluster(self) -> ClusterSpec:
        """The cluster with its policies."""
        config, policy = self._config, self._config.policy
        cluster, serving = config.cluster, config.serving
        return ClusterSpec(
            plant=self.plant,
            prefill_limits=PrefillLimits(**serving.prefill.model_dump()),
            decode_limits=DecodeLimits(serving.decode.max_requests, self._kv_tokens(), serving.decode.reserve_tokens),
            link=LinkSpec(**cluster.link.model_dump()),
            actuation=Actuation(config.actuation.block_s, config.actuation.settle_s),
            gpus_per_host=self._gpus_per_host(),
            prefill_controllers=self._controllers("prefill", policy.prefill_controller, cluster.prefill_instances),
            decode_controllers=self._controllers("decode", policy.decode_controller, cluster.decode_instances),
            prefill_router=self._router("prefill", policy.prefill_router),
            decode_router=self._router("decode", policy.decode_router),
            noise=lambda name: latency_noise(config.seed, name, serving.latency_noise),
            sensor=SensorSpec(config.sensor.period_s, config.sensor.window_s, config.sensor.error, config.seed),
            expected_tokens=length_predictor(config.seed, serving.length_error),
            drift=self._drift(),
        )

    def _drift(self) -> Drift | None:
        drift, gpu, engine = self._config.drift, self.plant.gpu, self.plant.engine
        if drift.at_s is None:
            return None
        slow = replace(
            engine,
            prefill_slowdown=engine.prefill_slowdown * drift.slowdown,
            decode_slowdown=engine.decode_slowdown * drift.slowdown,
        )
        return Drift(drift.at_s, Plant(replace(gpu, base_w=gpu.base_w + drift.base_w), self.plant.model, slow))

    def _kv_tokens(self) -> int:
        asked, room = self._config.serving.decode.kv_tokens, self.plant.kv_capacity_tokens
        if asked == "auto":
            return room
        if asked > room:
            raise UserError(f"serving.decode.kv_tokens: found {asked}, allowed: up to {room}, what GPU memory leaves")
        return asked

    def _gpus_per_host(self) -> int:
        found, tp = self._config.cluster.gpus_per_host, self.plant.model.tp
        if found % tp:
            raise UserError(f"cluster.gpus_per_host: found {found}, allowed: a multiple of model.tp = {tp}")
        return found

    def _controllers(self, phase: Phase, part: Mapping[str, Any], count: int) -> list[FrequencyController]:
        return [self._policy(f"policy.{phase}_controller", part, phase) for _ in range(count)]

    def _router(self, phase: Phase, part: Mapping[str, Any]) -> Router:
        router: Router = self._policy(f"policy.{phase}_router", part, phase)
        return router

    def _policy(self, key: str, part: Mapping[str, Any], phase: Phase) -> Any:
        return build_policy(
            key,
            part,
            {
                "phase": lambda: phase,
                "slo": lambda: self.slo,
                "clocks_mhz": self.plant.gpu.clocks,
                "predictor": lambda: self._predictor,
                "kv_capacity_tokens": self._kv_tokens,
                "power_limits_w": lambda: (self.plant.gpu.power_limit_min_w, self.plant.gpu.power_limit_w),
                "seed": lambda: next(self._seeds),
                "truth": Truth,
            },
        )


def _instantiate(part: Mapping[str, Any]) -> Any:
    from hydra.utils import instantiate

    return instantiate({key: value for key, value in part.items() if key != "name"})


def _seeds(seed: int) -> Iterator[int]:
    """Seeds for policies, independent of those of the workload."""
    sequence = np.random.SeedSequence([seed, 0x9E3779B9])
    while True:
        yield int(sequence.spawn(1)[0].generate_state(1)[0])
