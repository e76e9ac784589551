"""The sections of a configuration that both worlds share, checked: every key known, every value within its range."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from voltana.errors import UserError
from voltana.state import Slo

Count = Annotated[int, Field(ge=1, strict=True)]
Tokens = Annotated[int, Field(ge=1, strict=True)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, strict=True)]
Part = dict[str, Any]
"""A section that is checked by what is built from it."""


Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Link(Section):
    """`cluster.link`."""

    latency_s: Seconds
    bytes_per_s: Positive
    streams: Count


class ClusterConfig(Section):
    """`cluster`."""

    name: str
    prefill_instances: Count
    decode_instances: Count
    gpus_per_host: Count
    link: Link


class PrefillServing(Section):
    """`serving.prefill`."""

    max_tokens: Tokens
    max_requests: Count
    chunk_tokens: Tokens | None


class DecodeServing(Section):
    """`serving.decode`."""

    max_requests: Count
    reserve_tokens: Annotated[int, Field(ge=0, strict=True)]
    kv_tokens: Tokens | Literal["auto"]


class ServingConfig(Section):
    """`serving`."""

    name: str
    prefill: PrefillServing
    decode: DecodeServing
    latency_noise: Annotated[float, Field(ge=0, le=0.5)]
    length_error: Annotated[float, Field(ge=0, le=3)]
    engine: Part


class ActuationConfig(Section):
    """`actuation`."""

    name: str
    block_s: Seconds
    settle_s: Seconds


class SensorConfig(Section):
    """`sensor`."""

    name: str
    period_s: Positive
    window_s: Positive
    error: Annotated[float, Field(ge=0, le=0.5)]

    @model_validator(mode="after")
    def _window_in_period(self) -> Self:
        if self.window_s > self.period_s:
            raise ValueError(f"window_s up to period_s = {self.period_s:g}")
        return self


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

    tokens: tuple[Tokens, Tokens]
    prompt_tokens: Tokens
    samples: Annotated[int, Field(ge=4, strict=True)]


class DecodeProfile(Section):
    """`profile.decode`."""

    max_batch: Count
    tokens_per_request: tuple[Tokens, Tokens]
    samples: Annotated[int, Field(ge=5, strict=True)]


class ProfileConfig(Section):
    """`profile` of the plant; `voltana-profile` runs `_target_`, which other sources replace."""

    target: str = Field(default="", alias="_target_")
    source: Literal["plant"]
    clocks_mhz: Annotated[list[Count], Field(min_length=2)]
    prefill: PrefillProfile
    decode: DecodeProfile
    noise: Annotated[float, Field(ge=0, le=0.5)]
    seed: Seed


class PlantConfig(Section):
    """What the plant is made of, and how it is profiled."""

    model: Part
    gpu: Part
    serving: ServingConfig
    profile: ProfileConfig


class RunConfig(PlantConfig):
    """What a run is given in either world."""

    cluster: ClusterConfig
    actuation: ActuationConfig
    sensor: SensorConfig
    trace: Part
    arrival: Part
    slo: SloConfig
    policy: PolicyConfig
    rps: Positive
    duration_s: Positive | None
    requests: Count | None
    seed: Seed
    predictor: str


def parse(kind: type[Model], values: Mapping[str, Any]) -> Model:
    """Check a resolved configuration.

    Raises:
        UserError: names the first bad key, what was found and what is allowed.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(_explain(error)) from error


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if not isinstance(part, str) or part.isidentifier())
    if first["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if first["type"] == "missing":
        return f"{key}: missing"
    allowed = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{key}: found {first['input']!r}, allowed: {allowed}"
