"""EcoPred is exact on what is linear in load and clock, and survives its file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.prediction.ecopred import BIN_ENDS, EcoPred, Line, Plane, decode_bin

coefficients = st.floats(0, 1e-2)
batches = st.integers(1, 4096)
tokens = st.integers(0, 2_000_000)
knots = st.lists(st.integers(200, 2000), min_size=2, max_size=6, unique=True).map(sorted)
any_clock = st.integers(100, 3000)


def uniform(clocks: list[int], line: Callable[[int], Line], plane: Callable[[int], Plane]) -> EcoPred:
    """A predictor with the same plane in every bin."""
    return EcoPred(clocks, [line(c) for c in clocks], [[plane(c)] * len(BIN_ENDS) for c in clocks])


@pytest.mark.parametrize(
    ("batch", "index"),
    [(1, 0), (4, 0), (5, 1), (8, 1), (9, 2), (16, 2), (17, 3), (128, 16), (129, 17), (256, 17), (257, 18), (2048, 31)],
)
def test_bin_of_a_batch(batch: int, index: int) -> None:
    assert decode_bin(batch) == index


@given(batches)
def test_a_bin_holds_the_batches_above_the_end_of_the_one_before(batch: int) -> None:
    index = decode_bin(batch)
    assert index == 0 or batch > BIN_ENDS[index - 1]
    assert batch <= BIN_ENDS[index] or index == len(BIN_ENDS) - 1


@given(knots, any_clock, st.tuples(coefficients, coefficients), st.tuples(coefficients, coefficients), tokens)
def test_prefill_linear_in_the_clock_is_exact_at_any_clock(
    clocks: list[int], clock: int, intercept: tuple[float, float], slope: tuple[float, float], load: int
) -> None:
    def true(mhz: int) -> Line:
        return Line(*(a + b * mhz / 1000 for a, b in (intercept, slope)))

    predictor = uniform(clocks, true, lambda mhz: Plane(0, 0, 0))
    assert predictor.prefill_s(load, clock) == pytest.approx(
        true(clock)[0] + true(clock)[1] * load, rel=1e-9, abs=1e-12
    )


@given(knots, any_clock, st.lists(coefficients, min_size=6, max_size=6), batches, tokens)
def test_decode_linear_in_the_clock_is_exact_at_any_clock(
    clocks: list[int], clock: int, c: list[float], batch: int, load: int
) -> None:
    def true(mhz: int) -> Plane:
        return Plane(*(a + b * mhz / 1000 for a, b in zip(c[:3], c[3:], strict=True)))

    predictor = uniform(clocks, lambda mhz: Line(0, 0), true)
    intercept, per_request, per_token = true(clock)
    expected = intercept + per_request * batch + per_token * load
    assert predictor.decode_s(batch, load, clock) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("clock", "expected_s"),
    [
        (1000, 4.0),  # profiled: its own
        (1200, 1.0),
        (1400, 0.8),
        (1100, 2.5),  # between: its neighbours, not the third
        (1300, 0.9),
        (900, 5.5),  # outside: the two nearest
        (1500, 0.7),
        (3000, 0.0),  # never negative
    ],
)
def test_blends_the_two_nearest_clocks(clock: int, expected_s: float) -> None:
    at = {1000: 4.0, 1200: 1.0, 1400: 0.8}
    predictor = uniform(list(at), lambda mhz: Line(at[mhz], 0), lambda mhz: Plane(0, at[mhz], 0))
    assert predictor.prefill_s(0, clock) == pytest.approx(expected_s, rel=1e-12)
    assert predictor.decode_s(1, 0, clock) == pytest.approx(expected_s, rel=1e-12)


@given(st.integers(0, len(BIN_ENDS) - 1))
def test_every_bin_has_its_own_plane(index: int) -> None:
    planes = [Plane(bin_ / 100, 0, 0) for bin_ in range(len(BIN_ENDS))]
    predictor = EcoPred([1000, 2000], [Line(0, 0)] * 2, [planes] * 2)
    assert predictor.decode_s(BIN_ENDS[index], 0, 1500) == pytest.approx(index / 100)


@given(clock=any_clock, batch=batches, kv=tokens)
def test_a_file_round_trip_keeps_every_prediction(
    predictor: EcoPred, tmp_path_factory: pytest.TempPathFactory, clock: int, batch: int, kv: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "round" / "trip.json"
    if not path.exists():
        predictor.save(path)
    loaded = EcoPred.load(path)
    assert (loaded.clocks_mhz, loaded.about) == (predictor.clocks_mhz, predictor.about)
    assert loaded.prefill_s(kv, clock) == pytest.approx(predictor.prefill_s(kv, clock), rel=1e-12, abs=1e-15)
    assert loaded.decode_s(batch, kv, clock) == pytest.approx(
        predictor.decode_s(batch, kv, clock), rel=1e-12, abs=1e-15
    )


def test_asking_about_other_clocks_does_not_change_the_file(predictor: EcoPred, tmp_path: Path) -> None:
    predictor.save(tmp_path / "before.json")
    predictor.decode_s(8, 1000, 1111)
    predictor.prefill_s(1000, 1111)
    predictor.save(tmp_path / "after.json")
    assert (tmp_path / "before.json").read_bytes() == (tmp_path / "after.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after.json", "before.json"]


def test_the_file_states_milliseconds(tmp_path: Path) -> None:
    uniform([1000, 2000], lambda _: Line(0.5, 0.25), lambda _: Plane(1, 2, 3)).save(tmp_path / "p.json")
    first = json.loads((tmp_path / "p.json").read_text())["clocks"][0]
    assert (first["clock_mhz"], first["prefill_ms"], first["decode_ms"][0]) == (1000, [500, 250], [1000, 2000, 3000])


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "edit",
    [
        lambda d: d.update(format="voltana-ecopred-0"),
        lambda d: d.update(decode_bin_ends=[8, 16]),
        lambda d: d.update(clocks=None),
        lambda d: d.update(clocks=[]),
        lambda d: d["clocks"].pop(),
        lambda d: d["clocks"].reverse(),
        lambda d: d.pop("about"),
        lambda d: d["clocks"][0].update(clock_mhz="1005"),
        lambda d: d["clocks"][0].pop("prefill_ms"),
        lambda d: d["clocks"][0].update(prefill_ms=[1]),
        lambda d: d["clocks"][0].update(prefill_ms=["a", 1]),
        lambda d: d["clocks"][0].update(prefill_ms=[float("nan"), 1]),
        lambda d: d["clocks"][0].update(prefill_ms=[10**400, 1]),
        lambda d: d["clocks"][1]["decode_ms"].pop(),
    ],
)
def test_a_malformed_document_is_refused_in_one_line(edit: Edit, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    uniform([1005, 1410], lambda _: Line(1, 1), lambda _: Plane(1, 1, 1)).save(path)
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    refused(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"clock_mhz,tokens\n1005,7\n"])
def test_what_is_no_document_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    refused(path)


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_what_cannot_be_read_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    refused(tmp_path / name)


def refused(path: Path) -> None:
    with pytest.raises(UserError) as caught:
        EcoPred.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
