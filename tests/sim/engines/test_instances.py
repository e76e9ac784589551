"""How batches form: prefill's token budget, decode's KV capacity."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from voltana.record import RunRecord

Run = Callable[..., RunRecord]
ONE_OF_EACH = ("cluster.prefill_instances=1", "cluster.decode_instances=1", "policy=static_max")


@pytest.fixture
def trace(tmp_path: Path) -> Callable[..., list[str]]:
    """Overrides that replay (arrival, input, output) rows on one prefill and one decode instance."""

    def write(*rows: tuple[float, int, int]) -> list[str]:
        path = tmp_path / "trace.csv"
        path.write_text("arrival_s,input_tokens,output_tokens\n" + "".join(f"{a},{i},{o}\n" for a, i, o in rows))
        replay = ("trace=file", f"trace.path={path}", "arrival=timestamps", "duration_s=null", "requests=1000")
        return [*replay, *ONE_OF_EACH]

    return write


def _batches(record: RunRecord, phase: str) -> pd.DataFrame:
    rows = record.instances()
    return rows[(rows.phase == phase) & (rows.batch_size > 0)]


def test_prefill_batches_first_come_first_served_within_the_budget(run: Run, trace: Callable[..., list[str]]) -> None:
    first = [(0.0, 4000, 2)]
    waiting = [(0.001 * i, 300, 2) for i in range(1, 11)]
    record = run(*trace(*first, *waiting), "serving.prefill.max_tokens=1000")
    requests = record.requests()
    starts = requests.groupby("prefill_start_s").input_tokens
    assert starts.sum().tolist() == [4000, 900, 900, 900, 300]
    assert requests.prefill_start_s.is_monotonic_increasing


def test_chunked_prefill_never_exceeds_the_chunk(run: Run, trace: Callable[..., list[str]]) -> None:
    jobs = trace((0.0, 1000, 2), (0.001, 300, 2), (0.002, 900, 2))
    whole, chunked = run(*jobs), run(*jobs, "serving.prefill.chunk_tokens=256")
    assert _batches(chunked, "prefill").kv_tokens.max() <= 256
    assert chunked.requests().first_token_s.is_monotonic_increasing
    assert chunked.requests().first_token_s.iloc[-1] > whole.requests().first_token_s.iloc[-1]


def test_a_batch_holds_at_most_max_requests(run: Run, trace: Callable[..., list[str]]) -> None:
    jobs = trace((0.0, 2000, 40), *((0.001, 20, 40) for _ in range(9)))
    record = run(*jobs, "serving.prefill.max_requests=4", "serving.decode.max_requests=3")
    assert _batches(record, "prefill").batch_size.max() == 4
    assert _batches(record, "decode").batch_size.max() == 3
    assert record.summary["requests"]["completed"] == 10


def test_decode_keeps_its_reserve_when_it_admits(run: Run, trace: Callable[..., list[str]]) -> None:
    jobs = trace(*((0.0, 100, 50) for _ in range(6)))
    record = run(*jobs, "serving.decode.kv_tokens=1000", "serving.decode.reserve_tokens=200")
    batches = _batches(record, "decode")
    assert batches.batch_size.max() == 3
    assert (batches.kv_tokens <= 1000).all()
    assert record.summary["requests"]["completed"] == 6


def test_a_full_cache_retracts_and_everyone_still_finishes(run: Run, trace: Callable[..., list[str]]) -> None:
    jobs = trace(*((0.0, 100, 150) for _ in range(6)))
    record = run(*jobs, "serving.decode.kv_tokens=800", "serving.decode.reserve_tokens=0")
    batches = _batches(record, "decode")
    assert (batches.kv_tokens <= 800).all()
    sizes = batches.batch_size.tolist()
    assert max(sizes) == 6 and any(after < before for before, after in pairwise(sizes))
    assert record.summary["requests"] == {"submitted": 6, "completed": 6, "failed": 0, "unfinished": 0}


def test_what_can_never_fit_fails_and_the_rest_goes_on(run: Run, trace: Callable[..., list[str]]) -> None:
    jobs = trace((0.0, 900, 5), (0.0, 100, 900), (0.0, 100, 50))
    record = run(*jobs, "serving.decode.kv_tokens=800", "serving.decode.reserve_tokens=0")
    requests = record.requests()
    assert requests.status.tolist() == ["failed", "failed", "completed"]
    assert requests.finish_s.isna().tolist() == [True, True, False]
    assert record.summary["ttft_attainment"] == pytest.approx(1 / 3)


def test_who_outgrows_the_cache_leaves_it_to_those_who_wait(run: Run, trace: Callable[..., list[str]]) -> None:
    jobs = trace((0.0, 700, 900), (0.0, 700, 40), (0.0, 799, 5), (0.0, 798, 2))
    record = run(*jobs, "serving.decode.kv_tokens=800", "serving.decode.reserve_tokens=0")
    requests = record.requests().sort_values("request_id")
    assert requests.status.tolist() == ["failed", "completed", "failed", "completed"]
    assert (_batches(record, "decode").kv_tokens <= 800).all()


def test_a_client_waits_for_its_first_token_until_decode_has_a_place(run: Run, trace: Callable[..., list[str]]) -> None:
    jobs = trace((0.0, 100, 50), (0.001, 100, 5), (0.002, 100, 1))
    requests = run(*jobs, "serving.decode.max_requests=1").requests().sort_values("request_id")
    first, finish = requests.first_token_s.tolist(), requests.finish_s.tolist()
    assert first[1:] == finish[:2] and finish[2] == first[2]
    assert (requests.ttft_s == requests.first_token_s - requests.arrival_s).all()
    assert requests.max_itl_s.iloc[1] == pytest.approx(requests.mean_itl_s.iloc[1], rel=0.01)
    assert (requests.decode_instance == "decode-0").all()


def test_the_front_end_serves_one_leg_after_another(run: Run, trace: Callable[..., list[str]]) -> None:
    jobs = trace((0.0, 100, 1), (0.0, 100, 1), (0.0, 100, 1))
    record = run(
        *jobs,
        "cluster.prefill_instances=3",
        "front_end.leg_s=0.5",
        "front_end.stall_legs=4",
        "cluster.link.latency_s=0",
    )
    requests = record.requests().sort_values("request_id")
    assert requests.prefill_start_s.min() == pytest.approx(0.5)
    left = (requests.first_token_s - 100 * 131072 / 25e9).tolist()
    assert sorted(left) == pytest.approx([2.3, 2.8, 3.3], abs=1e-3)  # the stall of 0.3 s comes with the fourth leg


def test_kv_travels_before_decode_starts(run: Run, trace: Callable[..., list[str]]) -> None:
    jobs = trace((0.0, 1000, 2))
    link = ("cluster.link.latency_s=0.5", "cluster.link.streams=1", "cluster.link.bytes_per_s=1e9")
    slow = run(*jobs, "front_end=none", *link)
    row = slow.requests().iloc[0]
    assert row.first_token_s - row.prefill_end_s == pytest.approx(0.5 + 1000 * 131072 / 1e9)
