"""The policies of a run, built alike in every world: the same seeds, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voltana.app.config import RunConfig
from voltana.errors import PolicyError
from voltana.policies.asked import AskedController, AskedRouter, Who
from voltana.policies.build import build_policy
from voltana.prediction.ecopred import EcoPred
from voltana.state import FrequencyController, Phase, Router


@dataclass(frozen=True)
class Offers:
    """What a world has for policies; see `voltana.policies.build`."""

    clocks_mhz: Callable[[], Sequence[int]]
    power_limits_w: Callable[[], tuple[float, float]]
    kv_capacity_tokens: Callable[[], int]
    predictor: Callable[[], EcoPred]
    """Called only if a policy asks."""
    truth: Callable[[], Any] | None = None
    """Of simulators alone."""


@dataclass(frozen=True)
class Bundle:
    """A controller per instance, a router per phase."""

    prefill_controllers: list[FrequencyController]
    decode_controllers: list[FrequencyController]
    prefill_router: Router
    decode_router: Router


def build_bundle(config: RunConfig, offers: Offers) -> Bundle:
    """Build all policies of a run; what they answer is checked (`voltana.policies.asked`).

    Raises:
        PolicyError, UserError: see `voltana.policies.build.build_policy`.
    """
    seeds, cluster, policy = _seeds(config.seed), config.cluster, config.policy

    def clocks_mhz() -> tuple[int, ...]:
        return tuple(offers.clocks_mhz())  # nothing a policy could change for the others

    def build(key: str, part: Mapping[str, Any], phase: Phase) -> Any:
        offered: dict[str, Callable[[], Any]] = {
            "phase": lambda: phase,
            "slo": lambda: config.slo.objectives,
            "clocks_mhz": clocks_mhz,
            "predictor": offers.predictor,
            "kv_capacity_tokens": offers.kv_capacity_tokens,
            "power_limits_w": offers.power_limits_w,
            "seed": lambda: next(seeds),
        }
        if offers.truth is not None:
            offered["truth"] = offers.truth
        with PolicyError.of(f"policy {policy.name}"):
            return build_policy(f"policy.{key}", part, offered)

    def who(key: str, part: Mapping[str, Any], instance: str = "") -> Who:
        return Who(policy.name, key, str(part.get("_target_")), instance)

    def controllers(phase: Phase, part: Mapping[str, Any], count: int) -> list[FrequencyController]:
        key = f"{phase}_controller"
        return [
            AskedController(
                who(key, part, f"{phase}-{index}"), build(key, part, phase), clocks_mhz(), offers.power_limits_w
            )
            for index in range(count)
        ]

    def router(phase: Phase, part: Mapping[str, Any]) -> Router:
        key = f"{phase}_router"
        return AskedRouter(who(key, part), build(key, part, phase))

    return Bundle(
        prefill_controllers=controllers("prefill", policy.prefill_controller, cluster.prefill_instances),
        decode_controllers=controllers("decode", policy.decode_controller, cluster.decode_instances),
        prefill_router=router("prefill", policy.prefill_router),
        decode_router=router("decode", policy.decode_router),
    )


def _seeds(seed: int) -> Iterator[int]:
    """Seeds for policies, independent of those of the workload."""
    sequence = np.random.SeedSequence([seed, 0x9E3779B9])
    while True:
        yield int(sequence.spawn(1)[0].generate_state(1)[0])
