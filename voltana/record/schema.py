"""What is in a run record: its files, and the columns of its tables."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa

CONFIG, PROVENANCE, SUMMARY = "config.yaml", "provenance.json", "summary.json"
REQUESTS, INSTANCES = "requests.parquet", "instances.parquet"
JOURNALS = {REQUESTS: "requests.journal", INSTANCES: "instances.journal"}
"""Of a table that is not whole yet: its rows so far, an Arrow stream that reads up to where it was cut."""
LOG = "error.log"
"""Of a run that failed in a sweep: the traceback, if there is one, and the line that says why."""
LOCK = ".lock"
"""Held by the process that writes the record."""

COMPLETED, FAILED, UNFINISHED = "completed", "failed", "unfinished"


class RequestRow(NamedTuple):
    """One request. What did not happen is None: the times of a failed request, the ITL of a one-token answer.

    The first token is made at `prefill_end_s` and reaches the client at `first_token_s`, when the request joins the
    batch of its decode instance: a P/D router passes on what the decode server sends.
    """

    request_id: int
    arrival_s: float
    input_tokens: int
    output_tokens: int
    prefill_instance: str | None
    decode_instance: str | None
    prefill_start_s: float | None
    prefill_end_s: float | None
    first_token_s: float | None
    finish_s: float | None
    ttft_s: float | None
    mean_itl_s: float | None
    max_itl_s: float | None
    status: str


class InstanceRow(NamedTuple):
    """The state of an instance from `time_s` on; what is not known is None, which happens in live runs alone."""

    time_s: float
    instance: str
    phase: str
    clock_mhz: int | None
    """In force, by the GPU's own account."""
    batch_size: int | None
    kv_tokens: int | None
    queued: int | None
    power_w: float | None


_NAME = pa.dictionary(pa.int32(), pa.string())

REQUEST_SCHEMA = pa.schema(
    [
        pa.field("request_id", pa.int64(), nullable=False),
        pa.field("arrival_s", pa.float64(), nullable=False),
        pa.field("input_tokens", pa.int64(), nullable=False),
        pa.field("output_tokens", pa.int64(), nullable=False),
        pa.field("prefill_instance", _NAME),
        pa.field("decode_instance", _NAME),
        *(pa.field(name, pa.float64()) for name in RequestRow._fields[6:13]),
        pa.field("status", _NAME, nullable=False),
    ]
)

INSTANCE_SCHEMA = pa.schema(
    [
        pa.field("time_s", pa.float64(), nullable=False),
        pa.field("instance", _NAME, nullable=False),
        pa.field("phase", _NAME, nullable=False),
        pa.field("clock_mhz", pa.int32()),
        pa.field("batch_size", pa.int32()),
        pa.field("kv_tokens", pa.int64()),
        pa.field("queued", pa.int32()),
        pa.field("power_w", pa.float64()),
    ]
)
