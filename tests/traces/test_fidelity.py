"""The shipped tables against the facts stored in them, and, where the data is at hand, against the data."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voltana.traces import request_stream
from voltana.traces.arrivals import Timestamps, Uniform
from voltana.traces.files import FileTrace
from voltana.traces.fit import (
    LMSYS_ANSWERS,
    LMSYS_MEANS,
    PERCENTILES,
    RECIPES,
    Recipe,
    comparison,
    drawn,
    facts,
    main,
    read,
    spearman,
)
from voltana.traces.table import TableLengths, read_document

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("VOLTANA_DATA", ROOT.parent / "shared" / "data")) / "traces"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="no measurement data (set VOLTANA_DATA)")
STATISTICS = ["mean", *(f"p{percentile}" for percentile in PERCENTILES)]
TABLES = [recipe.name for recipe in RECIPES]


def assert_close(found: dict[str, Any], data: dict[str, Any]) -> None:
    for column in ("input_tokens", "output_tokens"):
        for statistic in STATISTICS:
            assert found[column][statistic] == pytest.approx(data[column][statistic], rel=0.03), (column, statistic)
        assert found[column]["min"] >= data[column]["min"]
        assert found[column]["max"] <= data[column]["max"]
    assert found["spearman"] == pytest.approx(data["spearman"], abs=0.05)


@pytest.mark.parametrize("table", TABLES)
def test_draws_have_the_stored_facts(table: str) -> None:
    document = read_document(table)
    assert_close(facts(drawn(document, 400_000)), document["facts_of_the_data"])


@pytest.mark.parametrize("table", TABLES)
def test_a_request_stream_has_the_stored_facts_times_the_scale(table: str) -> None:
    stream = request_stream(
        TableLengths(table=table, scale=10.0), Uniform(rate=1), duration_s=None, requests=100_000, seed=2
    )
    lengths = np.array([request[2:] for request in stream])
    stored = read_document(table)["facts_of_the_data"]
    for column, tokens in zip(("input_tokens", "output_tokens"), lengths.T, strict=True):
        assert tokens.mean() / 10 == pytest.approx(stored[column]["mean"], rel=0.03)
        assert np.median(tokens) / 10 == pytest.approx(stored[column]["p50"], rel=0.03)


def test_sharegpt_never_exceeds_its_context_filter() -> None:
    block = drawn(read_document("sharegpt"), 400_000)
    assert (block.input_tokens + block.output_tokens).max() <= 3000


@pytest.mark.parametrize("table", TABLES)
def test_a_table_says_where_it_comes_from(table: str) -> None:
    document = read_document(table)
    assert all(document[key] for key in ("source", "licence", "transformation"))


def test_lmsys_has_the_published_means_of_first_turns() -> None:
    stored = read_document("lmsys")["facts_of_the_data"]
    means = [stored[column]["mean"] for column in ("input_tokens", "output_tokens")]
    assert means == pytest.approx(LMSYS_MEANS, rel=0.005)


@needs_data
def test_lmsys_answers_are_the_published_ones_below_their_cut() -> None:
    """Of all answers within the cut, the same shares are shorter than any length as in the published ones."""
    published = np.loadtxt(DATA / LMSYS_ANSWERS, dtype=int, delimiter=",", skiprows=1, usecols=1)
    answers = drawn(read_document("lmsys"), 400_000).output_tokens
    within = answers[answers <= published.max()]
    assert len(within) / len(answers) == pytest.approx(0.92, abs=0.01)
    for tokens in (10, 40, 140, 300, 450):
        assert (within <= tokens).mean() == pytest.approx((published <= tokens).mean(), abs=0.02)


def test_the_documented_workload_facts_hold() -> None:
    stored = read_document("sharegpt")["facts_of_the_data"]
    assert [round(stored["input_tokens"][key]) for key in ("mean", "p50", "p99")] == [212, 38, 2171]
    assert [round(stored["output_tokens"][key]) for key in ("p50", "p90")] == [274, 768]


@pytest.mark.slow
def test_documentation_shows_the_tables_that_are_shipped() -> None:
    page = (ROOT / "docs" / "traces.md").read_text(encoding="utf-8")
    for table in TABLES:
        assert "\n".join(comparison(read_document(table))) in page


def test_spearman_averages_ties() -> None:
    assert spearman(np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])) == pytest.approx(0.9486832980505138)


@pytest.mark.slow
@needs_data
@pytest.mark.parametrize("recipe", RECIPES, ids=TABLES)
def test_draws_are_close_to_the_data(recipe: Recipe) -> None:
    data = facts(read(recipe, DATA))
    assert data == read_document(recipe.name)["facts_of_the_data"]
    assert_close(facts(drawn(read_document(recipe.name), 400_000, seed=5)), data)


@pytest.mark.slow
@needs_data
def test_the_shipped_tables_are_what_the_script_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(DATA), "--out", str(tmp_path)])
    for table in TABLES:
        assert json.loads((tmp_path / f"{table}.json").read_text()) == read_document(table)
    assert "| sharegpt | data | table | difference |" in capsys.readouterr().out


@needs_data
@pytest.mark.parametrize(
    ("file", "requests", "last_s"),
    [
        ("azure_llm_2023_conv.csv.gz", 19366, 3501.721937),
        ("mooncake_conversation.csv.gz", 12031, 3536.999),
        ("lmsys_arena_vtc_1500.csv", 1500, 600.0),
        ("sharegpt_300_qwen3-32b_tok_sps10.csv", 300, 29.183763203),
    ],
)
def test_public_traces_replay_whole(file: str, requests: int, last_s: float) -> None:
    stream = request_stream(FileTrace(path=str(DATA / file)), Timestamps(), duration_s=None, requests=10**9, seed=1)
    replayed = list(stream)
    assert len(replayed) == requests
    assert replayed[-1].arrival_s == pytest.approx(last_s)
