import pytest

from voltana.record import InstanceRow
from voltana.sim.serving.meter import Meter


@pytest.fixture
def rows() -> list[InstanceRow]:
    return []


def _meter(rows: list[InstanceRow]) -> Meter:
    return Meter("decode-0", "decode", rows.append)


def test_a_row_stays_open_while_the_batch_only_grows(rows: list[InstanceRow]) -> None:
    meter = _meter(rows)
    for iteration in range(3):
        meter.enter(0.1 * iteration, 1410, 2, 100 + 2 * iteration, 0)
        meter.spend(300.0 + iteration, 0.1)
        meter.grow(2)
    meter.flush(0.3)
    assert rows == [InstanceRow(0.0, "decode-0", "decode", 1410, 2, 100, 0, pytest.approx(301.0))]
    assert meter.totals.energy_j == pytest.approx(90.3)


@pytest.mark.parametrize("change", [(1005, 2, 102, 0), (1410, 3, 102, 0), (1410, 2, 150, 0), (1410, 2, 102, 1)])
def test_any_other_change_begins_a_row(rows: list[InstanceRow], change: tuple[int, int, int, int]) -> None:
    meter = _meter(rows)
    meter.enter(0.0, 1410, 2, 100, 0)
    meter.spend(300.0, 0.1)
    meter.grow(2)
    meter.enter(0.1, *change)
    meter.spend(200.0, 0.1)
    meter.flush(0.2)
    assert [row.time_s for row in rows] == [0.0, 0.1]
    assert (rows[1].clock_mhz, rows[1].batch_size, rows[1].kv_tokens, rows[1].queued) == change
    assert [row.power_w for row in rows] == pytest.approx([300.0, 200.0])


def test_a_state_of_no_duration_leaves_no_row(rows: list[InstanceRow]) -> None:
    meter = _meter(rows)
    meter.enter(0.0, 1410, 0, 0, 0)
    meter.enter(0.0, 1410, 1, 10, 0)
    meter.spend(300.0, 1.0)
    meter.flush(1.0)
    assert [row.batch_size for row in rows] == [1]
