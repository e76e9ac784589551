"""What a run is made of, for either engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sim.job import Job
from sim.limits import Actuation, DecodeLimits, LinkSpec, PrefillLimits
from sim.plant import Plant
from voltana.state import FrequencyController, RequestInfo, Router


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


def info(job: Job) -> RequestInfo:
    """A request as routers see it."""
    request = job.request
    return RequestInfo(request.request_id, request.arrival_s, request.input_tokens)
