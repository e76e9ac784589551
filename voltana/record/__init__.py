"""The run record: one folder per run, written the same by the simulator and by the live harness.

    config.yaml        the resolved configuration
    provenance.json    what made it: versions, command, host, hashes of the files it depends on
    requests.parquet   one row a request, in the order of their ends
    instances.parquet  one row wherever the state of an instance changes
    summary.json       the numbers of the run (`voltana.record.summary`)

The summary comes last, after the tables are whole and on disk: a folder that has it holds a finished record. Until
then rows are added to a journal every few seconds, so that a run that is killed leaves what had happened readable.
One run writes a folder at a time. The same rows give the same bytes; provenance.json alone differs between runs.

In `instances.parquet` a row holds from its `time_s` until the next row of the same instance, the last one until
`end_s` of the summary. While a decode batch stays the same its KV tokens grow by one per request and iteration;
`kv_tokens` is the value at the start of the row and `power_w` the mean over it, so that the sum of power times
duration over the rows of an instance is its energy.
"""

from voltana.record.claim import Claim, claim, holder, refuse_another
from voltana.record.reader import RunRecord, find_records, find_unfinished, flatten, iterate
from voltana.record.schema import (
    COMPLETED,
    CONFIG,
    FAILED,
    INSTANCE_SCHEMA,
    INSTANCES,
    PROVENANCE,
    REQUEST_SCHEMA,
    REQUESTS,
    SUMMARY,
    UNFINISHED,
    InstanceRow,
    RequestRow,
)
from voltana.record.writer import RecordWriter, replace_summary

__all__ = [
    "COMPLETED",
    "CONFIG",
    "FAILED",
    "INSTANCES",
    "INSTANCE_SCHEMA",
    "PROVENANCE",
    "REQUESTS",
    "REQUEST_SCHEMA",
    "SUMMARY",
    "UNFINISHED",
    "Claim",
    "InstanceRow",
    "RecordWriter",
    "RequestRow",
    "RunRecord",
    "claim",
    "find_records",
    "find_unfinished",
    "flatten",
    "holder",
    "iterate",
    "refuse_another",
    "replace_summary",
]
