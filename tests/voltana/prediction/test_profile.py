"""A profile table survives its file; a line that is wrong is named."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.prediction.profile import Sample, read_profile, write_profile

HEADER = "phase,clock_mhz,batch_size,tokens,latency_s,energy_j\n"
GOOD = "decode,1005,8,4000,0.012,3.5\n"

positive = st.floats(1e-9, 1e6)
samples = st.builds(
    Sample,
    phase=st.sampled_from(["prefill", "decode"]),
    clock_mhz=st.integers(1, 5000),
    batch_size=st.integers(1, 5000),
    tokens=st.integers(1, 10**9),
    latency_s=positive,
    energy_j=st.none() | positive,
)


@settings(max_examples=50)
@given(st.lists(samples, max_size=10))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, written: list[Sample]) -> None:
    path = tmp_path_factory.getbasetemp() / "profiles" / "p.csv"
    write_profile(path, written)
    read = read_profile(path)
    assert [s[:4] for s in read] == [s[:4] for s in written]
    assert [s.latency_s for s in read] == pytest.approx([s.latency_s for s in written], rel=1e-8)
    assert [s.energy_j is None for s in read] == [s.energy_j is None for s in written]
    assert [s.energy_j or 0 for s in read] == pytest.approx([s.energy_j or 0 for s in written], rel=1e-8)


def test_a_table_typed_by_hand_reads(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(HEADER + GOOD + 'prefill,"1410",2,3000,9e-2,\n')
    assert read_profile(path) == [
        Sample("decode", 1005, 8, 4000, 0.012, 3.5),
        Sample("prefill", 1410, 2, 3000, 0.09, None),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "decode,1005,8,4000,0.012",
        "decode,1005,8,4000,0.012,3.5,1",
        "",
        "verify,1005,8,4000,0.012,3.5",
        "decode,fast,8,4000,0.012,3.5",
        "decode,1005.5,8,4000,0.012,3.5",
        "decode,1005,8.5,4000,0.012,3.5",
        "decode,1005,8,,0.012,3.5",
        "decode,1005,8,4000,,3.5",
        "decode,1005,8,4000,12ms,3.5",
        "decode,0,8,4000,0.012,3.5",
        "decode,1005,-8,4000,0.012,3.5",
        "decode,1005,8,0,0.012,3.5",
        "decode,1005,8,4000,0,3.5",
        "decode,1005,8,4000,nan,3.5",
        "decode,1005,8,4000,inf,3.5",
        "decode,1005,8,4000,0.012,-1",
        "decode,1005,8,4000,0.012,nan",
        "decode,1005,8,4000,0.012," + "9" * 200_000,
    ],
)
def test_a_malformed_line_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(HEADER + GOOD + line + "\n" + GOOD)
    refused(path, f"{path}:3: ")


@pytest.mark.parametrize("header", ["", "\n", "phase,clock_mhz\n", GOOD, HEADER.replace("_s", "_ms")])
def test_a_wrong_header_is_named(header: str, tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text(header)
    refused(path, f"{path}:1: ")


@pytest.mark.parametrize("name", ["missing.csv", "."])
def test_a_file_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    refused(tmp_path / name, str(tmp_path / name))


def test_a_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(HEADER.encode() + b"\xff\xfe")
    refused(path, str(path))


def refused(path: Path, start: str) -> None:
    with pytest.raises(UserError) as caught:
        read_profile(path)
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)
