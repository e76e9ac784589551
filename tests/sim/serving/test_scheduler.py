"""A prefill scheduler in the simulator: both engines ask it alike, and what it holds back counts."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.records import assert_same
from voltana.app.bundle import build_bundle
from voltana.errors import PolicyError
from voltana.record import RunRecord
from voltana.section import parse
from voltana.sim.run.build import RunBuilder
from voltana.sim.run.config import SimConfig
from voltana.sim.run.simulate import simulate
from voltana.state import Decision, InstanceLoad, LoadSnapshot, PrefillPlan, RequestInfo


class Whimsical:
    """Holds, sends and wishes at random; to instances at work too, and out of order."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def schedule(self, time_s: float, waiting: Sequence[RequestInfo], instances: Sequence[InstanceLoad]) -> PrefillPlan:
        random = self._random
        places = random.sample(range(len(waiting)), random.randint(0, len(waiting)))
        sends = [(place, random.randrange(len(instances))) for place in places]
        return PrefillPlan(sends, time_s + random.uniform(0.001, 0.2))


class HoldsEach:
    """Sends every request so long after it arrived."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds

    def schedule(self, time_s: float, waiting: Sequence[RequestInfo], instances: Sequence[InstanceLoad]) -> PrefillPlan:
        due = [place for place, each in enumerate(waiting) if time_s >= each.arrival_s + self._seconds]
        wishes = [each.arrival_s + self._seconds for each in waiting[len(due) :]]
        return PrefillPlan([(place, 0) for place in due], min(wishes, default=None))


class KeepsWaits:
    """The highest clock; keeps the longest waits that it is shown."""

    waits: ClassVar[list[float]] = []

    def __init__(self, clocks_mhz: Sequence[int], scheduler: object) -> None:
        self._answer = Decision(clocks_mhz[-1])
        self.scheduler = scheduler

    def decide(self, load: LoadSnapshot) -> Decision:
        if load.batch_size:
            self.waits.append(load.longest_wait_s)
        return self._answer


def _with(values: dict[str, Any], **parts: dict[str, Any]) -> dict[str, Any]:
    return values | {"policy": values["policy"] | {"name": "mine", **parts}}


def _mine(name: str, **parameters: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.{name}", **parameters}


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([5, 40, 120]), st.integers(1, 3), st.sampled_from(["null", 300]), st.integers(0, 999), st.booleans()
)
def test_both_engines_ask_any_scheduler_alike(
    values: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
    rps: int,
    instances: int,
    chunk: str,
    seed: int,
    at_arrival: bool,
) -> None:
    folder = tmp_path_factory.mktemp("schedulers")
    chosen = values(
        f"policy={'voltana_released' if at_arrival else 'voltana'}",
        f"rps={rps}",
        "requests=80",
        f"seed={seed}",
        f"cluster.prefill_instances={instances}",
        f"serving.prefill.chunk_tokens={chunk}",
    )
    chosen = _with(chosen, prefill_router=_mine("Whimsical"))
    records = []
    for engine in ("reference", "fast"):
        simulate(chosen | {"engine": engine}, folder / engine)
        records.append(RunRecord(folder / engine))
    assert_same(*records)
    requests = records[0].requests()
    assert sorted(requests.request_id) == list(range(80)) and set(requests.status) == {"completed"}


@pytest.mark.parametrize("engine", ["reference", "fast"])
def test_time_in_the_queue_counts_in_ttft_and_in_the_longest_wait(
    engine: str, values: Callable[..., dict[str, Any]], tmp_path: Any
) -> None:
    held = 0.37
    lonely = ("trace=fixed", "trace.input_tokens=200", "trace.output_tokens=3", "arrival=uniform", "rps=0.5")
    plain = values("policy=static_max", f"engine={engine}", "front_end=none", "requests=6", "duration_s=null", *lonely)
    simulate(plain, tmp_path / "plain")
    KeepsWaits.waits.clear()
    queue, controller = _mine("HoldsEach", seconds=held), _mine("KeepsWaits")
    simulate(_with(plain, prefill_router=queue, prefill_controller=controller), tmp_path / "held")
    before, after = (RunRecord(tmp_path / name).requests() for name in ("plain", "held"))
    assert (after.ttft_s - before.ttft_s).tolist() == pytest.approx([held] * 6, abs=1e-9)
    assert (after.prefill_start_s - after.arrival_s).tolist() == pytest.approx([held] * 6, abs=1e-9)
    assert KeepsWaits.waits == pytest.approx([held] * 6, abs=1e-9)


def test_a_controller_that_asks_for_a_scheduler_needs_one(values: Callable[..., dict[str, Any]], tmp_path: Any) -> None:
    wrong = _with(values("policy=static_max", "requests=5"), prefill_controller=_mine("KeepsWaits"))
    with pytest.raises(PolicyError) as caught:
        simulate(wrong, tmp_path)
    assert str(caught.value) == (
        "policy mine: policy.prefill_controller: asks for scheduler, but policy.prefill_router is "
        "voltana.policies.balancers.RandomRouter, allowed: a class with schedule()"
    )


def test_it_sees_the_object_of_its_bundle(values: Callable[..., dict[str, Any]], tmp_path: Any) -> None:

    parts = {"prefill_router": _mine("HoldsEach", seconds=0.1), "prefill_controller": _mine("KeepsWaits")}
    config = parse(SimConfig, _with(values("policy=static_max"), **parts))
    bundle = build_bundle(config, RunBuilder(config).offers("prefill"))
    made: list[Any] = [controller._policy.scheduler for controller in bundle.prefill_controllers]  # type: ignore[attr-defined]
    assert made[0] is made[1] is bundle.prefill_router._policy  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("rps", [30, 90])
def test_voltana_next_saves_and_nobody_starves(rps: int, values: Callable[..., dict[str, Any]], tmp_path: Any) -> None:
    """Energy up to the same moment, the idle GPUs of a run that ends sooner included."""
    energy_j, attained, ends = {}, {}, {}
    for policy in ("static_max", "voltana", "voltana_next"):
        simulate(values(f"policy={policy}", f"rps={rps}", "duration_s=60", "front_end=none"), tmp_path / policy)
        record = RunRecord(tmp_path / policy)
        energy_j[policy], attained[policy] = record.summary["energy_j"]["total"], record.summary["joint_attainment"]
        ends[policy] = record.summary["end_s"]
        requests = record.requests()
        assert set(requests.status) == {"completed"}
    waits = requests.prefill_start_s - requests.arrival_s
    idle_w = 4 * 71.4
    saved = 1 - energy_j["voltana_next"] / (energy_j["voltana"] + idle_w * (ends["voltana_next"] - ends["voltana"]))
    assert saved > {30: 0.15, 90: 0.05}[rps]
    assert attained["voltana_next"] >= max(attained["static_max"], attained["voltana"]) - 0.001
    assert waits.max() < 6
