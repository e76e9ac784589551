"""Which loads are measured."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.app.config import DecodeProfile, PrefillProfile
from voltana.live.profiling.cells import Cell, Group, Point, decode_groups, misfit, prefill_group, spread_order
from voltana.live.profiling.search import Search
from voltana.live.profiling.torch.measure import Measured
from voltana.prediction.ecopred import decode_bin

contexts = st.tuples(st.integers(1, 300), st.integers(0, 3000)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def decode_cells(max_batch: int, tokens_per_request: tuple[int, int]) -> DecodeProfile:
    return DecodeProfile(max_batch=max_batch, tokens_per_request=tokens_per_request, samples=5)


@given(st.integers(1, 2048), contexts, st.integers(1, 2_000_000))
def test_decode_cells_are_within_range_capacity_and_bin(max_batch: int, span: tuple[int, int], capacity: int) -> None:
    groups = list(decode_groups(decode_cells(max_batch, span), capacity))
    assert bool(groups) == (span[0] <= capacity)
    for group in groups:
        assert len({decode_bin(cell.batch_size) for cell in group.cells}) == 1
        assert len(set(group.cells)) == len(group.cells)
        for cell in group.cells:
            assert 1 <= cell.batch_size <= max_batch
            assert span[0] <= cell.length <= span[1]
            assert cell.tokens <= capacity


@given(st.integers(1, 5000), st.integers(0, 20000), st.integers(1, 4096))
def test_prefill_cells_are_whole_prompts(low: int, more: int, prompt: int) -> None:
    group = prefill_group(PrefillProfile(tokens=(low, low + more), prompt_tokens=prompt, samples=4))
    for cell in group.cells:
        assert cell.length == prompt or (cell.batch_size == 1 and cell.length < prompt)
        assert cell.tokens <= max(low + more, prompt) + prompt / 2


def test_a_group_starts_with_its_corners_and_middle() -> None:
    (group,) = decode_groups(decode_cells(4, (100, 500)), 10**6)
    done: list[Cell] = []
    for _ in range(5):
        cell = group.next_cell(done)
        assert cell is not None
        done.append(cell)
    assert {cell[1:] for cell in done[:4]} == {(1, 100), (1, 500), (4, 100), (4, 500)}
    assert done[4].length == 300 and done[4].batch_size in (2, 3)


def test_every_candidate_comes_once() -> None:
    (group,) = decode_groups(decode_cells(4, (10, 50)), 10**6)
    done: list[Cell] = []
    while (cell := group.next_cell(done)) is not None:
        done.append(cell)
    assert sorted(done) == sorted(group.cells)


def test_groups_are_begun_at_the_ends() -> None:
    groups = [
        prefill_group(PrefillProfile(tokens=(8, 64), prompt_tokens=8, samples=4)),
        *decode_groups(decode_cells(64, (1, 10)), 10**6),
    ]
    order = spread_order(groups)
    assert sorted(map(id, order)) == sorted(map(id, groups))
    assert order[0].phase == "prefill"
    assert [order[1], order[2]] == [groups[-1], groups[1]]


def test_misfit_is_zero_on_a_plane_and_finds_a_bend() -> None:
    (group,) = decode_groups(decode_cells(4, (10, 500)), 10**6)
    cells = group.cells[::3]
    plane = [Point("decode", c.batch_size, c.tokens, 1e-3 + 1e-5 * c.batch_size + 1e-7 * c.tokens) for c in cells]
    assert misfit(plane) == pytest.approx(0.0, abs=1e-9)
    bent = [
        point._replace(latency_s=point.latency_s * (1.3 if cell.length > 400 else 1.0))
        for cell, point in zip(cells, plane, strict=True)
    ]
    assert misfit(bent) > 0.02
    assert misfit(plane[:3]) == misfit([]) == 1.0


def finished(cell: Cell, latency_s: float, spent_s: float = 1.0, clock_mhz: int = 1000) -> Measured:
    return Measured(
        cell.phase, clock_mhz, cell.batch_size, cell.length, latency_s, 0, 0, 3, None, None, None, 0, "", spent_s
    )


def run_search(search: Search, bend: Group | None = None) -> list[Cell]:
    order = []
    for number in count():
        cell = search.next_cell()
        if cell is None:
            return order
        order.append(cell)
        crooked = bend is not None and cell in bend.cells
        latency = 1e-3 + 1e-7 * cell.tokens + (3e-4 * (number % 3) if crooked else 0.0)
        search.add(finished(cell, latency))
    return order


GROUPS = spread_order(
    [
        prefill_group(PrefillProfile(tokens=(8, 64), prompt_tokens=8, samples=4)),
        *decode_groups(decode_cells(16, (1, 100)), 10**6),
    ]
)


def test_first_every_group_then_where_the_fit_is_worst() -> None:
    bend = GROUPS[2]
    order = run_search(Search(GROUPS, [], budget_s=30), bend)
    assert len(order) == 30 == len(set(order))
    own = 4 + 5 * 3
    assert sorted(order[:own]) == sorted(cell for g in GROUPS for cell in [c for c in order[:own] if c in g.cells])
    assert set(order[own:]) <= set(bend.cells)


def test_a_group_begun_is_finished_though_time_is_up() -> None:
    assert len(run_search(Search(GROUPS, [], budget_s=11))) == 4 + 5 + 5


def test_each_phase_gets_a_group_even_without_time() -> None:
    assert len(run_search(Search(GROUPS, [], budget_s=0))) == 4 + 5


def test_what_was_measured_before_is_not_measured_again() -> None:
    first = run_search(Search(GROUPS, [], budget_s=12))
    again = Search(GROUPS, [finished(cell, 1e-3) for cell in first], budget_s=12)
    assert again.spent_s == len(first)
    assert run_search(again) == []
    longer = Search(GROUPS, [finished(cell, 1e-3) for cell in first], budget_s=20)
    assert not set(run_search(longer)) & set(first)


def test_a_skipped_cell_is_not_offered_again() -> None:
    search = Search(GROUPS, [], budget_s=10)
    cell = search.next_cell()
    assert cell is not None
    search.skip(cell)
    assert cell not in run_search(search)


def test_a_cell_is_done_when_all_its_clocks_are() -> None:
    search = Search(GROUPS, [], budget_s=100, clocks_mhz=[1410, 705])
    cell = search.next_cell()
    assert cell is not None and search.missing_clocks(cell) == [705, 1410]
    search.add(finished(cell, 1e-3, clock_mhz=705))
    assert search.next_cell() == cell and search.missing_clocks(cell) == [1410]
    search.add(finished(cell, 1e-3, clock_mhz=1410))
    assert search.next_cell() != cell


def test_it_stops_where_all_fits_well() -> None:
    own = 4 + 5 * 3
    assert len(run_search(Search(GROUPS, [], budget_s=60, good_misfit=0.01))) == own
    assert len(run_search(Search(GROUPS, [], budget_s=60, good_misfit=0.01), GROUPS[2])) > own
