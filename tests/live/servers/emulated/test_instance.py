"""The instances in exact time: the simulator's schedule, energy that is the integral of power, nothing lost."""

import heapq
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from voltana.app.serving import DecodeLimits, DecodeServing, Link, PrefillLimits
from voltana.live.servers.emulated.driver import Driver, RowHistory
from voltana.record import RunRecord
from voltana.section import parse
from voltana.sim.plant import EngineSpec, GpuSpec, ModelSpec, Plant
from voltana.sim.plant.build import decode_limits
from voltana.sim.run.compose import compose_sim
from voltana.sim.run.simulate import simulate
from voltana.sim.serving.decode import DecodeInstance
from voltana.sim.serving.instance import Instance
from voltana.sim.serving.job import Job
from voltana.sim.serving.meter import Meter
from voltana.sim.serving.prefill import PrefillInstance
from voltana.state import LoadSnapshot, Phase
from voltana.traces import Request


@pytest.fixture(scope="module")
def plant(sections: dict[str, Any]) -> Plant:
    gpu, model = parse(GpuSpec, sections["gpu"], "gpu"), parse(ModelSpec, sections["model"], "model")
    return Plant(gpu, model, parse(EngineSpec, sections["engine"], "engine"))


def job_of(number: int, now_s: float, prompt_tokens: int, output_tokens: int) -> Job:
    return Job(Request(number, now_s, prompt_tokens, output_tokens), taken_s=now_s)


class Pair:
    """One prefill and one decode instance with the link between, driven from event to event."""

    def __init__(self, plant: Plant, prefill: PrefillLimits, decode: DecodeLimits, link: Link) -> None:
        clock = plant.gpu.clocks()[-1]
        self._plant, self._link, self._free_s = plant, link, [0.0] * link.streams
        first = PrefillInstance(plant, Meter("prefill-0", "prefill", lambda row: None), prefill, self._prefilled)
        second = DecodeInstance(
            plant,
            Meter("decode-0", "decode", lambda row: None),
            decode,
            token=self._token,
            finished=self._finished,
            failed=lambda job: None,
        )
        self.prefill, self.decode = Driver(first, clock, 0.0), Driver(second, clock, 0.0)
        self.first_s: dict[int, float] = {}
        self.finish_s: dict[int, float] = {}

    def _prefilled(self, job: Job) -> None:
        now_s, link = self.prefill.now_s, self._link
        size = job.request.input_tokens * self._plant.kv_bytes_per_token
        arrives_s = max(now_s, self._free_s[0]) + link.latency_s + size * link.streams / link.bytes_per_s
        heapq.heapreplace(self._free_s, arrives_s)
        self.decode.at(arrives_s, lambda: self.decode.submit(job))

    def _token(self, job: Job, gap_s: float | None) -> None:
        if gap_s is None:
            self.first_s[job.request.request_id] = self.decode.now_s

    def _finished(self, job: Job) -> None:
        self.finish_s[job.request.request_id] = self.decode.now_s

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
                self.prefill.submit(job_of(number, now_s, *rows[number][1:]))


PREFILL = PrefillLimits(max_tokens=16384, max_requests=512, chunk_tokens=None)
DECODE = DecodeServing(max_requests=1024, reserve_tokens=8, kv_tokens="auto")
TRACE = [(0.011 * (i // 3) + 0.001 * i, 40 + (i * 577) % 1500, 1 + (i * 211) % 190) for i in range(90)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        (PREFILL, DECODE),
        (
            PREFILL.but(max_tokens=2000, max_requests=5),
            DECODE.but(max_requests=20, kv_tokens=16000, reserve_tokens=0),
        ),
        (PREFILL.but(max_tokens=4096, chunk_tokens=512), DECODE.but(kv_tokens=9000, reserve_tokens=1)),
    ],
)
def test_schedule_and_energy_are_the_simulators(
    prefill: PrefillLimits, decode: DecodeServing, plant: Plant, tmp_path: Path
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
        f"serving.decode.kv_tokens={decode.kv_tokens}",
    )  # fmt: skip
    simulate(values, tmp_path / "record")
    record = RunRecord(tmp_path / "record")
    link = values["cluster"]["link"]
    pair = Pair(plant, prefill, decode_limits(decode, plant), Link(**link))
    pair.run(TRACE)
    rows = record.requests().set_index("request_id").sort_index()
    assert len(pair.finish_s) == len(rows) == len(TRACE)
    for number, (first_s, finish_s) in enumerate(zip(rows.first_token_s, rows.finish_s, strict=True)):
        assert pair.first_s[number] == pytest.approx(first_s, abs=1e-6)
        assert pair.finish_s[number] == pytest.approx(finish_s, abs=1e-6)
    start_s, end_s = TRACE[0][0], record.summary["end_s"]
    energy = record.summary["energy_j"]["per_instance"]
    for name, driver in (("prefill-0", pair.prefill), ("decode-0", pair.decode)):
        instance = driver.instance
        measured = instance.energy_j(end_s) - instance.energy_j(0.0) * (start_s > 0)
        assert measured == pytest.approx(energy[name], rel=1e-6)


class Made(NamedTuple):
    """A driven instance and what it did."""

    driver: Driver
    seen: list[LoadSnapshot]
    done: list[Job]
    rows: RowHistory


def make(phase: Phase, plant: Plant, token: Callable[[Job], None] = lambda job: None) -> Made:
    seen: list[LoadSnapshot] = []
    done: list[Job] = []
    rows = RowHistory()
    meter = Meter(f"{phase}-0", phase, rows.write)
    instance: Instance
    if phase == "prefill":
        limits = PrefillLimits(max_tokens=900, max_requests=4, chunk_tokens=300)
        instance = PrefillInstance(plant, meter, limits, done.append)
    else:
        instance = DecodeInstance(
            plant,
            meter,
            DecodeLimits(max_requests=5, kv_tokens=1500, reserve_tokens=3),
            token=lambda job, gap_s: token(job),
            finished=done.append,
            failed=done.append,
        )
    return Made(Driver(instance, plant.gpu.clocks()[-1], 0.0, seen.append), seen, done, rows)


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


def live(driver: Driver, plan: list[Step], advance: Callable[[float], None]) -> list[Job]:
    """Carry out a plan; return the jobs."""
    now_s, jobs, clocks = 0.0, [], driver.instance.plant.gpu.clocks()
    driver.wake()
    for wait_s, what, draw in plan:
        now_s += wait_s
        advance(now_s)
        if what == "submit":
            job = job_of(len(jobs), now_s, 1 + draw % 700, 2 + draw % 30)
            job.produced = 1 if driver.instance.phase == "decode" else 0
            jobs.append(job)
            driver.submit(job)
        elif what == "clock":
            driver.set_clock(clocks[draw % len(clocks)])
        elif what == "cap":
            driver.set_clock(clocks[draw % len(clocks)], 150.0 + draw % 200)
        elif jobs:
            driver.instance.drop(jobs[draw % len(jobs)])
    while driver.running:
        advance(driver.next_s)
    return jobs


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@given(plan=steps)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_laws(phase: Phase, plant: Plant, plan: list[Step]) -> None:
    driver, seen, done, history = make(phase, plant)
    jobs = live(driver, plan, driver.advance)
    end_s, instance = driver.now_s, driver.instance
    instance.flush(end_s)
    first, rows = history.since(0)
    assert first == 0 and history.since(len(rows)) == (len(rows), [])
    ends = [*(row.time_s for row in rows[1:]), end_s][: len(rows)]
    integral = sum(row.power_w * (end - row.time_s) for row, end in zip(rows, ends, strict=True))
    assert integral == pytest.approx(instance.energy_j(end_s), rel=1e-9, abs=1e-9)
    assert all(first.time_s < second.time_s for first, second in pairwise(rows))
    assert all(row.power_w == pytest.approx(plant.idle_power_w(row.clock_mhz)) for row in rows if not row.batch_size)
    assert all(row.power_w > plant.idle_power_w(row.clock_mhz) for row in rows if row.batch_size)
    left = [job for job in jobs if job not in done]
    assert all(job.gone for job in left), "only those whose client has left do not end"
    final = driver.load()
    assert (final.batch_size, final.queued, final.queued_tokens) == (0, 0, 0)
    assert instance.arrived_requests == len(jobs)
    starts = [load.time_s for load in seen if load.batch_size]
    assert len(starts) == instance.iterations and starts == sorted(starts)
    assert instance.busy_s == pytest.approx(sum(e - r.time_s for r, e in zip(rows, ends, strict=True) if r.batch_size))


@pytest.mark.parametrize("phase", ["prefill", "decode"])
@given(plan=steps)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_how_often_time_is_told_does_not_matter(phase: Phase, plant: Plant, plan: list[Step]) -> None:
    punctual, first, *_ = make(phase, plant)
    live(punctual, plan, punctual.advance)
    restless, second, *_ = make(phase, plant)

    def in_small_steps(to_s: float) -> None:
        start_s = restless.now_s
        for part in range(1, 8):
            restless.advance(start_s + (to_s - start_s) * part / 8)
        restless.advance(to_s)

    live(restless, plan, in_small_steps)
    assert first == second
    assert punctual.instance.energy_j(punctual.now_s) == restless.instance.energy_j(punctual.now_s)


def test_a_clock_takes_effect_at_once_for_what_is_left(plant: Plant) -> None:
    driver = make("decode", plant).driver
    job = job_of(0, 0.0, 400, 3)
    job.produced = 1
    driver.submit(job)
    fast, slow = plant.decode(1, 401, 1410).duration_s, plant.decode(1, 401, 705).duration_s
    driver.advance(0.25 * fast)
    driver.set_clock(705)
    assert driver.next_s == pytest.approx(0.25 * fast + 0.75 * slow)
    driver.advance(driver.next_s)
    assert driver.next_s - driver.now_s == pytest.approx(plant.decode(1, 402, 705).duration_s)


def test_time_told_while_tokens_are_handed_on_is_lived_through_later(plant: Plant) -> None:
    """As a client does that has sent its next request before it has the answer to this one."""
    tokens: list[tuple[int, int]] = []

    def token(job: Job) -> None:
        tokens.append((job.request.request_id, job.produced))
        driver.advance(driver.now_s + 1.0)

    driver, _, done, _ = make("decode", plant, token)
    jobs = [job_of(number, 0.0, 100, 2 + number) for number in range(3)]
    for job in jobs:
        job.produced = 1
        driver.at(0.0, partial(driver.submit, job))
    while driver.next_s < math.inf:
        driver.advance(driver.next_s)
    assert sorted(tokens) == [(number, made) for number in range(3) for made in range(1, 3 + number)]
    assert done == jobs and driver.instance.iterations == 4


def test_a_power_cap_lowers_the_draw(plant: Plant) -> None:
    driver = make("prefill", plant).driver
    driver.submit(job_of(0, 0.0, 300, 1))
    free_w = driver.instance.power_w
    driver.set_clock(1410, 200.0)
    assert driver.instance.power_w <= 200.0 + 1e-6 < free_w
