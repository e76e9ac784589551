"""Both engines against queueing theory where it has closed forms.

The physics is replaced by a plant whose work is exactly proportional to tokens, so that service times are known; the
instances, queues, batches, clocks and meters are the real ones.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np
import pandas as pd
import pytest

from voltana.app.serving import Actuation, DecodeLimits, Link, PrefillLimits, Sensor
from voltana.policies.balancers import RoundRobin
from voltana.record import RecordWriter, RunRecord
from voltana.sim.fast import FastCluster
from voltana.sim.plant import DecodeLine, Plant, Step
from voltana.sim.plant.build import Plants
from voltana.sim.reference.cluster import Cluster
from voltana.sim.serving.limits import FrontEnd
from voltana.sim.serving.recorder import Recorder
from voltana.sim.serving.spec import ClusterSpec
from voltana.state import Decision, LoadSnapshot, Slo
from voltana.traces import LengthSource, request_stream
from voltana.traces.arrivals import Poisson
from voltana.traces.lengths import Fixed
from voltana.traces.stream import Block

pytestmark = pytest.mark.slow

CLOCKS = (700, 1400)
ENGINES = {"reference": Cluster, "fast": FastCluster}
MANY = {"reference": 8_000, "fast": 30_000}
BATCHES = 30
"""Of consecutive requests or windows of time; their means are nearly independent."""
SIGMAS = 4
PREFILL_S = 1e-5
"""Prefill time of a token at the highest clock."""
BUSY_W, IDLE_W = 300.0, 50.0


@dataclass(frozen=True)
class LinearPlant:
    """A plant without fixed costs: work is a number of cycles per token, and a clock does so many a second.

    Prefill takes `prefill_s` a token at the highest clock, a decode iteration `decode_s` plus `kv_s` per KV token.
    """

    prefill_s: float = PREFILL_S
    decode_s: float = 0.0
    kv_s: float = 0.0
    kv_bytes_per_token: ClassVar[int] = 1
    gpu: ClassVar[Any] = SimpleNamespace(clocks=lambda: CLOCKS, power_limit_min_w=100, power_limit_w=400)
    model: ClassVar[Any] = SimpleNamespace(tp=1)

    def idle_power_w(self, clock_mhz: float) -> float:
        return IDLE_W

    def prefill(
        self, requests: int, tokens: int, token_pairs: float, clock_mhz: float, limit_w: float | None = None
    ) -> Step:
        return Step(self.prefill_s * tokens * CLOCKS[-1] / clock_mhz, self._power_w(clock_mhz), clock_mhz)

    def decode(self, batch_size: int, kv_tokens: int, clock_mhz: float, limit_w: float | None = None) -> Step:
        seconds = (self.decode_s + self.kv_s * kv_tokens) * CLOCKS[-1] / clock_mhz
        return Step(seconds, self._power_w(clock_mhz), clock_mhz)

    def decode_line(
        self, batch_size: int, clock_mhz: float, kv_tokens: float = 0.0, limit_w: float | None = None
    ) -> DecodeLine:
        slower, power = CLOCKS[-1] / clock_mhz, self._power_w(clock_mhz)
        t0, t1 = self.decode_s * slower, self.kv_s * slower
        return DecodeLine(t0, t1, t0 * power, t1 * power, math.inf)

    def _power_w(self, clock_mhz: float) -> float:
        """The same energy per cycle at every clock."""
        return BUSY_W * clock_mhz / CLOCKS[-1]


class HighestClock:
    """Never anything else."""

    def decide(self, load: LoadSnapshot) -> Decision:
        return Decision(CLOCKS[-1], holds_below_tokens=math.inf)


class FlickeringClock:
    """Another clock for every other batch size: commands fall into the middle of iterations."""

    def decide(self, load: LoadSnapshot) -> Decision:
        return Decision(CLOCKS[load.batch_size % 2], holds_below_tokens=math.inf)


@dataclass(frozen=True)
class TwoLengths:
    """Short prompts, and a share of long ones."""

    short: int
    long: int
    share: float

    def blocks(self, rng: np.random.Generator, size: int) -> Iterator[Block]:
        while True:
            inputs = np.where(rng.random(size) < self.share, self.long, self.short)
            yield Block(inputs, np.ones(size, dtype=np.int64))


def cluster_of(plant: LinearPlant, **other: Any) -> ClusterSpec:
    """One prefill and one decode instance; prompts are prefilled one by one."""
    parts: dict[str, Any] = {
        "prefill_limits": PrefillLimits(max_tokens=1 << 30, max_requests=1, chunk_tokens=None),
        "decode_limits": DecodeLimits(max_requests=1 << 30, kv_tokens=1 << 30, reserve_tokens=0),
        "link": Link(latency_s=0.0, bytes_per_s=1e15, streams=1 << 30),
        "actuation": Actuation(name="", block_s=0.0, settle_s=0.0),
        "sensor": Sensor(name="", period_s=0.1, window_s=0.1, error=0.0),
        "seed": 0,
        "front_end": FrontEnd(name="", leg_s=0.0, stall_s=0.0, stall_legs=None),
        "hosts": [0] * 64,
        "prefill_controllers": [HighestClock()],
        "decode_controllers": [HighestClock()],
        "prefill_router": RoundRobin(),
        "decode_router": RoundRobin(),
    }
    return ClusterSpec(plants=Plants(*[cast(Plant, plant)] * 2), **{**parts, **other})


@pytest.fixture(params=list(ENGINES), scope="module", name="engine")
def _engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(name="simulate")
def _simulate(engine: str, tmp_path: Path) -> Callable[..., RunRecord]:
    """Run a cluster under Poisson arrivals and read its record."""

    def go(spec: ClusterSpec, lengths: LengthSource, rate: float, requests: int, seed: int = 3) -> RunRecord:
        stream = request_stream(lengths, Poisson(rate=rate), duration_s=None, requests=requests, seed=seed)
        with RecordWriter(tmp_path, {}) as writer:
            recorder = Recorder(writer, Slo(1.0, 1.0), {})
            cluster = ENGINES[engine](spec, stream, recorder, writer.instance)
            cluster.run()
            recorder.close(cluster.now_s, cluster.meters, 1.0, interrupted=False)
        return RunRecord(tmp_path)

    return go


def assert_mean(values: np.ndarray, expected: float, precise: float) -> None:
    """The mean is the expected one within its sampling error, which is itself small enough to mean something."""
    means = np.array([batch.mean() for batch in np.array_split(values, BATCHES)])[1:]  # the first one warms up
    error = means.std(ddof=1) / math.sqrt(len(means))
    assert error < precise * expected, f"standard error {error / expected:.1%}"
    assert abs(means.mean() - expected) < SIGMAS * error, f"{means.mean()} +- {error}, expected {expected}"


# One server: a prefill instance that takes one prompt at a time

MEAN_TOKENS = 1000
SERVICES: dict[str, tuple[LengthSource, float]] = {
    # lengths, and E[L^2] / E[L]^2
    "M/D/1": (Fixed(input_tokens=MEAN_TOKENS, output_tokens=1), 1.0),
    "M/M/1": (Fixed(input_tokens=MEAN_TOKENS, output_tokens=1, geometric="input"), 2.0 - 1.0 / MEAN_TOKENS),
    "M/G/1": (TwoLengths(short=500, long=5500, share=0.1), (0.9 * 500**2 + 0.1 * 5500**2) / MEAN_TOKENS**2),
}
MEAN_SERVICE_S = PREFILL_S * MEAN_TOKENS


@dataclass(frozen=True)
class Queue:
    """A run of the one-server queue."""

    rate: float
    second_moment: float
    requests: pd.DataFrame
    prefill: pd.DataFrame
    start_s: float
    end_s: float

    @property
    def load(self) -> float:
        return self.rate * MEAN_SERVICE_S

    @property
    def waiting_s(self) -> np.ndarray:
        return (self.requests.prefill_start_s - self.requests.arrival_s).to_numpy()

    @property
    def service_s(self) -> np.ndarray:
        return PREFILL_S * self.requests.input_tokens.to_numpy()

    @property
    def seconds(self) -> np.ndarray:
        """How long each row of the instance holds."""
        return np.diff([*self.prefill.time_s, self.end_s])


@pytest.fixture(params=[("M/D/1", 0.7), ("M/M/1", 0.6), ("M/G/1", 0.5)], ids=lambda param: param[0])
def queue(request: pytest.FixtureRequest, engine: str, simulate: Callable[..., RunRecord]) -> Queue:
    name, load = request.param
    lengths, ratio = SERVICES[name]
    rate = load / MEAN_SERVICE_S
    record = simulate(cluster_of(LinearPlant()), lengths, rate, MANY[engine])
    rows, summary = record.instances(), record.summary
    prefill = rows[rows.instance == "prefill-0"]
    return Queue(rate, ratio * MEAN_SERVICE_S**2, record.requests(), prefill, summary["start_s"], summary["end_s"])


def test_one_server(engine: str, queue: Queue) -> None:
    _waits_obey_lindley(queue)
    _mean_wait_is_pollaczek_khinchine(queue, precise={"fast": 0.05, "reference": 0.12}[engine])
    _utilisation_is_load(queue)
    _little(queue)


def _waits_obey_lindley(queue: Queue) -> None:
    """W' = max(0, W + S - A), request by request."""
    waits, wait = [], 0.0
    gaps = np.diff(queue.requests.arrival_s)
    for service, gap in zip(queue.service_s, [*gaps, 0.0], strict=True):
        waits.append(wait)
        wait = max(0.0, wait + service - gap)
    np.testing.assert_allclose(queue.waiting_s, waits, rtol=0, atol=1e-9)
    in_prefill = queue.requests.prefill_end_s - queue.requests.arrival_s
    np.testing.assert_allclose(in_prefill, waits + queue.service_s, rtol=0, atol=1e-9)


def _mean_wait_is_pollaczek_khinchine(queue: Queue, precise: float) -> None:
    """lambda E[S^2] / (2 (1 - rho)); for exponential service rho / (1 - rho) E[S], for fixed half of it."""
    expected = queue.rate * queue.second_moment / (2 * (1 - queue.load))
    assert_mean(queue.waiting_s, expected, precise)
    assert_mean(queue.waiting_s > 1e-9, queue.load, precise)


def _utilisation_is_load(queue: Queue) -> None:
    """The busy share of the time is lambda E[S], and the busy time exactly the work that came."""
    busy_s = queue.seconds[queue.prefill.batch_size > 0].sum()
    assert busy_s == pytest.approx(queue.service_s.sum(), rel=1e-9)
    cv2_service = queue.second_moment / MEAN_SERVICE_S**2 - 1
    error = math.sqrt((1 + cv2_service) / len(queue.requests))
    assert busy_s / (queue.end_s - queue.start_s) == pytest.approx(queue.load, rel=SIGMAS * error)


def _little(queue: Queue) -> None:
    """L = lambda W, for those in service and for those who wait.

    Rows show the queue as it was when the batch began, so one that waits is seen from the next start on.
    """
    in_service = (queue.prefill.batch_size * queue.seconds).sum()
    waiting = (queue.prefill.queued * queue.seconds).sum()
    requests = queue.requests
    assert in_service == pytest.approx((requests.prefill_end_s - requests.prefill_start_s).sum(), rel=1e-9)
    starts = requests.prefill_start_s.to_numpy()
    seen = starts[np.searchsorted(starts, requests.arrival_s.to_numpy() - 1e-9)]
    assert waiting == pytest.approx((starts - seen).sum(), rel=1e-9)


# Any number of servers: decode whose iterations take the same time whatever the batch

ITERATION_S = 0.01
MEAN_OUTPUT = 21
OUTPUTS: dict[str, LengthSource] = {
    "M/D/inf": Fixed(input_tokens=1, output_tokens=MEAN_OUTPUT),
    "M/M/inf": Fixed(input_tokens=1, output_tokens=MEAN_OUTPUT, geometric="output"),
}


@pytest.mark.parametrize("outputs", OUTPUTS)
def test_decode_is_a_server_for_everybody(engine: str, simulate: Callable[..., RunRecord], outputs: str) -> None:
    """The number in the batch is Poisson with mean lambda E[S], whatever the distribution of lengths."""
    rate, plant = 40.0, LinearPlant(prefill_s=1e-7, decode_s=ITERATION_S)
    record = simulate(cluster_of(plant), OUTPUTS[outputs], rate, {"fast": 10_000, "reference": 5_000}[engine])
    requests = record.requests()
    decoded = requests[requests.output_tokens > 1]
    stay_s = decoded.finish_s - decoded.first_token_s
    np.testing.assert_allclose(stay_s, (decoded.output_tokens - 1) * ITERATION_S, atol=1e-9)
    expected = rate * (MEAN_OUTPUT - 1) * ITERATION_S
    last_s = requests.arrival_s.iloc[-1]
    number = _sampled(record, "decode-0", np.arange(0.0, last_s, ITERATION_S))
    assert_mean(number, expected, precise=0.04)
    assert_mean((number - expected) ** 2, expected, precise=0.12)


def _sampled(record: RunRecord, instance: str, times_s: np.ndarray) -> np.ndarray:
    """The batch size at these times."""
    rows = record.instances()
    rows = rows[rows.instance == instance]
    at = np.searchsorted(rows.time_s.to_numpy(), times_s, side="right") - 1
    return np.where(at < 0, 0, rows.batch_size.to_numpy()[at])


# Conservation


@pytest.mark.parametrize("chunk_tokens", [None, 300])
def test_work_is_conserved(simulate: Callable[..., RunRecord], chunk_tokens: int | None) -> None:
    """However requests are batched, cut, and run through changing clocks: the cycles spent are those they need."""
    plant = LinearPlant(kv_s=3e-7)
    spec = cluster_of(
        plant,
        prefill_limits=PrefillLimits(max_tokens=2000, max_requests=2, chunk_tokens=chunk_tokens),
        decode_limits=DecodeLimits(max_requests=64, kv_tokens=30_000, reserve_tokens=200),
        link=Link(latency_s=0.001, bytes_per_s=1e6, streams=2),
        actuation=Actuation(name="", block_s=0.003, settle_s=0.002),
        prefill_controllers=[FlickeringClock() for _ in range(2)],
        decode_controllers=[FlickeringClock() for _ in range(3)],
    )
    lengths = Fixed(input_tokens=400, output_tokens=100, geometric="both")
    record = simulate(spec, lengths, rate=250.0, requests=2000)
    requests, rows = record.requests(), _with_seconds(record)
    assert (requests.status == "completed").all()
    assert rows.clock_mhz.nunique() == 2 and record.summary["clock_changes"] > 1000
    assert (rows[rows.phase == "prefill"].queued > 0).mean() > 0.1
    inputs, gaps = requests.input_tokens, requests.output_tokens - 1
    held = gaps * inputs + gaps * (gaps + 1) / 2  # KV tokens at the start of every iteration, added up
    work_s = {"prefill": plant.prefill_s * inputs.sum(), "decode": plant.kv_s * held.sum()}
    busy = rows[rows.batch_size > 0]
    for phase, seconds in work_s.items():
        mine = busy[busy.phase == phase]
        assert (mine.clock_mhz * mine.seconds).sum() == pytest.approx(seconds * CLOCKS[-1], rel=1e-9)
        idle_s = rows[(rows.phase == phase) & (rows.batch_size == 0)].seconds.sum()
        energy = record.summary["energy_j"][phase]
        assert energy == pytest.approx(BUSY_W * seconds + IDLE_W * idle_s, rel=1e-9)


def test_requests_and_tokens_survive_retraction(simulate: Callable[..., RunRecord]) -> None:
    """A KV cache that is always full: requests are put back time and again, and every token is made once."""
    spec = cluster_of(
        LinearPlant(kv_s=1e-5), decode_limits=DecodeLimits(max_requests=64, kv_tokens=1500, reserve_tokens=0)
    )
    record = simulate(spec, Fixed(input_tokens=100, output_tokens=80), rate=50.0, requests=600)
    requests, rows = record.requests(), _with_seconds(record)
    decode = rows[rows.phase == "decode"]
    assert (requests.status == "completed").all()
    assert decode.kv_tokens.max() <= 1500
    held = 600 * (79 * 100 + 79 * 80 / 2)
    busy_s = decode[decode.batch_size > 0].seconds.sum()
    assert busy_s == pytest.approx(1e-5 * held, rel=1e-9)
    in_batch_s = (decode.batch_size * decode.seconds).sum()
    in_decode_s = (requests.finish_s - requests.first_token_s).sum()
    assert in_batch_s < in_decode_s * (1 - 1e-3)  # some were out of the batch in between
    tokens = record.summary["throughput"]["output_tokens_per_s"] * record.summary["duration_s"]
    assert tokens == pytest.approx(600 * 80)


def _with_seconds(record: RunRecord) -> pd.DataFrame:
    """The rows of the instances with how long each holds."""
    rows = record.instances()
    following = rows.groupby("instance").time_s.shift(-1).fillna(record.summary["end_s"])
    return rows.assign(seconds=following - rows.time_s)
