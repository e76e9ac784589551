"""What a decision costs: microseconds per answer of every frequency policy, scheduler and router in `conf/`.

Frequency policies and schedulers are timed inside a simulated run (2P2D, ShareGPT, 75 requests per second), so that
each meets the states it leads to; what an instance's controller answers does not depend on how many others there are.
Routers are timed on drawn states of 2 and of 256 decode instances, lightly loaded, near the batches at which the clock
must rise, and with no instance that could take a request for nothing. What is told is of the kind of state that takes
longest.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from voltana import conf
from voltana.record import RecordWriter
from voltana.section import parse
from voltana.sim.run.build import RunBuilder
from voltana.sim.run.compose import compose_sim
from voltana.sim.run.config import SimConfig
from voltana.sim.run.simulate import engine, rare_garbage_collection
from voltana.sim.serving.recorder import Recorder
from voltana.sim.serving.spec import ClusterSpec
from voltana.state import Decision, InstanceLoad, LoadSnapshot, PrefillPlan, RequestInfo

RUN = ("rps=75", "duration_s=6", "seed=13")
STATES = 300
"""Of each kind, for a router."""
LOADS = ((60, 160), (200, 340), (600, 900))
"""Requests per instance, lowest and highest, of each kind of state."""
TARGETS_US = {"policy=voltana": 5.0, "router=ecoroute, one of 2": 20.0, "router=ecoroute, one of 256": 100.0}
"""The clock decision of `policy=voltana` is EcoFreq's."""


class DecisionCost(NamedTuple):
    """Microseconds per answer."""

    what: str
    answers: int
    median_us: float
    p99_us: float
    target_us: float | None
    """For the median."""


class Timed:
    """A controller whose answers are timed, and which is otherwise itself."""

    def __init__(self, controller: Any, spent_ns: list[int]) -> None:
        self._controller = controller
        self._spent_ns = spent_ns

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)

    def decide(self, load: LoadSnapshot) -> Decision:
        """Ask, and look at the clock."""
        started = time.perf_counter_ns()
        answer: Decision = self._controller.decide(load)
        self._spent_ns.append(time.perf_counter_ns() - started)
        return answer


class TimedScheduler:
    """The same for a prefill scheduler."""

    def __init__(self, scheduler: Any, spent_ns: list[int]) -> None:
        self._scheduler = scheduler
        self._spent_ns = spent_ns

    def schedule(self, *question: Any) -> PrefillPlan:
        """Ask, and look at the clock."""
        started = time.perf_counter_ns()
        answer: PrefillPlan = self._scheduler.schedule(*question)
        self._spent_ns.append(time.perf_counter_ns() - started)
        return answer


def options(group: str) -> list[str]:
    """The options of a configuration group."""
    return sorted(path.stem for path in (Path(conf.__file__).parent / group).glob("*.yaml"))


def decision_costs() -> Iterator[DecisionCost]:
    """Measure one after another."""
    for policy in options("policy"):
        yield _cost(f"policy={policy}", _controllers_ns(policy))
    for scheduler in options("scheduler"):
        yield _cost(f"scheduler={scheduler}", _scheduler_ns(scheduler))
    for router in options("router"):
        for instances in (2, 256):
            yield _cost(f"router={router}, one of {instances}", _router_ns(router, instances))


def _controllers_ns(policy: str) -> list[int]:
    """Nanoseconds of every answer of a policy's controllers in a run."""

    def timed(spec: ClusterSpec, spent_ns: list[int]) -> ClusterSpec:
        prefill, decode = (
            [Timed(controller, spent_ns) for controller in controllers]
            for controllers in (spec.prefill_controllers, spec.decode_controllers)
        )
        return replace(spec, prefill_controllers=prefill, decode_controllers=decode)

    return _run_ns(timed, f"policy={policy}")


def _scheduler_ns(scheduler: str) -> list[int]:
    """Nanoseconds of every answer of a prefill scheduler in a run."""

    def timed(spec: ClusterSpec, spent_ns: list[int]) -> ClusterSpec:
        return replace(spec, prefill_router=TimedScheduler(spec.prefill_router, spent_ns))

    return _run_ns(timed, "policy=voltana_next", f"scheduler@policy.prefill_router={scheduler}")


def _run_ns(timed: Callable[[ClusterSpec, list[int]], ClusterSpec], *overrides: str) -> list[int]:
    """Nanoseconds of every answer of those parts of a run that are timed."""
    values = compose_sim(*RUN, *overrides)
    config = parse(SimConfig, values)
    builder = RunBuilder(config)
    spent_ns: list[int] = []
    spec = timed(builder.cluster(), spent_ns)
    with tempfile.TemporaryDirectory() as folder, RecordWriter(Path(folder), values) as writer:
        recorder = Recorder(writer, builder.slo, {})
        cluster = engine(config.engine)(spec, builder.requests(), recorder, writer.instance)
        with rare_garbage_collection():
            cluster.run()
    return spent_ns


def _router_ns(router: str, instances: int) -> list[int]:
    """Nanoseconds of a router's answers on the kind of state that takes longest."""
    config = parse(SimConfig, compose_sim(f"router@policy.decode_router={router}"))
    policy, random = RunBuilder(config).cluster().decode_router, Random(0)

    def spent_ns(low: int, high: int) -> list[int]:
        answers_ns = []
        for number in range(STATES):
            loads = [_load(random, low, high) for _ in range(instances)]
            request = RequestInfo(number, number / 100, random.randint(20, 600))
            started = time.perf_counter_ns()
            policy.route(request, loads)
            answers_ns.append(time.perf_counter_ns() - started)
        return answers_ns

    return max((spent_ns(low, high) for low, high in LOADS), key=statistics.median)


def _load(random: Random, low: int, high: int) -> InstanceLoad:
    requests = random.randint(low, high)
    return InstanceLoad(random.choice((1005, 1410)), requests, requests * random.randint(250, 450))


def _cost(what: str, spent_ns: list[int]) -> DecisionCost:
    micros = sorted(ns / 1e3 for ns in spent_ns)
    return DecisionCost(
        what, len(micros), statistics.median(micros), micros[int(0.99 * (len(micros) - 1))], TARGETS_US.get(what)
    )
