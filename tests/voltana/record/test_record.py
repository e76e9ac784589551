"""What is written to a run record is read back, and what is no finished record is refused."""

import os
import re
import resource
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.record import (
    COMPLETED,
    CONFIG,
    FAILED,
    INSTANCES,
    PROVENANCE,
    REQUESTS,
    SUMMARY,
    UNFINISHED,
    InstanceRow,
    RecordWriter,
    RequestRow,
    RunRecord,
    claim,
    find_records,
    find_unfinished,
    holder,
    iterate,
)
from voltana.record.tables import KEEP_EVERY_S

CONFIGURATION = {"rps": 75, "policy": {"name": "voltana", "decode_router": {"_target_": "a.B"}}, "trace": None}
NUMBERS = {"source": "sim", "joint_attainment": 0.5, "token_itl_attainment": None}
SOME_REQUESTS = [
    RequestRow(1, 0.5, 100, 3, "prefill-1", "decode-0", 0.5, 0.7, 0.8, 1.0, 0.2, 0.15, 0.2, COMPLETED),
    RequestRow(0, 0.0, 9, 1, "prefill-0", None, 0.1, 0.3, None, 0.3, 0.3, None, None, COMPLETED),
    RequestRow(2, 0.6, 10**6, 7, None, None, None, None, None, None, None, None, None, FAILED),
]
SOME_STATES = [
    InstanceRow(0.0, "prefill-0", "prefill", 1005, 0, 0, 0, 70.0),
    InstanceRow(0.0, "decode-0", "decode", 1410, 2, 900, 1, 300.25),
    InstanceRow(0.1, "prefill-0", "prefill", 1410, 1, 9, 0, 399.5),
]


def write(
    folder: Path,
    requests: Sequence[RequestRow] = SOME_REQUESTS,
    states: Sequence[InstanceRow] = SOME_STATES,
    chunk_rows: int = 65_536,
) -> RunRecord:
    with RecordWriter(folder, CONFIGURATION, chunk_rows=chunk_rows) as writer:
        for request in requests:
            writer.request(request)
        for state in states:
            writer.instance(state)
        writer.summary(NUMBERS)
    return RunRecord(folder)


def rows(frame: pd.DataFrame) -> list[tuple[Any, ...]]:
    return [tuple(None if pd.isna(v) else v for v in row) for row in frame.itertuples(index=False, name=None)]


times = st.none() | st.floats(0, 1e6)
names = st.none() | st.sampled_from(["a-0", "a-1", "b-0"])
some_requests = st.lists(
    st.builds(
        RequestRow,
        st.integers(0, 2**40),
        st.floats(0, 1e6),
        st.integers(1, 10**6),
        st.integers(1, 10**6),
        names,
        names,
        *[times] * 7,
        st.sampled_from([COMPLETED, FAILED, UNFINISHED]),
    ),
    max_size=12,
    unique_by=lambda row: row.request_id,
)
some_states = st.lists(
    st.builds(
        InstanceRow,
        st.floats(0, 1e6),
        st.sampled_from(["prefill-0", "decode-0", "decode-1"]),
        st.sampled_from(["prefill", "decode"]),
        st.integers(210, 1410),
        st.integers(0, 2048),
        st.integers(0, 10**9),
        st.integers(0, 10**6),
        st.floats(0, 1e4),
    ),
    max_size=12,
)


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(some_requests, some_states, st.integers(1, 14))
def test_round_trip_whatever_the_chunks(
    tmp_path_factory: pytest.TempPathFactory, requests: list[RequestRow], states: list[InstanceRow], chunk_rows: int
) -> None:
    record = write(tmp_path_factory.getbasetemp() / "round" / "trip", requests, states, chunk_rows)
    assert rows(record.requests()) == sorted(requests)
    assert rows(record.instances()) == sorted(states, key=lambda s: (s.instance, s.time_s))
    assert tuple(record.requests().columns) == RequestRow._fields
    assert tuple(record.instances().columns) == InstanceRow._fields


def test_configuration_and_summary_round_trip(tmp_path: Path) -> None:
    record = write(tmp_path)
    assert record.config == CONFIGURATION
    assert record.summary == NUMBERS


@pytest.mark.parametrize("chunk_rows", [1, 2, 65_536])
def test_the_same_rows_give_the_same_bytes(tmp_path: Path, chunk_rows: int) -> None:
    first, again = (write(tmp_path / name, chunk_rows=chunk_rows).folder for name in ("first", "again"))
    for name in (CONFIG, SUMMARY, REQUESTS, INSTANCES):
        assert (first / name).read_bytes() == (again / name).read_bytes()


def test_an_empty_record_has_its_columns(tmp_path: Path) -> None:
    record = write(tmp_path, [], [])
    for frame, fields in ((record.requests(), RequestRow._fields), (record.instances(), InstanceRow._fields)):
        assert (len(frame), tuple(frame.columns)) == (0, fields)


def test_types_do_not_depend_on_the_rows(tmp_path: Path) -> None:
    empty, full = write(tmp_path / "empty", [], []), write(tmp_path / "full")
    floats = ["arrival_s", "ttft_s", "mean_itl_s", "finish_s"]
    assert {str(dtype) for record in (empty, full) for dtype in record.requests()[floats].dtypes} == {"float64"}


@pytest.mark.parametrize("chunk_rows", [1, 2, 3, 100])
def test_columns_are_streamed(tmp_path: Path, chunk_rows: int) -> None:
    record = write(tmp_path, chunk_rows=chunk_rows)
    batches = list(iterate(record, INSTANCES, ["power_w", "time_s"]))
    assert {tuple(batch.schema.names) for batch in batches} == {("power_w", "time_s")}
    assert [row["power_w"] for batch in batches for row in batch.to_pylist()] == [70.0, 300.25, 399.5]


def test_an_interrupted_run_leaves_tables_that_read(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), RecordWriter(tmp_path, CONFIGURATION) as writer:
        writer.request(SOME_REQUESTS[0])
        writer.summary(NUMBERS)
        raise KeyboardInterrupt
    assert rows(RunRecord(tmp_path).requests()) == SOME_REQUESTS[:1]


# What is no finished record.


def test_without_a_summary_a_record_is_not_finished(tmp_path: Path) -> None:
    with RecordWriter(tmp_path, CONFIGURATION):
        pass
    with pytest.raises(UserError, match=r"not a finished run record, missing summary\.json$"):
        RunRecord(tmp_path)
    with pytest.raises(UserError, match="holds no finished run record"):
        find_records([tmp_path])


def test_starting_over_unfinishes_the_record_that_was_there(tmp_path: Path) -> None:
    write(tmp_path)
    with RecordWriter(tmp_path, CONFIGURATION):
        assert not (tmp_path / SUMMARY).exists()


def test_a_summary_holds_no_nan(tmp_path: Path) -> None:
    with RecordWriter(tmp_path, CONFIGURATION) as writer:
        with pytest.raises(ValueError, match="JSON"):
            writer.summary({"x": float("nan")})
        assert not (tmp_path / SUMMARY).exists()


@pytest.mark.parametrize("table", [REQUESTS, INSTANCES])
def test_the_summary_comes_after_the_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """Where a table cannot get its name, nothing says that the record is finished."""
    (tmp_path / table).mkdir()  # a file cannot replace a folder
    monkeypatch.setattr(RecordWriter, "_clear", lambda self: None)
    with pytest.raises(UserError, match="Is a directory"), RecordWriter(tmp_path, CONFIGURATION) as writer:
        writer.request(SOME_REQUESTS[0])
        writer.summary(NUMBERS)
    assert not (tmp_path / SUMMARY).exists()


@pytest.mark.slow
@pytest.mark.parametrize("chunk_rows", [1, 2, 65_536])
def test_what_was_kept_reads_after_a_crash(tmp_path: Path, chunk_rows: int) -> None:
    """The journal of a process that was killed, cut anywhere, gives the first rows and no other."""
    writer = RecordWriter(tmp_path, CONFIGURATION, chunk_rows=chunk_rows)
    for request in SOME_REQUESTS:
        writer.request(request)
        writer.keep()
    for state in SOME_STATES:
        writer.instance(state)
    writer.keep()
    record = RunRecord(tmp_path, unfinished=True)
    assert rows(record.requests()) == sorted(SOME_REQUESTS)
    assert len(record.instances()) == len(SOME_STATES)
    journal = (tmp_path / "requests.journal").read_bytes()
    counts = set()
    for length in range(0, len(journal), 97):
        (tmp_path / "requests.journal").write_bytes(journal[:length])
        left = [row.request_id for row in RunRecord(tmp_path, unfinished=True).requests().itertuples()]
        assert left == sorted(request.request_id for request in SOME_REQUESTS[: len(left)])
        counts.add(len(left))
    assert counts >= {0, 1, 2}
    assert [each.folder for each in find_unfinished([tmp_path])] == [tmp_path]


def test_rows_are_kept_every_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("voltana.record.tables.time.monotonic", lambda: now_s)
    writer = RecordWriter(tmp_path, CONFIGURATION)
    writer.request(SOME_REQUESTS[0])
    assert RunRecord(tmp_path, unfinished=True).requests().empty
    now_s += KEEP_EVERY_S
    writer.request(SOME_REQUESTS[1])
    assert len(RunRecord(tmp_path, unfinished=True).requests()) == 2


def test_a_failed_run_leaves_its_rows_and_no_table(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RecordWriter(tmp_path, CONFIGURATION) as writer:
        writer.request(SOME_REQUESTS[0])
        raise ZeroDivisionError
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG, PROVENANCE, "requests.journal"]
    assert rows(RunRecord(tmp_path, unfinished=True).requests()) == SOME_REQUESTS[:1]


def test_a_finished_record_keeps_no_journal_and_no_log_of_a_failure(tmp_path: Path) -> None:
    (tmp_path / "error.log").write_text("of an earlier run")
    with RecordWriter(tmp_path, CONFIGURATION) as writer:
        writer.request(SOME_REQUESTS[0])
        writer.keep()
        writer.summary(NUMBERS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [CONFIG, INSTANCES, PROVENANCE, REQUESTS, SUMMARY]
    )


@pytest.fixture(params=["full disk", "largest file"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder that takes some 300 kB: a file system of that size where one may be mounted, and a limit per file."""
    folder = tmp_path / "small"
    folder.mkdir()
    if request.param == "largest file":
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))
        yield folder
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True)
    if mount.returncode:
        pytest.skip("no right to mount")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_on_a_full_disk_a_record_is_not_finished(small_disk: Path) -> None:
    rng = np.random.default_rng(1)
    with pytest.raises(UserError) as caught, RecordWriter(small_disk, CONFIGURATION, chunk_rows=500) as writer:
        for number, noise in enumerate(rng.random((20_000, 3)).tolist()):
            writer.instance(InstanceRow(noise[0], "decode-0", "decode", 1410, number, number, 0, noise[1]))
        writer.summary(NUMBERS)
    assert str(caught.value).startswith(f"{small_disk}/instances.") and "\n" not in str(caught.value)
    assert re.search("No space left on device|File too large", str(caught.value))
    assert not (small_disk / SUMMARY).exists() and not (small_disk / INSTANCES).exists()
    with pytest.raises(UserError, match="not a finished run record"):
        RunRecord(small_disk)
    assert 0 < len(RunRecord(small_disk, unfinished=True).instances()) < 20_000


# One folder, one run.


def test_a_folder_takes_one_writer_at_a_time(tmp_path: Path) -> None:
    with RecordWriter(tmp_path, CONFIGURATION) as writer:
        with pytest.raises(UserError, match=rf"^{tmp_path}: process {os.getpid()} on .* is writing its record there; "):
            RecordWriter(tmp_path, CONFIGURATION)
        assert holder(tmp_path) is not None
        writer.request(SOME_REQUESTS[0])
        writer.summary(NUMBERS)
    assert holder(tmp_path) is None
    assert len(RunRecord(tmp_path).requests()) == 1


def test_a_finished_record_of_another_configuration_is_kept(tmp_path: Path) -> None:
    before = write(tmp_path)
    with pytest.raises(
        UserError, match=r"found the finished record of another run \(rps=75\); allowed: another folder"
    ):
        RecordWriter(tmp_path, {**CONFIGURATION, "rps": 80})
    assert rows(RunRecord(tmp_path).requests()) == rows(before.requests())
    with (
        claim(tmp_path, {"rps": 80}, overwrite=True) as claimed,
        RecordWriter(tmp_path, {"rps": 80}, claimed=claimed) as writer,
    ):
        writer.summary(NUMBERS)
    assert RunRecord(tmp_path).config == {"rps": 80}


def test_an_interrupted_record_of_another_configuration_is_replaced(tmp_path: Path) -> None:
    with RecordWriter(tmp_path, {"rps": 80}) as writer:
        writer.summary({**NUMBERS, "interrupted": True})
    assert write(tmp_path).config == CONFIGURATION


@pytest.mark.parametrize("name", [CONFIG, SUMMARY, REQUESTS, INSTANCES])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"missing {name}$"):
        RunRecord(tmp_path)


@pytest.mark.parametrize("name", [REQUESTS, INSTANCES])
@pytest.mark.parametrize("keep", [0, 0.3, 0.95])
def test_a_truncated_table_is_named(tmp_path: Path, name: str, keep: float) -> None:
    record = write(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(keep * len(whole))])
    for read in (record.requests if name == REQUESTS else record.instances, lambda: list(iterate(record, name, []))):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value).startswith(f"{tmp_path / name}: cannot be read")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [CONFIG, SUMMARY])
@pytest.mark.parametrize("content", [b"", b"[1]", b"{", b"\xff\xfe{}"])
def test_a_file_that_does_not_parse_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    record = write(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        _ = record.config if name == CONFIG else record.summary
    assert str(caught.value).startswith(f"{tmp_path / name}: ")
    assert "\n" not in str(caught.value)


# Finding records.


def test_numbered_folders_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for name in ("10", "9", "100", "b/2", "b/11", "a", "1"):
        write(tmp_path / name, [], [])
    found = [str(record.folder.relative_to(tmp_path)) for record in find_records([tmp_path])]
    assert found == ["1", "9", "10", "100", "a", "b/2", "b/11"]


def test_records_come_in_the_order_of_the_folders_and_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name, [], [])
    found = find_records([str(tmp_path / "b"), tmp_path, tmp_path / "b" / ".." / "a"])
    assert [record.folder.resolve().name for record in found] == ["b", "a"]


def test_a_folder_of_unfinished_records_is_left_out_beside_others(tmp_path: Path) -> None:
    for name, ended in (("whole", True), ("killed", False)):
        with RecordWriter(tmp_path / name, CONFIGURATION) as writer:
            if ended:
                writer.summary(NUMBERS)
    assert [record.folder.name for record in find_records([tmp_path / "killed", tmp_path / "whole"])] == ["whole"]
    with pytest.raises(UserError, match=r"killed: holds no finished run record .*; .*killed is unfinished$"):
        find_records([tmp_path / "killed"])


@pytest.mark.parametrize(
    ("name", "message"), [("nowhere", "no such folder"), ("empty", "holds no finished run record")]
)
def test_a_folder_without_records_is_named(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message) as caught:
        find_records([tmp_path / name])
    assert str(caught.value).startswith(str(tmp_path / name))
