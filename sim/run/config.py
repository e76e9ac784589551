"""The configuration of a simulated run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from voltana.app.config import RunConfig
from voltana.app.serving import Part
from voltana.section import NonNegative, Positive, Seconds, Section
from voltana.sim.serving.limits import FrontEnd
from voltana.sim.serving.service import Sleep


class DriftConfig(Section):
    """`drift`."""

    name: str
    at_s: Seconds | None
    slowdown: Annotated[float, Field(gt=0, le=10, strict=True)]
    base_w: NonNegative


class PlannerConfig(Section):
    """`planner`."""

    name: str
    policy: Part | None
    """None: all instances serve all the time, and nobody is asked."""
    period_s: Positive
    sleep: Sleep


class SimConfig(RunConfig):
    """The whole configuration of `voltana-sim`."""

    drift: DriftConfig
    front_end: FrontEnd
    planner: PlannerConfig
    engine: Literal["fast", "reference"]
    experiment: Part | None
    bound: Literal[False, True, "stationary", "both"]
    """Which least energies are added to the summary; `true`: the lower bound."""

    @field_validator("bound")
    @classmethod
    def _steady(cls, bound: bool | str, others: ValidationInfo) -> bool | str:
        serving, drift = others.data.get("serving"), others.data.get("drift")
        if bound and ((serving and serving.latency_noise) or (drift and drift.at_s is not None)):
            raise ValueError("false where the plant drifts (drift) or is noisy (serving.latency_noise)")
        planner = others.data.get("planner")
        if bound and planner and planner.policy is not None:
            raise ValueError("false where instances sleep (planner)")
        if bound in ("stationary", "both") and not at_one_rate(others.data.get("arrival", {"rate": 1})):
            raise ValueError("false, true where requests do not come at one rate (arrival)")
        return bound


def at_one_rate(arrival: Part) -> bool:
    """Whether requests of a section `arrival` come at one rate all the time."""
    return arrival.get("rate") is not None and "shape" not in arrival
