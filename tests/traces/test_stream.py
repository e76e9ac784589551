"""Laws that every trace and every arrival process obeys."""

import doctest
import subprocess
import sys
import tracemalloc
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import voltana.traces.stream
from voltana.errors import UserError
from voltana.traces import ArrivalProcess, LengthSource, Request, request_stream
from voltana.traces.arrivals import Curve, Gamma, Poisson, Timestamps, Uniform
from voltana.traces.lengths import Fixed, LogNormal
from voltana.traces.table import TableLengths

rates = st.floats(0.01, 1000)
seeds = st.integers(0, 2**32)
arrival_processes = st.one_of(
    st.builds(Poisson, rate=rates),
    st.builds(Gamma, rate=rates, burstiness=st.floats(0.1, 10)),
    st.builds(Uniform, rate=rates),
    st.builds(
        Curve,
        rate=rates,
        shape=st.lists(st.floats(0.01, 100), min_size=2, max_size=5),
        period_s=st.floats(0.1, 1000),
    ),
)
limits = st.none() | st.integers(200, 3000)
length_sources = st.one_of(
    st.builds(
        Fixed,
        input_tokens=st.integers(1, 5000),
        output_tokens=st.integers(1, 5000),
        geometric=st.sampled_from([None, "input", "output", "both"]),
    ),
    st.builds(
        LogNormal,
        input_mean=st.floats(1, 500),
        input_sigma=st.floats(0, 2),
        input_min=st.integers(1, 5),
        input_max=st.integers(5, 4000),
        output_mean=st.floats(1, 100),
        output_sigma=st.floats(0, 2),
        output_min=st.integers(1, 5),
        output_max=st.integers(5, 100),
    ),
    st.builds(
        TableLengths,
        table=st.sampled_from(["sharegpt", "lmsys"]),
        scale=st.floats(0.1, 3),
        max_total_tokens=limits,
    ),
)
ONE = Fixed(input_tokens=1, output_tokens=1)


def take(
    lengths: LengthSource, arrivals: ArrivalProcess, *, seed: int = 1, n: int = 300, block: int = 8192
) -> list[Request]:
    return list(request_stream(lengths, arrivals, duration_s=None, requests=n, seed=seed, block_requests=block))


@pytest.mark.slow
@given(length_sources, arrival_processes, seeds, st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_the_same_seed_gives_the_same_stream_whatever_the_block_size(
    lengths: LengthSource, arrivals: ArrivalProcess, seed: int, block: int
) -> None:
    assert take(lengths, arrivals, seed=seed) == take(lengths, arrivals, seed=seed, block=block)


@given(length_sources, arrival_processes, seeds)
@settings(max_examples=40, deadline=None)
def test_requests_are_numbered_ordered_and_at_least_one_token_long(
    lengths: LengthSource, arrivals: ArrivalProcess, seed: int
) -> None:
    requests = take(lengths, arrivals, seed=seed)
    arrival_s = [request.arrival_s for request in requests]
    assert [request.request_id for request in requests] == list(range(300))
    assert arrival_s == sorted(arrival_s)
    assert arrival_s[0] >= 0
    assert min(min(request.input_tokens, request.output_tokens) for request in requests) >= 1


@given(arrival_processes, seeds, st.floats(0.1, 50), st.integers(1, 500))
@settings(max_examples=40, deadline=None)
def test_the_earlier_bound_ends_the_stream(arrivals: ArrivalProcess, seed: int, duration_s: float, n: int) -> None:
    unbounded = take(ONE, arrivals, seed=seed, n=n)
    bounded = list(request_stream(ONE, arrivals, duration_s=duration_s, requests=n, seed=seed))
    assert bounded == [request for request in unbounded if request.arrival_s <= duration_s]


@pytest.mark.parametrize(("duration_s", "n", "ended_by"), [(2.5, 9, "duration_s"), (9.5, 2, "requests")])
def test_a_stream_tells_what_ended_it_and_what_it_was_told(duration_s: float, n: int, ended_by: str) -> None:
    facts = {"process": "uniform"}
    stream = request_stream(ONE, Uniform(rate=1), duration_s=duration_s, requests=n, seed=1, facts=facts)
    assert stream.about() == {"process": "uniform", "ended_by": None}
    assert len(list(stream)) == 2
    assert stream.about() == {"process": "uniform", "ended_by": ended_by}


def test_a_run_without_requests_names_the_first_that_would_have_come() -> None:
    stream = request_stream(ONE, Uniform(rate=0.1), duration_s=5, requests=None, seed=1)
    assert list(stream) == []
    assert str(stream.none_arrived()) == (
        "duration_s: no request arrives within it (the first at 10 s), allowed: long enough for at least one"
    )


@given(length_sources, rates, rates, seeds)
@settings(max_examples=20, deadline=None)
def test_another_rate_keeps_the_lengths_and_stretches_the_arrivals(
    lengths: LengthSource, slow: float, fast: float, seed: int
) -> None:
    first, second = (take(lengths, Poisson(rate=rate), seed=seed) for rate in (slow, fast))
    assert [request[2:] for request in first] == [request[2:] for request in second]
    assert [r.arrival_s * slow for r in first] == pytest.approx([r.arrival_s * fast for r in second])


@pytest.mark.slow
@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_stated_mean_and_variation(burstiness: float) -> None:
    requests = take(ONE, Gamma(rate=20, burstiness=burstiness), n=100_000)
    gaps = np.diff([0.0, *(request.arrival_s for request in requests)])
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.02)


def test_burstiness_one_is_poisson() -> None:
    assert take(ONE, Gamma(rate=7, burstiness=1)) == take(ONE, Poisson(rate=7))


def test_poisson_counts_have_equal_mean_and_variance() -> None:
    arrival_s = [request.arrival_s for request in take(ONE, Poisson(rate=50), n=100_000)]
    counts = np.bincount(np.array(arrival_s, dtype=int))[:-1]
    assert counts.mean() == pytest.approx(50, rel=0.02)
    assert counts.var() == pytest.approx(50, rel=0.1)


def test_a_curve_brings_as_many_as_its_integral() -> None:
    """1 at the start, 3 in the middle, linear in between: quarters of a period have 3, 5, 5 and 3 sixteenths."""
    times = np.array(
        [request.arrival_s for request in take(ONE, Curve(rate=20, shape=[1, 3], period_s=100), n=200_000)]
    )
    quarters = np.bincount((times / 25).astype(int))[: 4 * int(times[-1] / 100)].reshape(-1, 4).sum(0)
    expected = quarters.sum() * np.array([3, 5, 5, 3]) / 16
    assert (abs(quarters - expected) < 4 * np.sqrt(expected)).all()
    assert len(times) / times[-1] == pytest.approx(20, rel=0.01)


def test_a_flat_curve_is_poisson() -> None:
    flat, poisson = (take(ONE, each) for each in (Curve(rate=7, shape=[2, 2, 2], period_s=5), Poisson(rate=7)))
    assert [request.arrival_s for request in flat] == pytest.approx([request.arrival_s for request in poisson])


@pytest.mark.parametrize("shape", [3.0, "12", [1.0], [1.0, 0.0], [1.0, "x"]])
def test_a_curve_that_is_none_is_refused(shape: Any) -> None:
    with pytest.raises(UserError, match=r"arrival\.shape: found "):
        Curve(rate=1, shape=shape, period_s=10)


def test_uniform_makes_exactly_rate_times_duration_requests() -> None:
    requests = list(request_stream(ONE, Uniform(rate=10), duration_s=100, requests=None, seed=1, block_requests=7))
    assert len(requests) == 1000
    assert requests[-1].arrival_s == 100


@given(length_sources.filter(lambda source: isinstance(source, TableLengths)), seeds)
@settings(max_examples=20, deadline=None)
def test_no_request_exceeds_the_context_filter(source: TableLengths, seed: int) -> None:
    limit = source.max_total_tokens or 10**9
    for request in take(source, Uniform(rate=1), seed=seed):
        assert request.input_tokens + request.output_tokens <= limit


def test_log_normal_keeps_its_mean_and_its_clips() -> None:
    source = LogNormal(
        input_mean=226,
        input_sigma=1.0,
        input_min=4,
        input_max=1_000_000,
        output_mean=202,
        output_sigma=0.8,
        output_min=150,
        output_max=300,
    )
    requests = take(source, Uniform(rate=1), n=100_000)
    assert np.mean([request.input_tokens for request in requests]) == pytest.approx(226, rel=0.02)
    outputs = [request.output_tokens for request in requests]
    assert (min(outputs), max(outputs)) == (150, 300)


def test_geometric_lengths_have_the_mean_and_variance_of_the_law() -> None:
    requests = take(Fixed(input_tokens=8, output_tokens=3, geometric="input"), Uniform(rate=1), n=100_000)
    inputs = np.array([request.input_tokens for request in requests])
    assert inputs.mean() == pytest.approx(8, rel=0.02)
    assert inputs.var() == pytest.approx(8 * 7, rel=0.03)
    assert {request.output_tokens for request in requests} == {3}


def test_memory_does_not_grow_with_the_trace() -> None:
    stream = request_stream(TableLengths(table="sharegpt"), Poisson(rate=100), duration_s=None, requests=10**9, seed=1)
    next(stream)
    tracemalloc.start()
    try:
        for _ in islice(stream, 50_000):
            pass
        assert tracemalloc.get_traced_memory()[1] < 8e6
    finally:
        tracemalloc.stop()


def test_importing_traces_stays_light() -> None:
    modules = "voltana.traces.table, voltana.traces.files"
    script = f"import sys, {modules}; sys.exit('pandas' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_documented_examples_run() -> None:
    assert doctest.testmod(voltana.traces.stream).failed == 0


@pytest.mark.parametrize(
    ("duration_s", "requests", "seed", "message"),
    [
        (
            None,
            None,
            1,
            "duration_s: found null, allowed: a number > 0; null with requests=N, "
            "or with a trace that ends (a file, not repeated)",
        ),
        (0, None, 1, "duration_s: found 0, allowed: a number > 0"),
        (float("inf"), None, 1, "duration_s: found inf, allowed: a number > 0"),
        (None, 0, 1, "requests: found 0, allowed: null or an integer >= 1"),
        (10, None, -1, "seed: found -1, allowed: an integer >= 0"),
    ],
)
def test_bad_bounds_are_refused_at_once(
    duration_s: float | None, requests: int | None, seed: int, message: str
) -> None:
    with pytest.raises(UserError) as error:
        request_stream(ONE, Uniform(rate=1), duration_s=duration_s, requests=requests, seed=seed)
    assert str(error.value) == message


def test_timestamps_need_a_trace_that_has_them() -> None:
    with pytest.raises(UserError) as error:
        take(ONE, Timestamps())
    assert str(error.value) == (
        "arrival=timestamps: found 'a trace without arrival times', allowed: trace=file with an arrival column"
    )
