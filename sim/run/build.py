"""From a checked configuration to the parts of a run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property, partial
from pathlib import Path

from voltana.app.bundle import Offers, build_bundle, build_planner
from voltana.app.serving import DecodeLimits
from voltana.errors import UserError
from voltana.prediction.cache import AUTO, load_predictor, predictor_file
from voltana.prediction.ecopred import EcoPred
from voltana.sim.plant import Plant
from voltana.sim.plant.build import Plants, build_plants, decode_limits, hosts
from voltana.sim.run.config import SimConfig
from voltana.sim.serving.noise import latency_noise, length_predictor
from voltana.sim.serving.profiling import measured
from voltana.sim.serving.spec import ClusterSpec, Drift, Planning
from voltana.sim.serving.truth import Truth
from voltana.state import PHASES, Phase
from voltana.traces import RequestStream
from voltana.traces.build import build_requests


class RunBuilder:
    """Builds the parts of one run, each at most once.

    Args:
        config: the checked configuration.
    """

    def __init__(self, config: SimConfig) -> None:
        self._config = config
        self.plants = build_plants(config)
        model = self.plants.decode.model
        if config.bound in (True, "both") and (model.experts or model.window):
            raise UserError(
                f"bound: found {config.bound}, allowed: false, stationary for mixtures of experts and sliding windows"
            )
        self.slo = config.slo.objectives
        self.predictor_files: dict[str, Path] = {}
        """What the predictors were read from that policies asked for, by their names in the provenance."""

    def requests(self) -> RequestStream:
        """The request stream."""
        return build_requests(self._config)

    def cluster(self) -> ClusterSpec:
        """The cluster with its policies."""
        config, serving = self._config, self._config.serving
        bundle = build_bundle(config, self.offers("prefill"), self.offers("decode"))
        self._check_sensors([*bundle.prefill_controllers, *bundle.decode_controllers])
        return ClusterSpec(
            plants=self.plants,
            prefill_limits=serving.prefill,
            decode_limits=self._decode_limits,
            link=config.cluster.link,
            actuation=config.actuation,
            hosts=hosts(config, self.plants),
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
            planner=self._planner(),
        )

    @cached_property
    def _decode_limits(self) -> DecodeLimits:
        return decode_limits(self._config.serving.decode, self.plants.decode)

    def offers(self, phase: Phase) -> Offers:
        """What policies of a phase may ask for."""
        gpu, capacity = self.plants.of(phase).gpu, self._decode_limits.kv_tokens
        return Offers(
            clocks_mhz=gpu.clocks,
            power_limits_w=lambda: (gpu.power_limit_min_w, gpu.power_limit_w),
            kv_capacity_tokens=lambda: capacity,
            predictor=partial(self._predictor, phase),
            truth=Truth,
        )

    def _predictor(self, phase: Phase) -> EcoPred:
        """The predictor of a phase: decode's where both are alike."""
        alike = self.plants.prefill is self.plants.decode
        return self._fitted("decode" if alike else phase)

    @cache  # noqa: B019 - a builder lives no longer than its run
    def _fitted(self, phase: Phase) -> EcoPred:
        source, side, plant = self._config.predictor, self._config.side(phase), self.plants.of(phase)
        if source != AUTO and self.plants.prefill is not self.plants.decode:
            raise UserError(f"predictor: found {source}, allowed: auto, as the GPUs of prefill and decode differ")
        taken = measured(plant, side.profile)
        predictor = load_predictor(source, side, taken)
        name = "predictor" if phase == "decode" else "predictor.prefill"
        self.predictor_files[name] = predictor_file(source, side, taken)
        return predictor

    def _check_sensors(self, controllers: Sequence[object]) -> None:
        """Refuse controllers that read power from sensors that differ, as one sensor stands for all."""
        sensor = self._config.sensor
        windows = {self.plants.of(phase).gpu.sensor_window_s or sensor.window_s for phase in PHASES}
        if (
            sensor.name == "nvml"
            and len(windows) > 1
            and any(getattr(each, "reads_power", False) for each in controllers)
        ):
            raise UserError(
                f"cluster: found GPUs with sensor_window_s {' and '.join(map(str, sorted(windows)))} under a policy "
                "that reads power, allowed: GPUs with equal sensors, sensor=ideal, sensor=nvml_average"
            )

    def _planner(self) -> Planning | None:
        planner = self._config.planner
        if planner.policy is None:
            return None
        if self.plants.prefill is not self.plants.decode:
            raise UserError(f"planner: found {planner.name}, allowed: fixed, as the GPUs of prefill and decode differ")
        policy = build_planner(self._config, planner.name, planner.policy, self.offers("decode"))
        return Planning(policy, planner.period_s, planner.sleep)

    def _drift(self) -> Drift | None:
        drift = self._config.drift
        if drift.at_s is None:
            return None

        def drifted(plant: Plant) -> Plant:
            gpu, engine = plant.gpu, plant.engine
            slow = engine.but(
                prefill_slowdown=engine.prefill_slowdown * drift.slowdown,
                decode_slowdown=engine.decode_slowdown * drift.slowdown,
            )
            return Plant(gpu.but(base_w=gpu.base_w + drift.base_w), plant.model, slow)

        prefill = drifted(self.plants.prefill)
        alike = self.plants.prefill is self.plants.decode
        return Drift(drift.at_s, Plants(prefill, prefill if alike else drifted(self.plants.decode)))
