"""The instances in exact time: the simulator's schedule, energy that is the integral of power, nothing lost."""

import heapq
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voltana.live.servers.emulated.config import DecodeConfig, LinkConfig, PrefillConfig
from voltana.live.servers.emulated.instance import DecodeInstance, Instance, Job, PrefillInstance
from voltana.record import RunRecord
from voltana.sim.plant import EngineSpec, GpuSpec, ModelSpec, Plant
from voltana.sim.run.compose import compose_sim
from voltana.sim.run.simulate import simulate
from voltana.state import LoadSnapshot


@pytest.fixture(scope="module")
def plant(sections: dict[str, Any]) -> Plant:
    gpu, model = GpuSpec.from_mapping(sections["gpu"]), ModelSpec.from_mapping(sections["model"])
    return Plant(gpu, model, EngineSpec.from_mapping(sections["engine"]))


class Pair:
    """One prefill and one decode instance with the link between, driven from event to event."""

    def __init__(self, plant: Plant, prefill: PrefillConfig, decode: DecodeConfig, link: LinkConfig) -> None:
        clock = plant.gpu.clocks()[-1]
        self._plant, self._link, self._free_s = plant, link, [0.0] * link.streams
        self.prefill = PrefillInstance(plant, clock, 0.0, limits=prefill, finished=self._prefilled)
        self.decode = DecodeInstance(
            plant, clock, 0.0, limits=decode, joined=self._joined, token=self._token, failed=lambda job: None
        )
        self.first_s: dict[int, float] = {}
        self.finish_s: dict[int, float] = {}

    def _prefilled(self, job: Job) -> None:
        now_s, link = self.prefill.now_s, self._link
        job.produced = 1
        size = job.prompt_tokens * self._plant.kv_bytes_per_token
        arrives_s = max(now_s, self._free_s[0]) + link.latency_s + size * link.streams / link.bytes_per_s
        heapq.heapreplace(self._free_s, arrives_s)
        self.decode.at(arrives_s, lambda: self.decode.submit(job))

    def _joined(self, job: Job) -> None:
        if job.produced == 1:
            self.first_s[job.answer] = self.decode.now_s
            self._token(job)

    def _token(self, job: Job) -> None:
        if job.produced == job.max_tokens:
            self.finish_s[job.answer] = self.decode.now_s

    def run(self, rows: list[tuple[float, int, int]]) -> None:
        self.prefill.wake()
        self.decode.wake()
        arrivals = [(arrival, number) for number, (arrival, _, _) in enumerate(rows)]
        while True:
            arrival_s = arrivals[0][0] if arrivals else math.inf
            now_s = min(arrival_s, self.prefill.next_s, self.decode.next_s)
            if now_s == math.inf:
                return
            self.prefill.advance(now_s)
            self.decode.advance(now_s)
            if arrival_s == now_s:
                number = arrivals.pop(0)[1]
                self.prefill.submit(Job(rows[number][1], rows[number][2], now_s, number))


TRACE = [(0.011 * (i // 3) + 0.001 * i, 40 + (i * 577) % 1500, 1 + (i * 211) % 190) for i in range(90)]


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        (PrefillConfig(), DecodeConfig()),
        (
            PrefillConfig(max_tokens=2000, max_requests=5),
            DecodeConfig(max_requests=20, kv_tokens=16000, reserve_tokens=0),
        ),
        (PrefillConfig(max_tokens=4096, chunk_tokens=512), DecodeConfig(kv_tokens=9000, reserve_tokens=1)),
    ],
)
def test_schedule_and_energy_are_the_simulators(
    prefill: PrefillConfig, decode: DecodeConfig, plant: Plant, tmp_path: Path
) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{a},{i},{o}\n" for a, i, o in TRACE))
    values = compose_sim(
        "trace=file", f"trace.path={trace}", "arrival=timestamps", "duration_s=null", "requests=1000",
        "cluster.prefill_instances=1", "cluster.decode_instances=1", "policy=static_max", "engine=reference",
        "front_end=none",
        f"serving.prefill.max_tokens={prefill.max_tokens}", f"serving.prefill.max_requests={prefill.max_requests}",
        f"serving.prefill.chunk_tokens={'null' if prefill.chunk_tokens is None else prefill.chunk_tokens}",
        f"serving.decode.max_requests={decode.max_requests}", f"serving.decode.reserve_tokens={decode.reserve_tokens}",
        f"serving.decode.kv_tokens={'auto' if decode.kv_tokens is None else decode.kv_tokens}",
    )  # fmt: skip
    simulate(values, tmp_path / "record")
    record = RunRecord(tmp_path / "record")
    link = values["cluster"]["link"]
    pair = Pair(plant, prefill, decode, LinkConfig(link["latency_s"], link["bytes_per_s"], link["streams"]))
    pair.run(TRACE)
    rows = record.requests().set_index("request_id").sort_index()
    assert len(pair.finish_s) == len(rows) == len(TRACE)
    for number, (first_s, finish_s) in enumerate(zip(rows.first_token_s, rows.finish_s, strict=True)):
        assert pair.first_s[number] == pytest.approx(first_s, abs=1e-6)
        assert pair.finish_s[number] == pytest.approx(finish_s, abs=1e-6)
    start_s, end_s = TRACE[0][0], record.summary["end_s"]
    energy = record.summary["energy_j"]["per_instance"]
    for name, instance in (("prefill-0", pair.prefill), ("decode-0", pair.decode)):
        measured = instance.meter.energy_j(end_s) - instance.meter.energy_j(0.0) * (start_s > 0)
        assert measured == pytest.approx(energy[name], rel=1e-6)


Made = tuple[Instance, list[LoadSnapshot], list[Job]]


def make(phase: str, plant: Plant) -> Made:
    seen: list[LoadSnapshot] = []
    done: list[Job] = []
    clock = plant.gpu.clocks()[-1]
    if phase == "prefill":
        limits = PrefillConfig(max_tokens=900, max_requests=4, chunk_tokens=300)
        return PrefillInstance(plant, clock, 0.0, seen.append, limits=limits, finished=done.append), seen, done

    def token(job: Job) -> None:
        if job.produced == job.max_tokens:
            done.append(job)

    decode_limits = DecodeConfig(max_requests=5, kv_tokens=1500, reserve_tokens=3)
    instance = DecodeInstance(
        plant, clock, 0.0, seen.append, limits=decode_limits, joined=lambda job: None, token=token, failed=done.append
    )
    return instance, seen, done


Step = tuple[float, str, int]
steps = st.lists(
    st.tuples(
        st.integers(0, 200_000).map(lambda wait_us: wait_us * 1e-6),
        st.sampled_from(["submit", "clock", "drop", "cap"]),
        st.integers(0, 10**6),
    ),
    min_size=1,
    max_size=25,
)


def live(instance: Instance, plan: list[Step], advance: Callable[[float], None]) -> list[Job]:
    """Carry out a plan; return the jobs."""
    now_s, jobs, clocks = 0.0, [], instance.plant.gpu.clocks()
    instance.wake()
    for wait_s, what, draw in plan:
        now_s += wait_s
        advance(now_s)
        if what == "submit":
            job = Job(1 + draw % 700, 2 + draw % 30, now_s)
            job.produced = 1 if instance.phase == "decode" else 0
            jobs.append(job)
            instance.submit(job)
        elif what == "clock":
            instance.set_clock(clocks[draw % len(clocks)])
        elif what == "cap":
            instance.set_clock(clocks[draw % len(clocks)], 150.0 + draw % 200)
        elif jobs:
            instance.drop(jobs[draw % len(jobs)])
    while instance.running:
        advance(instance.next_s)
    return jobs


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@given(plan=steps)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_laws(phase: str, plant: Plant, plan: list[Step]) -> None:
    instance, seen, done = make(phase, plant)
    jobs = live(instance, plan, instance.advance)
    end_s = instance.now_s
    meter = instance.meter
    meter.close_row(end_s)
    first, rows = meter.rows(0)
    assert first == 0 and meter.rows(len(rows)) == (len(rows), [])
    ends = [*(row.time_s for row in rows[1:]), end_s][: len(rows)]
    integral = sum(row.power_w * (end - row.time_s) for row, end in zip(rows, ends, strict=True))
    assert integral == pytest.approx(meter.energy_j(end_s), rel=1e-9, abs=1e-9)
    assert all(first.time_s < second.time_s for first, second in pairwise(rows))
    assert all(row.power_w == pytest.approx(plant.idle_power_w(row.clock_mhz)) for row in rows if not row.batch_size)
    assert all(row.power_w > plant.idle_power_w(row.clock_mhz) for row in rows if row.batch_size)
    left = [job for job in jobs if job not in done]
    assert all(job.gone for job in left), "only those whose client has left do not end"
    final = instance.load()
    assert (final.batch_size, final.queued, final.queued_tokens) == (0, 0, 0)
    assert instance.arrived_requests == len(jobs)
    starts = [load.time_s for load in seen if load.batch_size]
    assert len(starts) == instance.iterations and starts == sorted(starts)
    assert instance.busy_s == pytest.approx(sum(e - r.time_s for r, e in zip(rows, ends, strict=True) if r.batch_size))


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@given(plan=steps)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_how_often_time_is_told_does_not_matter(phase: str, plant: Plant, plan: list[Step]) -> None:
    punctual, first, _ = make(phase, plant)
    live(punctual, plan, punctual.advance)
    restless, second, _ = make(phase, plant)

    def in_small_steps(to_s: float) -> None:
        start_s = restless.now_s
        for part in range(1, 8):
            restless.advance(start_s + (to_s - start_s) * part / 8)
        restless.advance(to_s)

    live(restless, plan, in_small_steps)
    assert first == second
    assert punctual.meter.energy_j(punctual.now_s) == restless.meter.energy_j(punctual.now_s)


def test_a_clock_takes_effect_at_once_for_what_is_left(plant: Plant) -> None:
    instance, _, _ = make("decode", plant)
    job = Job(400, 3, 0.0)
    job.produced = 1
    instance.submit(job)
    fast, slow = plant.decode(1, 401, 1410).duration_s, plant.decode(1, 401, 705).duration_s
    instance.advance(0.25 * fast)
    instance.set_clock(705)
    assert instance.next_s == pytest.approx(0.25 * fast + 0.75 * slow)
    instance.advance(instance.next_s)
    assert instance.next_s - instance.now_s == pytest.approx(plant.decode(1, 402, 705).duration_s)


def test_a_power_cap_lowers_the_draw(plant: Plant) -> None:
    instance, _, _ = make("prefill", plant)
    instance.submit(Job(300, 1, 0.0))
    free_w = instance.meter.power_w
    instance.set_clock(1410, 200.0)
    assert instance.meter.power_w <= 200.0 + 1e-6 < free_w
