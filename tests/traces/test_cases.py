"""Small files of `tests/cases/traces/`, one per format and one per kind of fault: what becomes of each."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from voltana.errors import UserError
from voltana.traces import RequestStream, request_stream
from voltana.traces.arrivals import Timestamps, Uniform
from voltana.traces.files import FileTrace

CASES = Path(__file__).parents[1] / "cases" / "traces"
ROWS = [(0.5, 10, 20), (2.0, 11, 21)]
"""Arrival, input and output tokens of the good rows of nearly every file."""
FROM_ZERO = [(0.0, 10, 20), (1.5, 11, 21)]

AS_THEY_ARE = (
    "plain.csv",
    "plain.csv.gz",
    "byte_order_mark.csv",
    "windows_lines.csv",
    "no_last_newline.csv",
    "blank_lines.csv",
    "quoted.csv",
    "floats_that_are_whole.csv",
    "mooncake.jsonl",
    "qwen_bailian.jsonl",
    "vidur.csv",
    "lmsys_arena.csv",
    "llmservingsim.csv",
    "llmservingsim.jsonl.gz",
    "burstgpt.csv",
)

COUNTED_FROM_THE_FIRST = {
    "azure_2023.csv": "2023-11-16 23:59:59.5000000",
    "azure_2024.csv": "2024-05-10 23:59:59.500000+00:00",
    "dates_with_and_without_zone.csv": "2024-05-10 23:59:59.5",
    "dates_in_a_column_of_numbers.csv": "2023-11-16 18:15:46",
    "unix_time.csv": "1700000000.25",
    "unix_time_ns.csv": "1700000000250000000",
}

SKIPPED = {
    "zero_output.csv": [("Response tokens is 0", 2, 3)],
    "unsorted.csv": [("arrival_s is before that of a row above", 2, 3)],
    "unsorted_dates.csv": [("TIMESTAMP is before that of a row above", 1, 3)],
    "negative.csv": [("output_tokens is negative", 1, 3), ("arrival_s is negative", 1, 4)],
    "words.csv": [
        ("input_tokens cannot be read", 1, 2),
        ("output_tokens cannot be read", 1, 4),
        ("arrival_s cannot be read", 1, 5),
    ],
    "no_such_date.csv": [("TIMESTAMP cannot be read", 1, 3)],
    "empty_cells.csv": [
        ("input_tokens is empty", 1, 3),
        ("output_tokens is empty", 1, 4),
        ("arrival_s is empty", 1, 5),
    ],
    "too_many_tokens.csv": [("input_tokens is over 1000000000", 2, 3)],
    "fields.csv": [("the line has more or fewer fields than the first", 2, 3)],
    "trailing_garbage.csv": [("the line has more or fewer fields than the first", 1, 4)],
    "nul.csv": [("output_tokens cannot be read", 1, 3)],
    "bad_lines.jsonl": [
        ("output_tokens is missing", 1, 2),
        ("the line is not a JSON object", 2, 3),
        ("output_tokens is empty", 1, 4),
        ("output_tokens cannot be read", 1, 5),
    ],
    "deep.jsonl": [("the line is not a JSON object", 1, 2)],
}

TOKENS = "an integer from 1 to 1000000000"
UNIT = "times in a unit that trace.time_unit states (s, ms, us, ns, datetime)"
ABSURD = "less than 10,000/s, unless trace.time_unit states the unit of the times (s, ms, us, ns, datetime)"
TEXT = "UTF-8 text, gzipped if .gz"
FORMATS = (
    "input_tokens, output_tokens[, arrival_s]; ContextTokens, GeneratedTokens[, TIMESTAMP]; "
    "input_length, output_length[, timestamp]; num_prefill_tokens, num_decode_tokens[, arrived_at]; "
    "prompt_len, output_len[, req_time]; input_toks, output_toks[, arrival_time_ns]; "
    "Request tokens, Response tokens[, Timestamp]; or trace.columns"
)
REFUSED = {
    "doubled_column.csv": ":1: found 2 columns input_tokens, allowed: one of that name",
    "doubled_key.jsonl": ":1: found 2 columns output_tokens, allowed: one of that name",
    "underscores.csv": f":3: input_tokens: found '1_000', allowed: {TOKENS}",
    "arabic_digits.csv": f":3: input_tokens: found '\u0661\u0662', allowed: {TOKENS}",
    "space_before.csv": f":3: output_tokens: found ' 21', allowed: {TOKENS}",
    "exponent.csv": f":3: input_tokens: found '1e3', allowed: {TOKENS}",
    "half_a_token.csv": f":3: output_tokens: found '2.5', allowed: {TOKENS}",
    "nan.jsonl": f":1: output_tokens: found 'nan', allowed: {TOKENS}",
    "not_a_number.csv": ":3: arrival_s: found 'nan', allowed: a number >= 0",
    "infinite.csv": ":3: arrival_s: found 'inf', allowed: a number >= 0",
    "time_too_large.csv": ":3: arrival_s: found '1e999', allowed: a number >= 0",
    "time_underscores.csv": ":3: arrival_s: found '1_0', allowed: a number >= 0",
    "empty.csv": f":1: found columns none, allowed: {FORMATS}",
    "empty.jsonl": f":1: found columns none, allowed: {FORMATS}",
    "other_columns.csv": f":1: found columns prompt, answer, allowed: {FORMATS}",
    "no_header.csv": f":1: found columns 10, 20, 0.5, allowed: {FORMATS}",
    "two_formats.csv": ":1: found the columns of several formats "
    "(input_tokens, output_tokens; prompt_len, output_len), allowed: one, or trace.columns",
    "header_only.csv": ": found no requests, allowed: at least one",
    "all_bad.csv": f":2: input_tokens: found '0', allowed: {TOKENS}",
    "open_quote.csv": ":4: found a line that is not CSV (unexpected end of data), allowed: quotes that close",
    "no_object.jsonl": ":1: found 'input_tokens', allowed: a JSON object",
    "utf16.csv": ": found an unreadable file ('utf-8' codec can't decode byte 0xff in position 0: invalid start byte), "
    f"allowed: {TEXT}",
    "latin1.csv": ": found an unreadable file ('utf-8' codec can't decode byte 0xe9 in position 41: "
    f"invalid continuation byte), allowed: {TEXT}",
    "not_gzip.csv.gz": f": found an unreadable file (Not a gzipped file (b'in')), allowed: {TEXT}",
    "cut_off.csv.gz": ": found an unreadable file (Compressed file ended before the end-of-stream marker was reached), "
    f"allowed: {TEXT}",
}

NEEDS_A_WORD = {
    "no_unit.csv": (f":2: timestamp: found '500', allowed: {UNIT}", {"time_unit": "ms"}),
    "no_unit.jsonl": (f":1: timestamp: found '500', allowed: {UNIT}", {"time_unit": "ms"}),
    "mooncake_in_seconds.jsonl": (f":1: timestamp: found '0.5', allowed: {UNIT}", {"time_unit": "s"}),
    "number_for_a_date.csv": (f":2: TIMESTAMP: found '0.5', allowed: {UNIT}", {"time_unit": "s"}),
    "digits_for_a_date.csv": (f":2: TIMESTAMP: found '20231116', allowed: {UNIT}", {"time_unit": "ms"}),
    "no_times.csv": (
        ":1: found no arrival times in input_tokens, output_tokens, allowed with arrival=timestamps: "
        "a format that has them, or trace.columns.arrival_s=COLUMN",
        {"columns": {"arrival_s": "output_tokens"}, "time_unit": "s"},
    ),
    "absurd_rate.jsonl": (f": found 102 requests in 0.01 s, allowed: {ABSURD}", {"time_unit": "s"}),
    "all_at_once.csv": (f": found 101 requests in 0 s, allowed: {ABSURD}", {"time_unit": "s"}),
    "own_names.csv": (
        f":1: found columns when, in, out tokens, allowed: {FORMATS}",
        {
            "columns": {"input_tokens": "in", "output_tokens": "out tokens", "arrival_s": "when"},
            "time_unit": "ms",
        },
    ),
}
"""Refused until a word more is said, and what that is."""


class Replayed(NamedTuple):
    requests: list[tuple[float, int, int]]
    about: dict[str, Any]


def replay(name: str, *, block: int = 8192, **options: Any) -> Replayed:
    stream: RequestStream = request_stream(
        FileTrace(path=str(CASES / name), **options),
        Timestamps(),
        duration_s=None,
        requests=None,
        seed=1,
        block_requests=block,
    )
    return Replayed([request[1:] for request in stream], stream.about())


def refusal(name: str, **options: Any) -> str:
    with pytest.raises(UserError) as error:
        replay(name, **options)
    return str(error.value)


def test_every_file_is_somewhere_here() -> None:
    told = [*AS_THEY_ARE, *COUNTED_FROM_THE_FIRST, *SKIPPED, *REFUSED, *NEEDS_A_WORD, "starts_late.csv"]
    assert sorted(told) == sorted(path.name for path in CASES.iterdir())


@pytest.mark.parametrize("name", AS_THEY_ARE)
def test_good_files_are_read_as_they_are(name: str) -> None:
    requests, about = replay(name, strict=True)
    assert requests == ROWS
    assert (about["rows_read"], about["skipped"], about["counted_from"]) == (2, [], None)


@pytest.mark.parametrize(("name", "first"), COUNTED_FROM_THE_FIRST.items())
@pytest.mark.parametrize("block", [1, 8192])
def test_dates_and_times_far_from_zero_count_from_the_first_row(name: str, first: str, block: int) -> None:
    requests, about = replay(name, strict=True, block=block)
    assert requests == FROM_ZERO
    assert about["counted_from"] == first


def test_a_trace_that_starts_late_keeps_its_times() -> None:
    requests, about = replay("starts_late.csv")
    assert [request[0] for request in requests] == [12.5, 14.0]
    assert about["counted_from"] is None


@pytest.mark.parametrize("name", ["mooncake.jsonl", "qwen_bailian.jsonl"])
def test_what_is_not_modelled_is_named(name: str) -> None:
    assert replay(name).about["ignored"] == ["hash_ids"]
    assert replay("plain.csv").about["ignored"] == []


@pytest.mark.parametrize(("name", "told"), SKIPPED.items())
@pytest.mark.parametrize("block", [1, 8192])
def test_rows_that_cannot_be_used_are_counted_with_their_lines(
    name: str, told: list[tuple[str, int, int]], block: int
) -> None:
    requests, about = replay(name, block=block)
    whole = {"zero_output.csv": [(0.0, 10, 20), (2.0, 11, 21)], "nul.csv": ROWS[:1]}
    dates = {"unsorted_dates.csv": FROM_ZERO, "no_such_date.csv": FROM_ZERO}
    assert requests == (whole | dates).get(name, ROWS)
    assert [tuple(each.values()) for each in about["skipped"]] == told
    assert about["rows_read"] == len(requests) + sum(count for _, count, _ in told)


@pytest.mark.parametrize(("name", "told"), SKIPPED.items())
def test_strict_stops_at_the_first_of_them(name: str, told: list[tuple[str, int, int]]) -> None:
    first_line = min(line for _, _, line in told)
    assert refusal(name, strict=True).startswith(f"{CASES / name}:{first_line}: ")


@pytest.mark.parametrize(("name", "message"), REFUSED.items())
@pytest.mark.parametrize("block", [1, 8192])
def test_files_that_are_not_what_they_seem_are_refused(name: str, message: str, block: int) -> None:
    assert refusal(name, block=block) == f"{CASES / name}{message}"


@pytest.mark.parametrize(("name", "message", "word"), [(name, *rest) for name, rest in NEEDS_A_WORD.items()])
def test_what_cannot_be_told_is_refused_until_it_is_stated(name: str, message: str, word: dict[str, Any]) -> None:
    assert refusal(name) == f"{CASES / name}{message}"
    assert replay(name, **word).requests


def test_stated_columns_and_units_are_used() -> None:
    assert replay("own_names.csv", **NEEDS_A_WORD["own_names.csv"][1]).requests == ROWS
    assert replay("number_for_a_date.csv", time_unit="s").requests == ROWS
    assert replay("mooncake.jsonl", time_unit="s").requests == [(500.0, 10, 20), (2000.0, 11, 21)]
    both = {"input_tokens": "prompt_len", "output_tokens": "output_len"}
    stream = request_stream(
        FileTrace(path=str(CASES / "two_formats.csv"), columns=both),
        Uniform(rate=1),
        duration_s=None,
        requests=9,
        seed=1,
    )
    assert [request[2:] for request in stream] == [(30, 40)]


@pytest.mark.parametrize("name", ["no_unit.csv", "unsorted.csv", "not_a_number.csv", "absurd_rate.jsonl"])
def test_times_matter_only_to_a_process_that_reads_them(name: str) -> None:
    source = FileTrace(path=str(CASES / name), strict=True)
    assert len(list(request_stream(source, Uniform(rate=1), duration_s=None, requests=2, seed=1))) == 2
