"""Planners: how many instances serve follows the load, up at once and down after a while."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import PolicyError
from voltana.policies.asked import AskedPlanner, Who
from voltana.policies.build import shipped
from voltana.policies.planner import LoadPlanner, Trend
from voltana.prediction.ecopred import BIN_ENDS, EcoPred, Line, Plane
from voltana.state import ClusterLoad, PhaseLoad, Placement, Slo

CLOCKS = tuple(range(210, 1411, 15))
PREDICTOR = EcoPred(
    [210, 1410],
    [Line(0.01, 1e-4), Line(0.01, 5e-5)],
    [[Plane(0.01, 2e-4, 1e-7)] * len(BIN_ENDS), [Plane(0.01, 1e-4, 5e-8)] * len(BIN_ENDS)],
)


def planner(**changes: Any) -> LoadPlanner:
    values = shipped("planner/reactive")["policy"] | {"hold_s": 0.0} | changes
    values.pop("_target_")
    return LoadPlanner(Slo(0.8, 0.05), CLOCKS, PREDICTOR, 400_000, **values)


def load(time_s: float, total: int, decoding: int = 1, kv: int = 300, instances: int = 4) -> ClusterLoad:
    return ClusterLoad(
        time_s, total, 200 * total, PhaseLoad(instances, 1, 0, 0), PhaseLoad(instances, 1, decoding, kv * decoding)
    )


@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(1, 6))
def test_more_load_never_needs_fewer(one: int, other: int, instances: int) -> None:
    few, many = sorted((one, other))
    low, high = (planner().plan(load(10.0, 0, count, instances=instances)) for count in (few, many))
    assert 1 <= low.decode <= high.decode <= instances


def test_instances_follow_the_load_up_at_once_and_down_after_a_while() -> None:
    plan = planner(hold_s=30.0).plan
    assert [plan(load(t, 0, n)).decode for t, n in ((10, 900), (20, 900))] == [4, 4]  # not yet known what is needed
    assert plan(load(40, 0, 10)).decode == plan(load(50, 0, 900)).decode > 1
    assert plan(load(60, 0, 10)).decode > 1
    assert plan(load(90, 0, 10)).decode == 1


def test_prefill_bears_the_arrivals() -> None:
    per_s = 0.6 * 1024 / PREDICTOR.prefill_s(1024, 1155)  # prompt tokens that an instance bears
    counts = []
    for share in (0.5, 1.5, 2.5):
        plan = planner(memory_s=1.0).plan
        for t in range(0, 100, 10):
            placement = plan(load(t, int(share * per_s / 200 * t)))
        counts.append(placement.prefill)
    assert counts == [1, 2, 3]


def test_a_trend_is_followed() -> None:
    rates = Trend(10.0)
    for t in range(0, 200, 5):
        rates.see(t, round(t * t / 10))  # the rate grows by 0.2 a second
    assert rates.rate(0.0) == pytest.approx(2 * 195 / 10, rel=0.05)
    assert rates.rate(30.0) - rates.rate(0.0) == pytest.approx(6.0, rel=0.1)


def test_the_predictive_one_wakes_sooner() -> None:
    def when(ahead_s: float) -> int:
        plan = planner(ahead_s=ahead_s).plan
        return next(t for t in range(0, 600, 10) if plan(load(t, t * t // 10, 2 * t)).decode > 1)

    assert when(40.0) < when(0.0)


@pytest.mark.parametrize("answer", [None, (1, 1), Placement(0, 1), Placement(1, 5), Placement(1, 1.5)])  # type: ignore[arg-type]
def test_other_numbers_are_refused(answer: object) -> None:
    class Own:
        def plan(self, load: ClusterLoad) -> object:
            return answer

    with pytest.raises(PolicyError, match=r"planner \(own\) at 0.000 s answered .*, allowed: .* 1 to 4 prefill"):
        AskedPlanner(Who("own", "planner", "own"), Own()).plan(load(0.0, 0))
