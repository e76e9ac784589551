"""The policies of a run, built alike in every world: the same seeds, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from voltana.build import build_policy
from voltana.config import RunConfig
from voltana.ecopred import EcoPred
from voltana.state import FrequencyController, Phase, Router


@dataclass(frozen=True)
class Offers:
    """What a world has for policies; see `voltana.build`."""

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
    """Build all policies of a run.

    Raises:
        UserError: see `voltana.build.build_policy`.
    """
    seeds, cluster, policy = _seeds(config.seed), config.cluster, config.policy

    def build(key: str, part: Mapping[str, Any], phase: Phase) -> Any:
        offered: dict[str, Callable[[], Any]] = {
            "phase": lambda: phase,
            "slo": lambda: config.slo.objectives,
            "clocks_mhz": offers.clocks_mhz,
            "predictor": offers.predictor,
            "kv_capacity_tokens": offers.kv_capacity_tokens,
            "power_limits_w": offers.power_limits_w,
            "seed": lambda: next(seeds),
        }
        if offers.truth is not None:
            offered["truth"] = offers.truth
        return build_policy(key, part, offered)

    def controllers(phase: Phase, part: Mapping[str, Any], count: int) -> list[FrequencyController]:
        return [build(f"policy.{phase}_controller", part, phase) for _ in range(count)]

    return Bundle(
        prefill_controllers=controllers("prefill", policy.prefill_controller, cluster.prefill_instances),
        decode_controllers=controllers("decode", policy.decode_controller, cluster.decode_instances),
        prefill_router=build("policy.prefill_router", policy.prefill_router, "prefill"),
        decode_router=build("policy.decode_router", policy.decode_router, "decode"),
    )


def _seeds(seed: int) -> Iterator[int]:
    """Seeds for policies, independent of those of the workload."""
    sequence = np.random.SeedSequence([seed, 0x9E3779B9])
    while True:
        yield int(sequence.spawn(1)[0].generate_state(1)[0])
