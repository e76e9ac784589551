"""The sections of a configuration that both worlds share, checked: every key known, every value within its range."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from voltana.app.serving import Actuation, Clocks, ClusterConfig, Part, Sensor, ServingConfig
from voltana.section import Count, Positive, Section, Span, WholeNumber, between
from voltana.state import Phase, Slo


class SloConfig(Section):
    """`slo`; the objectives are both multiplied by `scale`."""

    name: str
    ttft_ms: Positive
    itl_ms: Positive
    scale: Positive

    @property
    def objectives(self) -> Slo:
        """The objectives, scaled."""
        return Slo(self.ttft_ms * self.scale / 1e3, self.itl_ms * self.scale / 1e3)


class PolicyConfig(Section):
    """`policy`: a bundle of four parts."""

    name: str
    prefill_controller: Part
    decode_controller: Part
    prefill_router: Part
    decode_router: Part

    def about(self) -> dict[str, Any]:
        """The policy as the summary of a run tells it."""
        return {
            "name": self.name,
            "frequency": {"prefill": self.prefill_controller, "decode": self.decode_controller},
            "router": {"prefill": self.prefill_router, "decode": self.decode_router},
        }


class PrefillProfile(Section):
    """`profile.prefill`."""

    tokens: Span
    """Range of batched prompt tokens."""
    prompt_tokens: Count
    """Of a prompt in those batches."""
    samples: Annotated[int, between(4, 1 << 31)]
    """Per clock; of GPUs that are measured at least so many, the rest of the time goes where the fit is worst."""


class DecodeProfile(Section):
    """`profile.decode`."""

    max_batch: Count
    tokens_per_request: Span
    samples: Annotated[int, between(5, 1 << 31)]
    """As in prefill, per batch bin of EcoPred."""


class Profile(Section):
    """`profile`: what all sources have; `voltana-profile` runs `_target_`."""

    target: str = Field(default="", alias="_target_")
    source: str
    prefill: PrefillProfile
    decode: DecodeProfile
    seed: WholeNumber


class ProfileConfig(Profile):
    """`profile` of the plant."""

    source: Literal["plant"]
    clocks_mhz: Clocks
    noise: Annotated[float, between(0, 0.5)]


class PlantConfig(Section):
    """What the plant is made of, and how it is profiled."""

    model: Part
    gpu: Part
    serving: ServingConfig
    profile: ProfileConfig


class ClusterRun(PlantConfig):
    """The same for a cluster, whose phases may differ."""

    cluster: ClusterConfig

    def side(self, phase: Phase) -> PlantConfig:
        """What the instances of a phase are made of: the shared sections, but for what the phase has of its own."""
        own = self.cluster.side(phase)
        gpu, model = own.gpu or self.gpu, self.model if own.tp is None else {**self.model, "tp": own.tp}
        if own.power_limit_w is not None:
            gpu = {**gpu, "power_limit_w": own.power_limit_w}
        return PlantConfig(
            model=model,
            gpu=gpu,
            serving=self.serving.model_copy(update={"engine": own.engine or self.serving.engine}),
            profile=self.profile.model_copy(update={"clocks_mhz": own.profile_clocks_mhz or self.profile.clocks_mhz}),
        )


class RunConfig(ClusterRun):
    """What a run is given in either world."""

    actuation: Actuation
    sensor: Sensor
    trace: Part
    arrival: Part
    slo: SloConfig
    policy: PolicyConfig
    rps: Positive
    duration_s: Positive | None
    requests: Count | None
    seed: WholeNumber
    predictor: str
