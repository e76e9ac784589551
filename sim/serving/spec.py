"""What a run is made of, for either engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from voltana.app.serving import Actuation, DecodeLimits, Link, PrefillLimits, Sensor
from voltana.sim.plant import Plant
from voltana.sim.plant.build import Plants
from voltana.sim.serving.job import Job
from voltana.sim.serving.limits import FrontEnd
from voltana.sim.serving.service import Sleep
from voltana.sim.serving.truth import Knows, Truth
from voltana.state import FrequencyController, Planner, PrefillScheduler, RequestInfo, Router
from voltana.traces import Request


@dataclass(frozen=True)
class ClusterSpec:
    """Everything a run needs but its requests.

    The controllers are one per instance; `routers` are prefill's and decode's.
    """

    plants: Plants
    prefill_limits: PrefillLimits
    decode_limits: DecodeLimits
    link: Link
    actuation: Actuation
    hosts: Sequence[int]
    """Of every instance's GPUs, prefill first."""
    prefill_controllers: Sequence[FrequencyController]
    decode_controllers: Sequence[FrequencyController]
    prefill_router: Router | PrefillScheduler
    decode_router: Router
    sensor: Sensor
    seed: int
    """Of the sensors' errors."""
    front_end: FrontEnd
    noise: Callable[[str], Callable[[], float] | None] = lambda _: None
    """For the name of an instance, what draws the factors on its latencies."""
    expected_tokens: Callable[[Request], float] = lambda request: request.output_tokens
    """What a length predictor tells of a request."""
    drift: Drift | None = None
    planner: Planning | None = None
    """None: all instances serve all the time."""

    @property
    def controllers(self) -> Sequence[FrequencyController]:
        """Of all instances, prefill first."""
        return [*self.prefill_controllers, *self.decode_controllers]

    def plant(self, index: int) -> Plant:
        """The physics of an instance, by its place among all."""
        return self.plants.prefill if index < len(self.prefill_controllers) else self.plants.decode

    def transfer_s(self, job: Job) -> float:
        """Time that the KV cache of a request takes over its link once it has a stream."""
        return self.link.duration_s(job.request.input_tokens * self.plants.prefill.kv_bytes_per_token)

    @cached_property
    def predicts_lengths(self) -> bool:
        """Whether any controller looks at requests one by one."""
        return any(getattr(controller, "reads_requests", False) for controller in self.controllers)

    @property
    def senses_power(self) -> bool:
        """Whether any controller reads the power sensors."""
        return any(getattr(controller, "reads_power", False) for controller in self.controllers)


@dataclass(frozen=True)
class Planning:
    """Who is asked how many instances serve, how often, and what their sleep costs."""

    policy: Planner
    period_s: float
    sleep: Sleep


@dataclass(frozen=True)
class Drift:
    """The GPUs turn into others in the middle of a run."""

    at_s: float
    plants: Plants


def bind_truth(controller: object, instance: Knows) -> None:
    """Give an oracle its instance; no other controller has a `truth`."""
    truth = getattr(controller, "truth", None)
    if isinstance(truth, Truth):
        truth.bind(instance)


def info(job: Job) -> RequestInfo:
    """A request as routers see it: number, arrival in seconds, prompt tokens; not its output length."""
    request = job.request
    return RequestInfo(request.request_id, request.arrival_s, request.input_tokens)
