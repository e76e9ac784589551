"""File traces: the formats, streaming, and what is said of a bad file."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from traces import Request, request_stream
from traces.arrivals import Timestamps, Uniform
from traces.files import FileTrace
from voltana.errors import UserError


def write(folder: Path, text: str, name: str = "trace.csv") -> str:
    path = folder / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path)


def replay(path: str, *, block: int = 8192, speedup: float = 1.0) -> list[tuple[float, int, int]]:
    stream = request_stream(
        FileTrace(path=path),
        Timestamps(speedup=speedup),
        duration_s=None,
        requests=10**9,
        seed=1,
        block_requests=block,
    )
    return [request[1:] for request in stream]


FORMATS = {
    "own": ("trace.csv", "input_tokens,output_tokens,arrival_s\n10,20,0.5\n11,21,2.0\n"),
    "gzip": ("trace.csv.gz", "input_tokens,output_tokens,arrival_s\n10,20,0.5\n11,21,2.0\n"),
    "other order": ("trace.csv", "note,arrival_s,output_tokens,input_tokens\nx,0.5,20,10\n\ny,2.0,21,11\n"),
    "byte order mark": ("trace.csv", "\ufeffinput_tokens,output_tokens,arrival_s\r\n10,20,0.5\r\n11,21,2.0\r\n"),
    "mooncake csv": ("trace.csv", "timestamp,input_length,output_length,n_hash_blocks\n500,10,20,1\n2000,11,21,1\n"),
    "mooncake jsonl": (
        "trace.jsonl",
        '{"timestamp": 500, "input_length": 10, "output_length": 20, "hash_ids": [1, 2]}\n'
        '{"timestamp": 2000, "input_length": 11, "output_length": 21, "hash_ids": [3]}\n',
    ),
    "vidur": ("trace.csv", "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,10,20\n2.0,11,21\n"),
    "arena": ("trace.csv", "req_time,prompt_len,output_len,adapter\n0.5,10,20,3\n2.0,11,21,4\n"),
    "llmservingsim csv": ("trace.csv", "input_toks,output_toks,arrival_time_ns\n10,20,500000000\n11,21,2000000000\n"),
    "llmservingsim jsonl.gz": (
        "trace.jsonl.gz",
        '{"input_toks": 10, "output_toks": 20, "arrival_time_ns": 500000000}\n\n'
        '{"input_toks": 11, "output_toks": 21, "arrival_time_ns": 2000000000}\n',
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_known_formats_are_read(name: str, tmp_path: Path) -> None:
    file, text = FORMATS[name]
    assert replay(write(tmp_path, text, file)) == [(0.5, 10, 20), (2.0, 11, 21)]


@pytest.mark.parametrize("zone", ["", "+00:00"])
def test_azure_dates_count_from_the_first_row(zone: str, tmp_path: Path) -> None:
    text = (
        f"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 23:59:59.5000000{zone},374,44\n"
        f"2023-11-17 00:00:01.7500000{zone},396,109\n"
    )
    assert replay(write(tmp_path, text)) == [(0.0, 374, 44), (2.25, 396, 109)]


def test_speedup_divides_the_times(tmp_path: Path) -> None:
    file, text = FORMATS["own"]
    assert replay(write(tmp_path, text, file), speedup=2) == [(0.25, 10, 20), (1.0, 11, 21)]


@given(
    rows=st.lists(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 10**6)), min_size=1),
    block=st.integers(1, 40),
)
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read_whatever_the_block_size(
    rows: list[tuple[int, int, int]], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows.sort(key=lambda row: row[2])
    lines = ["input_tokens,output_tokens,arrival_s", *(",".join(map(str, row)) for row in rows)]
    path = write(tmp_path_factory.mktemp("rows"), "\n".join(lines))
    assert replay(path, block=block) == [(time, i, o) for i, o, time in rows]


def test_repeat_starts_over_and_has_no_times(tmp_path: Path) -> None:
    source = FileTrace(path=write(tmp_path, FORMATS["own"][1]), repeat=True)
    requests = list(request_stream(source, Uniform(rate=1), duration_s=None, requests=5, seed=1))
    assert [request.input_tokens for request in requests] == [10, 11, 10, 11, 10]
    with pytest.raises(UserError, match=r"^arrival=timestamps: found 'a trace without arrival times'"):
        next(request_stream(source, Timestamps(), duration_s=1, requests=None, seed=1))


def test_without_repeat_the_stream_ends_with_the_file(tmp_path: Path) -> None:
    source = FileTrace(path=write(tmp_path, FORMATS["own"][1]))
    requests = list(request_stream(source, Uniform(rate=1), duration_s=100, requests=None, seed=1))
    assert requests == [Request(0, 1.0, 10, 20), Request(1, 2.0, 11, 21)]


def test_the_context_filter_drops_requests_and_keeps_their_times(tmp_path: Path) -> None:
    text = "input_tokens,output_tokens,arrival_s\n50,50,0\n60,50,1\n10,10,2\n"
    source = FileTrace(path=write(tmp_path, text), max_total_tokens=100)
    stream = request_stream(source, Timestamps(), duration_s=None, requests=9, seed=1, block_requests=1)
    assert list(stream) == [Request(0, 0.0, 50, 50), Request(1, 2.0, 10, 10)]


HEADER = "input_tokens,output_tokens,arrival_s\n"
COLUMNS = (
    "input_tokens, output_tokens[, arrival_s]; ContextTokens, GeneratedTokens[, TIMESTAMP]; "
    "input_length, output_length[, timestamp]; num_prefill_tokens, num_decode_tokens[, arrived_at]; "
    "prompt_len, output_len[, req_time]; input_toks, output_toks[, arrival_time_ns]"
)
TOKENS = "an integer from 1 to 1000000000"
BAD = [
    ("trace.csv", HEADER + "1,2,0\n3,-4,1\n", f":3: output_tokens: found '-4', allowed: {TOKENS}"),
    ("trace.csv", HEADER + "1,2,0\n\n0,4,1\n", f":4: input_tokens: found '0', allowed: {TOKENS}"),
    ("trace.csv", HEADER + "1,2.5,0\n", f":2: output_tokens: found '2.5', allowed: {TOKENS}"),
    ("trace.csv", HEADER + "1,,0\n", f":2: output_tokens: found '', allowed: {TOKENS}"),
    ("trace.csv", HEADER + f"{10**30},2,0\n", f":2: input_tokens: found '{10**30}', allowed: {TOKENS}"),
    ("trace.csv", HEADER + "1,2,0\n3,4\n", ":3: found 2 fields, allowed: 3"),
    ("trace.csv", HEADER + "1,2,5\n3,4,4.5\n", ":3: arrival_s: found '4.5', allowed: times that never decrease"),
    ("trace.csv", HEADER + "1,2,-5\n", ":2: arrival_s: found '-5', allowed: a number >= 0"),
    ("trace.csv", HEADER + "1,2,nan\n", ":2: arrival_s: found 'nan', allowed: a number >= 0"),
    ("trace.csv", HEADER + "1,2,soon\n", ":2: arrival_s: found 'soon', allowed: a number >= 0"),
    ("trace.csv", HEADER, ": found no requests, allowed: at least one"),
    ("trace.csv", "a,b\n1,2\n", f":1: found columns a, b, allowed: {COLUMNS}"),
    ("trace.csv", "", f":1: found columns none, allowed: {COLUMNS}"),
    (
        "trace.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,2\n",
        ":2: TIMESTAMP: found 'noon', allowed: a date and time such as 2023-11-16 18:15:46.68",
    ),
    (
        "trace.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1,2\n2023-11-16 18:15:45,1,2\n",
        ":3: TIMESTAMP: found '2023-11-16 18:15:45', allowed: times that never decrease",
    ),
    (
        "trace.jsonl",
        '{"input_tokens": 1, "output_tokens": 2}\nnonsense\n',
        ":2: found 'nonsense', allowed: a JSON object",
    ),
    (
        "trace.jsonl",
        '{"input_tokens": 1, "output_tokens": 2}\n{"input_tokens": 1}\n',
        ":2: found no output_tokens, allowed: the keys of the first line",
    ),
    (
        "trace.jsonl",
        '{"input_tokens": 1.5, "output_tokens": 2}\n',
        f":1: input_tokens: found '1.5', allowed: {TOKENS}",
    ),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
@pytest.mark.parametrize("block", [1, 8192])
def test_a_bad_file_is_named_with_its_line(name: str, text: str, message: str, block: int, tmp_path: Path) -> None:
    path = write(tmp_path, text, name)
    with pytest.raises(UserError) as error:
        list(
            request_stream(
                FileTrace(path=path), Uniform(rate=1), duration_s=None, requests=9, seed=1, block_requests=block
            )
        )
    assert str(error.value) == path + message


def test_a_file_that_is_not_gzip_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv.gz"
    path.write_text(HEADER)
    with pytest.raises(
        UserError, match=r"trace\.csv\.gz: found an unreadable file .*, allowed: UTF-8 text, gzipped if"
    ):
        FileTrace(path=str(path))


def test_a_folder_is_not_a_trace(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UserError, match="allowed: a file that exists"):
        FileTrace(path=str(tmp_path / "folder.csv"))
