"""`trace=record`: the requests of a run record."""

from pathlib import Path

import numpy as np
import pytest

from voltana.errors import UserError
from voltana.record import FAILED, REQUESTS, RecordWriter, RequestRow
from voltana.record.summary import SummaryBuilder
from voltana.state import Slo
from voltana.traces import request_stream
from voltana.traces.arrivals import Timestamps, Uniform
from voltana.traces.replay import RecordTrace

ROWS = [(0.5 * n, 100 + n, 50) for n in range(10)]


@pytest.fixture(name="record")
def _record(tmp_path: Path) -> Path:
    """Of requests that all failed, the last first."""
    summary = SummaryBuilder("sim", Slo(1.0, 0.1), {})
    with RecordWriter(tmp_path / "run", {}) as writer:
        for n, row in reversed(list(enumerate(ROWS))):
            request = RequestRow(n, *row, *[None] * 9, FAILED)
            writer.request(request)
            summary.add(request)
        writer.summary(summary.build({}))
    return tmp_path / "run"


def test_it_is_the_records_requests_in_blocks_of_any_size(record: Path) -> None:
    trace = RecordTrace(path=str(record / REQUESTS))
    for size in (1, 3, 8192):
        stream = request_stream(trace, Timestamps(), duration_s=None, requests=None, seed=1, block_requests=size)
        assert [tuple(request[1:]) for request in stream] == ROWS
        assert stream.ended_by == "trace"


def test_it_may_come_at_other_times(record: Path) -> None:
    trace = RecordTrace(path=str(record / REQUESTS))
    stream = list(request_stream(trace, Uniform(rate=1.0), duration_s=None, requests=None, seed=1))
    assert [request.arrival_s for request in stream] == list(range(1, 11))
    assert all(block.arrival_s is None for block in trace.blocks(np.random.default_rng(), 4))


def test_anything_else_is_refused(tmp_path: Path) -> None:
    for path in (None, str(tmp_path), str(tmp_path / "requests.csv")):
        with pytest.raises(UserError, match=r"^trace\.path: found .*, allowed: requests\.parquet of a run record$"):
            RecordTrace(path=path)
    with pytest.raises(UserError, match=rf"^trace\.path: {tmp_path}: not a finished run record, missing config\.yaml$"):
        RecordTrace(path=str(tmp_path / REQUESTS))
