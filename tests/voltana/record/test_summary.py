"""The numbers of a run: a small one computed by hand, then the laws."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltana.record import COMPLETED, FAILED, UNFINISHED, RequestRow
from voltana.record.summary import InstanceTotals, SummaryBuilder, arrivals_in_words, measured, rate_in_words
from voltana.state import Slo

SLO = Slo(ttft_s=0.5, itl_s=0.05)


def done(ttft_s: float, itl_s: float | None, tokens: int = 11, arrival_s: float = 0.0) -> RequestRow:
    """A request that ended; without an ITL it has one token."""
    tokens = 1 if itl_s is None else tokens
    finish_s = arrival_s + ttft_s + (tokens - 1) * (itl_s or 0)
    first_s = arrival_s + ttft_s
    return RequestRow(
        0, arrival_s, 10, tokens, "p", "d", arrival_s, first_s, first_s, finish_s, ttft_s, itl_s, itl_s, COMPLETED
    )


def lost(status: str) -> RequestRow:
    return RequestRow(0, 0.0, 10, 1000, *[None] * 9, status)  # type: ignore[arg-type]


def summarise(*rows: RequestRow, instances: dict[str, InstanceTotals] | None = None, **extra: Any) -> dict[str, Any]:
    builder = SummaryBuilder("sim", SLO, {"frequency": "static", "router": "random"})
    for row in rows:
        builder.add(row)
    return builder.build(instances or {}, **extra)


def test_a_run_computed_by_hand() -> None:
    builder = SummaryBuilder("sim", SLO, {"frequency": "ecofreq", "router": "ecoroute"})
    for row in (
        done(0.2, 0.04, tokens=11, arrival_s=1.0),  # meets both
        done(0.4, 0.06, tokens=51, arrival_s=2.0),  # too slow between tokens; ends last, at 5.4 s
        done(0.6, 0.02, tokens=21, arrival_s=2.5),  # late first token
        done(0.3, None, arrival_s=3.0),  # one token: meets both
        lost(FAILED),
        lost(UNFINISHED),
    ):
        builder.add(row)
    builder.start_s = 1.0
    builder.gaps, builder.gaps_in_slo = 80, 60
    instances = {
        "prefill-0": InstanceTotals("prefill", 100.0, 3),
        "prefill-1": InstanceTotals("prefill", 140.0, 1),
        "decode-0": InstanceTotals("decode", 200.0, 0),
    }
    found = builder.build(instances, wall_s=0.25)
    assert found.pop("ttft_ms") == pytest.approx({"mean": 375, "p50": 350, "p90": 540, "p95": 570, "p99": 594})
    assert found.pop("itl_ms") == pytest.approx({"mean": 40, "p50": 40, "p90": 56, "p95": 58, "p99": 59.6})
    e2e_ms = {"mean": 1325, "p50": 800, "p90": 2680, "p95": 3040, "p99": 3328}  # of 300, 600, 1000 and 3400
    assert found.pop("e2e_ms") == pytest.approx(e2e_ms)
    assert found.pop("goodput_per_s") == pytest.approx(2 / 4.4)
    assert found.pop("throughput") == pytest.approx({"requests_per_s": 4 / 4.4, "output_tokens_per_s": 84 / 4.4})
    assert found.pop("mean_power_w") == pytest.approx(100)
    assert found.pop("duration_s") == pytest.approx(4.4)
    assert found.pop("end_s") == pytest.approx(5.4)
    assert found.pop("energy_per_output_token_j") == pytest.approx(440 / 84)
    assert found == {
        "source": "sim",
        "requests": {"submitted": 6, "completed": 4, "failed": 1, "unfinished": 1},
        "arrivals": {"count": 6, "span_s": 2.0, "rate_per_s": 2.5},
        "start_s": 1.0,
        "slo": {"ttft_ms": 500.0, "itl_ms": 50.0},
        "ttft_attainment": 3 / 6,
        "itl_attainment": 3 / 6,
        "token_itl_attainment": 60 / 80,
        "joint_attainment": 2 / 6,
        "energy_j": {
            "total": 440.0,
            "prefill": 240.0,
            "decode": 200.0,
            "per_instance": {"prefill-0": 100.0, "prefill-1": 140.0, "decode-0": 200.0},
        },
        "energy_per_request_j": 110.0,
        "clock_changes": 4,
        "policy": {"frequency": "ecofreq", "router": "ecoroute"},
        "wall_s": 0.25,
    }


def test_what_arrived_is_told_besides_what_was_measured_of_it() -> None:
    about = {"process": "poisson", "requested_rps": 75, "ended_by": "duration_s"}
    builder = SummaryBuilder("live", SLO, {}, lambda: about, start_s=2.0)
    for arrival_s in (4.0, 2.0, 3.0):
        builder.add(done(0.1, 0.01, arrival_s=arrival_s))
    assert builder.build({})["arrivals"] == {**about, "count": 3, "span_s": 2.0, "rate_per_s": 1.0}


def test_one_request_or_all_at_once_have_no_rate() -> None:
    assert measured(1, 2.5, 2.5) == {"count": 1, "span_s": 0.0, "rate_per_s": None}
    assert measured(3, 2.5, 2.5)["rate_per_s"] is None


def test_arrivals_in_words() -> None:
    replay = {
        "process": "timestamps",
        "requested_rps": None,
        "ended_by": "trace",
        "rows_read": 303,
        "skipped": [{"reason": "output_tokens is 0", "count": 3, "first_line": 14}],
        "ignored": ["hash_ids"],
        "counted_from": "1700000000",
        **measured(300, 0.0, 29.9),
    }
    assert rate_in_words(replay) == "the trace's 10 requests/s"
    assert arrivals_in_words(replay) == [
        ("arrivals", "timestamps: 300 requests in 29.9 s, 10/s, then the trace ended"),
        ("times counted from", "1700000000"),
        ("rows skipped", "3 of 303: output_tokens is 0 (first in line 14)"),
        ("not modelled", "hash_ids of the trace"),
    ]
    drawn = {"process": "poisson", "requested_rps": 75, "ended_by": "duration_s", **measured(9000, 0.1, 119.9)}
    assert rate_in_words(drawn) == "75 requests/s"
    assert arrivals_in_words(drawn) == [("arrivals", "poisson: 9000 requests in 119.8 s, 75.1/s")]
    single = {"process": "timestamps", "requested_rps": None, **measured(1, 3.0, 3.0)}
    assert rate_in_words(single) == "one request"
    assert arrivals_in_words(single) == [("arrivals", "timestamps: 1 requests in 0.0 s")]


def test_an_objective_is_met_when_it_is_reached_exactly() -> None:
    found = summarise(done(SLO.ttft_s, SLO.itl_s))
    assert (found["ttft_attainment"], found["itl_attainment"], found["joint_attainment"]) == (1, 1, 1)


def test_the_end_may_be_after_the_last_request() -> None:
    builder = SummaryBuilder("sim", SLO, {}, end_s=9.0)
    builder.add(done(0.2, 0.04))
    assert builder.build({})["duration_s"] == 9.0


@pytest.mark.parametrize("rows", [[], [lost(FAILED)], [lost(UNFINISHED)]])
def test_what_cannot_be_known_is_null_not_zero(rows: list[RequestRow]) -> None:
    found = summarise(*rows)
    unknown = {"mean": None, "p50": None, "p90": None, "p95": None, "p99": None}
    assert found["ttft_ms"] == found["itl_ms"] == found["e2e_ms"] == unknown
    assert found["goodput_per_s"] is None
    assert found["token_itl_attainment"] is None
    assert found["energy_per_request_j"] is None
    assert found["energy_per_output_token_j"] is None
    assert found["mean_power_w"] is None
    assert found["joint_attainment"] == (0 if rows else None)


def test_one_token_answers_have_no_itl_and_meet_its_objective() -> None:
    found = summarise(done(0.1, None), done(0.9, None))
    assert found["itl_ms"]["mean"] is None
    assert (found["itl_attainment"], found["ttft_attainment"], found["joint_attainment"]) == (1.0, 0.5, 0.5)


def test_keys_of_the_design_are_all_there() -> None:
    keys = """source requests duration_s slo ttft_attainment itl_attainment token_itl_attainment joint_attainment
        ttft_ms itl_ms e2e_ms goodput_per_s energy_j energy_per_request_j energy_per_output_token_j mean_power_w
        throughput clock_changes policy"""
    assert set(keys.split()) <= set(summarise())


seconds = st.floats(1e-4, 10)
rows = st.lists(
    st.builds(done, seconds, st.none() | seconds, st.integers(2, 500), st.floats(0, 1000))
    | st.sampled_from([lost(FAILED), lost(UNFINISHED)]),
    min_size=1,
)
totals = st.dictionaries(
    st.sampled_from(["p0", "p1", "d0", "d1"]),
    st.builds(InstanceTotals, st.sampled_from(["prefill", "decode"]), st.floats(0, 1e6), st.integers(0, 99)),
)


@settings(max_examples=40)
@given(rows)
def test_attainments_are_shares_and_joint_is_the_least(rows: list[RequestRow]) -> None:
    found = summarise(*rows)
    ttft, itl, joint = (found[f"{name}_attainment"] for name in ("ttft", "itl", "joint"))
    assert 0 <= joint <= min(ttft, itl) <= max(ttft, itl) <= 1
    assert joint >= ttft + itl - 1 - 1e-12
    assert max(ttft, itl) <= found["requests"]["completed"] / len(rows)


@settings(max_examples=40)
@given(rows, totals)
def test_nothing_is_lost(rows: list[RequestRow], instances: dict[str, InstanceTotals]) -> None:
    found = summarise(*rows, instances=instances)
    counts, energy = found["requests"], found["energy_j"]
    assert counts["completed"] + counts["failed"] + counts["unfinished"] == counts["submitted"] == len(rows)
    assert energy["prefill"] + energy["decode"] == pytest.approx(energy["total"])
    assert math.fsum(energy["per_instance"].values()) == pytest.approx(energy["total"])


@settings(max_examples=40)
@given(rows)
def test_percentiles_are_those_of_the_requests(rows: list[RequestRow]) -> None:
    ttft_ms = [1e3 * row.ttft_s for row in rows if row.ttft_s is not None]
    found = summarise(*rows)["ttft_ms"]
    if ttft_ms:
        assert found["p50"] <= found["p90"] <= found["p95"] <= found["p99"] <= max(ttft_ms) * (1 + 1e-12)
        assert [found["mean"], found["p50"]] == pytest.approx([np.mean(ttft_ms), np.median(ttft_ms)])


@settings(max_examples=40)
@given(rows, totals)
def test_the_order_of_the_ends_does_not_matter(rows: list[RequestRow], instances: dict[str, InstanceTotals]) -> None:
    forward, backward = (summarise(*each, instances=instances) for each in (rows, rows[::-1]))
    for found in (forward, backward):
        for name in ("ttft_ms", "itl_ms", "e2e_ms"):
            found[name] = {key: value and round(value, 6) for key, value in found[name].items()}
    assert forward == backward


@settings(max_examples=40)
@given(rows, totals)
def test_a_summary_is_json(rows: list[RequestRow], instances: dict[str, InstanceTotals]) -> None:
    found = summarise(*rows, instances=instances)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_arrivals_too_close_for_a_rate_have_none() -> None:
    assert measured(2, 0.0, 5e-324)["rate_per_s"] is None
