"""From a checked configuration to the parts of a run."""

from __future__ import annotations

from functools import cache, cached_property
from pathlib import Path

from voltana.app.bundle import Offers, build_bundle
from voltana.app.serving import DecodeLimits
from voltana.errors import UserError
from voltana.prediction.cache import load_predictor, predictor_file
from voltana.prediction.ecopred import EcoPred
from voltana.sim.plant import Plant
from voltana.sim.plant.build import build_plant, decode_limits, gpus_per_host
from voltana.sim.run.config import SimConfig
from voltana.sim.serving.noise import latency_noise, length_predictor
from voltana.sim.serving.profiling import measured
from voltana.sim.serving.spec import ClusterSpec, Drift
from voltana.sim.serving.truth import Truth
from voltana.traces import RequestStream
from voltana.traces.build import build_requests


class RunBuilder:
    """Builds the parts of one run, each at most once.

    Args:
        config: the checked configuration.
    """

    def __init__(self, config: SimConfig) -> None:
        self._config = config
        self.plant = build_plant(config)
        if config.bound in (True, "both") and (self.plant.model.experts or self.plant.model.window):
            raise UserError(
                f"bound: found {config.bound}, allowed: false, stationary for mixtures of experts and sliding windows"
            )
        self.slo = config.slo.objectives
        self.predictor_file: Path | None = None
        """What the predictor was read from, if a policy asked for one."""

    def requests(self) -> RequestStream:
        """The request stream."""
        return build_requests(self._config)

    def cluster(self) -> ClusterSpec:
        """The cluster with its policies."""
        config, serving = self._config, self._config.serving
        bundle = build_bundle(config, self.offers)
        return ClusterSpec(
            plant=self.plant,
            prefill_limits=serving.prefill,
            decode_limits=self._decode_limits,
            link=config.cluster.link,
            actuation=config.actuation,
            gpus_per_host=gpus_per_host(config, self.plant),
            prefill_controllers=bundle.prefill_controllers,
            decode_controllers=bundle.decode_controllers,
            prefill_router=bundle.prefill_router,
            decode_router=bundle.decode_router,
            noise=lambda name: latency_noise(config.seed, name, serving.latency_noise),
            sensor=config.sensor,
            seed=config.seed,
            expected_tokens=length_predictor(config.seed, serving.length_error),
            drift=self._drift(),
            front_end=config.front_end,
        )

    @cached_property
    def _decode_limits(self) -> DecodeLimits:
        return decode_limits(self._config.serving.decode, self.plant)

    @cached_property
    def offers(self) -> Offers:
        """What policies may ask for."""
        gpu, capacity = self.plant.gpu, self._decode_limits.kv_tokens
        return Offers(
            clocks_mhz=gpu.clocks,
            power_limits_w=lambda: (gpu.power_limit_min_w, gpu.power_limit_w),
            kv_capacity_tokens=lambda: capacity,
            predictor=cache(self._predictor),
            truth=Truth,
        )

    def _predictor(self) -> EcoPred:
        config, taken = self._config, measured(self.plant, self._config.profile)
        predictor = load_predictor(config.predictor, config, taken)
        self.predictor_file = predictor_file(config.predictor, config, taken)
        return predictor

    def _drift(self) -> Drift | None:
        drift, gpu, engine = self._config.drift, self.plant.gpu, self.plant.engine
        if drift.at_s is None:
            return None
        slow = engine.but(
            prefill_slowdown=engine.prefill_slowdown * drift.slowdown,
            decode_slowdown=engine.decode_slowdown * drift.slowdown,
        )
        return Drift(drift.at_s, Plant(gpu.but(base_w=gpu.base_w + drift.base_w), self.plant.model, slow))
