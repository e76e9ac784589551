"""What a run is made of, for either engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from voltana.sim.plant import Plant
from voltana.sim.serving.job import Job
from voltana.sim.serving.limits import Actuation, DecodeLimits, FrontEnd, LinkSpec, PrefillLimits
from voltana.sim.serving.sensor import SensorSpec
from voltana.sim.serving.truth import Knows, Truth
from voltana.state import FrequencyController, RequestInfo, Router
from voltana.traces import Request


@dataclass(frozen=True)
class ClusterSpec:
    """Everything a run needs but its requests.

    The controllers are one per instance; `routers` are prefill's and decode's.
    """

    plant: Plant
    prefill_limits: PrefillLimits
    decode_limits: DecodeLimits
    link: LinkSpec
    actuation: Actuation
    gpus_per_host: int
    prefill_controllers: Sequence[FrequencyController]
    decode_controllers: Sequence[FrequencyController]
    prefill_router: Router
    decode_router: Router
    noise: Callable[[str], Callable[[], float] | None] = lambda _: None
    """For the name of an instance, what draws the factors on its latencies."""
    sensor: SensorSpec = field(default=SensorSpec(period_s=0.1, window_s=0.1, error=0.0))
    expected_tokens: Callable[[Request], float] = lambda request: request.output_tokens
    """What a length predictor tells of a request."""
    drift: Drift | None = None
    front_end: FrontEnd = field(default_factory=FrontEnd)

    @property
    def controllers(self) -> Sequence[FrequencyController]:
        """Of all instances, prefill first."""
        return [*self.prefill_controllers, *self.decode_controllers]

    @cached_property
    def predicts_lengths(self) -> bool:
        """Whether any controller looks at requests one by one."""
        return any(getattr(controller, "reads_requests", False) for controller in self.controllers)

    @property
    def senses_power(self) -> bool:
        """Whether any controller reads the power sensors."""
        return any(getattr(controller, "reads_power", False) for controller in self.controllers)


@dataclass(frozen=True)
class Drift:
    """The GPUs turn into others in the middle of a run."""

    at_s: float
    plant: Plant


def bind_truth(controller: object, instance: Knows) -> None:
    """Give an oracle its instance; no other controller has a `truth`."""
    truth = getattr(controller, "truth", None)
    if isinstance(truth, Truth):
        truth.bind(instance)


def info(job: Job) -> RequestInfo:
    """A request as routers see it: number, arrival in seconds, prompt tokens; not its output length."""
    request = job.request
    return RequestInfo(request.request_id, request.arrival_s, request.input_tokens)
