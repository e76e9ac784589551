"""File traces: the formats, streaming, and what is said of a bad file."""

import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.traces import Request, RequestStream, request_stream
from voltana.traces.arrivals import Timestamps, Uniform
from voltana.traces.files import FileTrace


def write(folder: Path, text: str, name: str = "trace.csv") -> str:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path)


def timed(source: FileTrace, *, block: int = 8192, speedup: float = 1.0) -> RequestStream:
    return request_stream(
        source, Timestamps(speedup=speedup), duration_s=None, requests=None, seed=1, block_requests=block
    )


def replay(path: str, *, block: int = 8192, speedup: float = 1.0) -> list[tuple[float, int, int]]:
    """As it is, at its own times; how fast they come is not looked at."""
    return [request[1:] for request in timed(FileTrace(path=path, time_unit="s"), block=block, speedup=speedup)]


HEADER = "input_tokens,output_tokens,arrival_s"
OWN = "input_tokens,output_tokens,arrival_s\n10,20,0.5\n11,21,2.0\n"


def test_speedup_divides_the_times(tmp_path: Path) -> None:
    assert replay(write(tmp_path, OWN), speedup=2) == [(0.25, 10, 20), (1.0, 11, 21)]


Row = tuple[int, int, int]
rows_in_order = st.lists(
    st.tuples(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 10**6)), min_size=1
).map(lambda rows: sorted(rows, key=lambda row: row[2]))


@given(rows=rows_in_order, block=st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read_whatever_the_block_size(
    rows: list[Row], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.mktemp("rows"), "\n".join([HEADER, *(",".join(map(str, row)) for row in rows)]))
    origin = rows[0][2] if rows[0][2] >= 3600 else 0
    assert replay(path, block=block) == [(time - origin, i, o) for i, o, time in rows]


BAD_ROWS = ("0,5,{}", "5,-1,{}", "x,5,{}", "5,,{}", "5,5", "5,5,{},5", "5,5,soon", "5,5,-3")


@given(
    rows=rows_in_order,
    bad=st.lists(st.tuples(st.integers(0, 200), st.sampled_from(BAD_ROWS)), max_size=20),
    block=st.integers(1, 40),
)
@settings(max_examples=30, deadline=None)
def test_bad_rows_change_nothing_but_the_count_of_what_was_skipped(
    rows: list[Row], bad: list[tuple[int, str]], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    clean = [",".join(map(str, row)) for row in rows]
    lines = list(clean)
    for place, row in bad:
        lines.insert(min(place, len(lines)), row.format(10**7))
    dirty = write(folder, "\n".join([HEADER, *lines]), "dirty.csv")
    source = FileTrace(path=dirty, time_unit="s")
    stream = timed(source, block=block)
    assert [request[1:] for request in stream] == replay(write(folder, "\n".join([HEADER, *clean])))
    told: Any = stream.about()
    assert sum(each["count"] for each in told["skipped"]) == len(bad)
    assert told["rows_read"] == len(lines)
    if bad:
        first = 2 + next(place for place, line in enumerate(lines) if line not in clean)
        assert min(each["first_line"] for each in told["skipped"]) == first
        with pytest.raises(UserError, match=f"dirty.csv:{first}: "):
            list(timed(FileTrace(path=dirty, time_unit="s", strict=True), block=block))


def test_repeat_starts_over_and_has_no_times(tmp_path: Path) -> None:
    source = FileTrace(path=write(tmp_path, OWN), repeat=True)
    requests = list(request_stream(source, Uniform(rate=1), duration_s=None, requests=5, seed=1))
    assert [request.input_tokens for request in requests] == [10, 11, 10, 11, 10]
    with pytest.raises(UserError, match=r"^trace.repeat: found True, allowed: false with arrival=timestamps"):
        request_stream(source, Timestamps(), duration_s=1, requests=None, seed=1)


def test_a_repeated_file_tells_of_its_rows_once(tmp_path: Path) -> None:
    source = FileTrace(path=write(tmp_path, "input_tokens,output_tokens\n10,20\n5,0\n"), repeat=True)
    stream = request_stream(source, Uniform(rate=1), duration_s=None, requests=5, seed=1)
    assert len(list(stream)) == 5
    told: Any = stream.about()
    assert (told["rows_read"], told["skipped"][0]["count"], told["ended_by"]) == (2, 1, "requests")


def test_without_a_bound_a_file_runs_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path, OWN)
    stream = request_stream(FileTrace(path=path), Uniform(rate=1), duration_s=None, requests=None, seed=1)
    assert [request.input_tokens for request in stream] == [10, 11]
    assert stream.about()["ended_by"] == "trace"
    with pytest.raises(UserError, match=r"^duration_s: found null, allowed: a number > 0; null with requests=N"):
        request_stream(FileTrace(path=path, repeat=True), Uniform(rate=1), duration_s=None, requests=None, seed=1)


def test_more_requests_than_rows_end_with_the_file(tmp_path: Path) -> None:
    stream = request_stream(FileTrace(path=write(tmp_path, OWN)), Timestamps(), duration_s=60, requests=100, seed=1)
    assert len(list(stream)) == 2
    assert stream.about()["ended_by"] == "trace"


def test_without_repeat_the_stream_ends_with_the_file(tmp_path: Path) -> None:
    source = FileTrace(path=write(tmp_path, OWN))
    requests = list(request_stream(source, Uniform(rate=1), duration_s=100, requests=None, seed=1))
    assert requests == [Request(0, 1.0, 10, 20), Request(1, 2.0, 11, 21)]


def test_the_context_filter_drops_requests_and_keeps_their_times(tmp_path: Path) -> None:
    text = "input_tokens,output_tokens,arrival_s\n50,50,0\n60,50,1\n10,10,2\n"
    source = FileTrace(path=write(tmp_path, text), max_total_tokens=100)
    stream = request_stream(source, Timestamps(), duration_s=None, requests=9, seed=1, block_requests=1)
    assert list(stream) == [Request(0, 0.0, 50, 50), Request(1, 2.0, 10, 10)]


def test_a_folder_is_not_a_trace(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="allowed: a file that exists"):
        FileTrace(path=str(tmp_path / "folder.csv"))


def test_the_file_alone_says_what_it_is_not_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "set.jsonl"
    folder.mkdir()
    assert replay(write(folder, OWN)) == [(0.5, 10, 20), (2.0, 11, 21)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": "/dev/null"}, "trace.path: found '/dev/null', allowed: a file ending in .csv, "),
        ({"time_unit": "minutes"}, "trace.time_unit: found 'minutes', allowed: null, s, ms, us, ns, datetime"),
        ({"strict": 1}, "trace.strict: found 1, allowed: true or false"),
        ({"columns": "a,b"}, "trace.columns: found 'a,b', allowed: null or a mapping of input_tokens, output_tokens"),
        ({"columns": {"tokens": "a"}}, "trace.columns: found {'tokens': 'a'}, allowed: null or a mapping of "),
        ({"columns": {"arrival_s": 3}}, "trace.columns.arrival_s: found 3, allowed: null or the name of a column"),
        ({"columns": {"input_tokens": "in"}}, "trace.columns.input_tokens: found 'in', allowed: a column of "),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        FileTrace(**{"path": write(tmp_path, OWN), **options})
    assert str(error.value).startswith(message)


def test_long_prompts_may_stand_beside(tmp_path: Path) -> None:
    text = f"prompt,input_tokens,output_tokens,arrival_s\n{'word ' * 100_000},10,20,0.5\n"
    assert replay(write(tmp_path, text)) == [(0.5, 10, 20)]
