"""Instances that a planner takes out of service: both engines agree, work goes on, sleep costs what is stated."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.sim.records import assert_same
from voltana.errors import UserError
from voltana.record import RunRecord
from voltana.sim.run.simulate import simulate
from voltana.sim.studies.recorded import read

Run = Callable[..., RunRecord]
DAY = (
    "arrival=day",
    "rps=25",
    "duration_s=24",
    "requests=null",
    "cluster.prefill_instances=3",
    "cluster.decode_instances=3",
    "model.tp=2",
    "slo.scale=0.3",
)
PLANNED = (
    *DAY,
    "planner=reactive",
    "planner.period_s=1.0",
    "planner.sleep.wake_s=1.5",
    "planner.policy.hold_s=2.0",
    "planner.policy.memory_s=2.0",
    "planner.policy.utilisation=0.2",
    "planner.policy.budget=0.35",
)


@pytest.mark.parametrize("policy", ["voltana", "voltana_next", "voltana_released", "polca"])
def test_both_engines_agree(values: Callable[..., dict[str, Any]], tmp_path: Path, policy: str) -> None:
    for engine in ("reference", "fast"):
        simulate(values(f"policy={policy}", f"engine={engine}", *PLANNED), tmp_path / engine)
    reference, fast = (RunRecord(tmp_path / engine) for engine in ("reference", "fast"))
    assert_same(reference, fast)
    assert fast.summary["requests"]["completed"] == fast.summary["requests"]["submitted"]


def spans(record: RunRecord, power_w: float) -> pd.DataFrame:
    """Rows of the instances that drew just so much, with their ends."""
    rows = record.instances()
    rows["end_s"] = rows.groupby("instance").time_s.shift(-1).fillna(record.summary["end_s"])
    return rows[(rows.power_w - power_w).abs() < 1e-6]


def test_what_sleeps_does_nothing_and_what_wakes_takes_its_time(run: Run) -> None:
    record, all_day = run("policy=voltana", *PLANNED), run("policy=voltana", *DAY)
    asleep, waking = spans(record, 2 * 42.0), spans(record, 2 * 100.0)
    assert len(asleep) > 2 and len(waking) > 0
    assert (pd.concat([asleep, waking]).batch_size == 0).all()
    ended = waking[waking.end_s < record.summary["end_s"]]
    assert (ended.end_s - ended.time_s).tolist() == pytest.approx([1.5] * len(ended))
    assert set(ended.time_s) <= set(asleep.end_s)
    assert {"prefill-0", "decode-0"}.isdisjoint(asleep.instance)
    assert record.summary["energy_j"]["total"] < all_day.summary["energy_j"]["total"]
    assert record.summary["requests"] == all_day.summary["requests"]


def test_a_run_whose_instances_sleep_has_no_bound(run: Run) -> None:
    with pytest.raises(UserError, match="bound: found True, allowed: false where instances sleep"):
        run("policy=voltana", "planner=reactive", "bound=true")
    with pytest.raises(UserError, match="found a planner, allowed: "):
        read(run("policy=voltana", "planner=reactive", "requests=5"))
