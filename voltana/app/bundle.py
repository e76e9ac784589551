"""The policies of a run, built alike in every world: the same seeds, in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from voltana.app.config import RunConfig
from voltana.errors import PolicyError
from voltana.policies.asked import AskedController, AskedPlanner, AskedRouter, AskedScheduler, Who
from voltana.policies.build import build_policy
from voltana.prediction.ecopred import EcoPred
from voltana.state import FrequencyController, Phase, Planner, PrefillScheduler, Router


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
    """A controller per instance, a router per phase; a scheduler may stand in the place of prefill's."""

    prefill_controllers: list[FrequencyController]
    decode_controllers: list[FrequencyController]
    prefill_router: Router | PrefillScheduler
    decode_router: Router


def build_bundle(config: RunConfig, offers: Offers, decode: Offers | None = None) -> Bundle:
    """Build all policies of a run; what they answer is checked (`voltana.policies.asked`).

    Args:
        config: of the run.
        offers: what there is for policies.
        decode: the same for those of decode, if their GPUs are others.

    Raises:
        PolicyError, UserError: see `voltana.policies.build.build_policy`.
    """
    builder, cluster = _Builder(config, {"prefill": offers, "decode": decode or offers}), config.cluster
    return Bundle(
        prefill_controllers=builder.controllers("prefill", cluster.prefill_instances),
        decode_controllers=builder.controllers("decode", cluster.decode_instances),
        prefill_router=builder.prefill_router(),
        decode_router=builder.decode_router(),
    )


def build_planner(config: RunConfig, name: str, part: Mapping[str, Any], offers: Offers) -> Planner:
    """Build the planner of a run, which is offered what decode's router is; what it answers is checked.

    Raises:
        PolicyError, UserError: see `voltana.policies.build.build_policy`.
    """
    with PolicyError.of(f"planner {name}"):
        made = build_policy("planner.policy", part, _Builder(config, {"decode": offers}).offered("decode"))
    return AskedPlanner(Who(name, "planner", str(part.get("_target_"))), made)


class _Builder:
    """Builds the parts of one bundle, each in its turn, since some draw a seed."""

    def __init__(self, config: RunConfig, offers: Mapping[Phase, Offers]) -> None:
        self._config = config
        self._policy = config.policy
        self._offers = offers
        self._seeds = _seeds(config.seed)

    def offered(self, phase: Phase) -> dict[str, Callable[[], Any]]:
        """What all policies of a phase are offered."""
        offers = self._offers[phase]
        found: dict[str, Callable[[], Any]] = {
            "phase": lambda: phase,
            "slo": lambda: self._config.slo.objectives,
            "clocks_mhz": lambda: self._clocks_mhz(phase),
            "predictor": offers.predictor,
            "kv_capacity_tokens": offers.kv_capacity_tokens,
            "power_limits_w": offers.power_limits_w,
            "seed": lambda: next(self._seeds),
        }
        return found if offers.truth is None else {**found, "truth": offers.truth}

    def _clocks_mhz(self, phase: Phase) -> tuple[int, ...]:
        return tuple(self._offers[phase].clocks_mhz())  # nothing a policy could change for the others

    def controllers(self, phase: Phase, count: int) -> list[FrequencyController]:
        """Those of a phase, one an instance."""
        key = f"{phase}_controller"
        return [
            AskedController(
                self._who(key, f"{phase}-{index}"),
                self._build(key, phase, index),
                self._clocks_mhz(phase),
                self._offers[phase].power_limits_w,
            )
            for index in range(count)
        ]

    def prefill_router(self) -> Router | PrefillScheduler:
        """What stands before prefill."""
        who, made = self._who("prefill_router"), self._before_prefill
        return AskedScheduler(who, made) if isinstance(made, PrefillScheduler) else AskedRouter(who, made)

    def decode_router(self) -> Router:
        """What stands before decode."""
        return AskedRouter(self._who("decode_router"), self._build("decode_router", "decode"))

    @cached_property
    def _before_prefill(self) -> Any:
        return self._build("prefill_router", "prefill")

    def _scheduler(self) -> PrefillScheduler:
        made = self._before_prefill
        if isinstance(made, PrefillScheduler):
            return made
        raise PolicyError(
            "policy.prefill_controller: asks for scheduler, but policy.prefill_router is "
            f"{self._part('prefill_router').get('_target_')}, allowed: a class with schedule()"
        )

    def _build(self, key: str, phase: Phase, instance: int | None = None) -> Any:
        offered = self.offered(phase)
        if instance is not None:
            offered["instance"] = lambda: instance
            if phase == "prefill":
                offered["scheduler"] = self._scheduler
        with PolicyError.of(f"policy {self._policy.name}"):
            return build_policy(f"policy.{key}", self._part(key), offered)

    def _part(self, key: str) -> Mapping[str, Any]:
        part: Mapping[str, Any] = getattr(self._policy, key)
        return part

    def _who(self, key: str, instance: str = "") -> Who:
        return Who(self._policy.name, key, str(self._part(key).get("_target_")), instance)


def _seeds(seed: int) -> Iterator[int]:
    """Seeds for policies, independent of those of the workload."""
    sequence = np.random.SeedSequence([seed, 0x9E3779B9])
    while True:
        yield int(sequence.spawn(1)[0].generate_state(1)[0])
