"""What a controller sees of its instance only because it says that it looks there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from voltana.sim.serving.job import Job
from voltana.sim.serving.sensor import PowerSensors
from voltana.state import LoadSnapshot, RequestView

Views = tuple[RequestView, ...]


class Shown(Protocol):
    """An instance with the parts that a controller may ask to see."""

    sensors: PowerSensors
    index: int

    def requests(self) -> tuple[Views, Views]:
        """The requests of the batch and those behind it."""
        ...


class View:
    """Completes the snapshots for one controller."""

    def __init__(self, controller: object) -> None:
        self.power: bool = getattr(controller, "reads_power", False)
        self.requests: bool = getattr(controller, "reads_requests", False)
        self.wanted = self.power or self.requests

    def complete(self, load: LoadSnapshot, instance: Shown) -> LoadSnapshot:
        """The snapshot with what the controller looks at."""
        more: dict[str, Any] = {}
        if self.power:
            sensors = instance.sensors
            more |= {"power_w": sensors.readings_w[instance.index], "cluster_power_w": sensors.total_w}
        if self.requests:
            more["running"], more["waiting"] = instance.requests()
        return load._replace(**more)


def prompts(jobs: Iterable[Job], now_s: float) -> Views:
    """Requests at prefill: time there in seconds, prompt tokens still to compute, tokens made, tokens expected."""
    return tuple(
        RequestView(now_s - job.taken_s, job.request.input_tokens - job.prefilled, job.produced, job.expected_tokens)
        for job in jobs
    )


def answers(jobs: Iterable[tuple[Job, int]], now_s: float) -> Views:
    """Requests at decode, each with the tokens it has made since its job was last brought up to date."""
    return tuple(
        RequestView(now_s - job.taken_s, job.request.input_tokens, job.produced + new, job.expected_tokens)
        for job, new in jobs
    )
