"""From Python: one import, a run, its record, a comparison; light until something is used."""

import subprocess
import sys
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

import voltana
from voltana.analysis.runs import load_runs
from voltana.analysis.tables import compare, csv_text
from voltana.api import as_overrides

SMALL = {"rps": 10, "duration_s": 2, "trace": "fixed", "cluster": "1p3d"}


@pytest.fixture(scope="module", name="records")
def _records(tmp_path_factory: pytest.TempPathFactory) -> voltana.Records:
    folder = tmp_path_factory.mktemp("runs")
    made = [
        voltana.simulate({**SMALL, "policy": policy, "seed": seed}, folder / f"{policy}-{seed}")
        for policy in ("static_max", "static_1005")
        for seed in (1, 2, 3)
    ]
    return voltana.load(made)


@pytest.mark.slow
def test_a_run_and_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    record = voltana.simulate({**SMALL, "policy": "static_max"})
    assert isinstance(record, voltana.Record)
    assert record.config["policy"]["name"] == "static_max" and record.config["rps"] == 10
    assert len(record.requests()) == record.summary["requests"]["submitted"] > 0
    assert set(record.instances()["clock_mhz"]) == {1410}
    started = record.provenance["started"]
    again = voltana.simulate(["trace=fixed", "duration_s=2", "cluster=1p3d", "rps=10", "policy=static_max"])
    assert again.folder == record.folder and again.provenance["started"] == started


@pytest.mark.slow
def test_comparison_is_that_of_the_command(records: voltana.Records) -> None:
    table = records.compare()
    folders = [record.folder for record in records]
    pd.testing.assert_frame_equal(
        table, pd.read_csv(StringIO(csv_text(compare(load_runs(folders), "static_max", "oracle"))))
    )
    pd.testing.assert_frame_equal(table, voltana.compare(folders))
    saved = table.set_index("policy")["saving_pct"]
    assert saved["static_max"] == 0 and saved["static_1005"] > 10


@pytest.mark.slow
def test_tables_tell_their_runs(records: voltana.Records) -> None:
    assert len(records) == 6 and [record.config["seed"] for record in records[:2]] == [1, 2]
    summary = records.summary
    assert list(summary["policy"]) == ["static_max"] * 3 + ["static_1005"] * 3
    assert summary["energy_j.total"].iloc[0] == records[0].summary["energy_j"]["total"]
    requests = records.requests()
    assert len(requests) == summary["requests.submitted"].sum()
    assert set(zip(requests["policy"], requests["seed"], strict=True)) == set(
        zip(summary["policy"], summary["seed"], strict=True)
    )
    clocks = records.instances().groupby("policy")["clock_mhz"].max()
    assert clocks.to_dict() == {"static_1005": 1005, "static_max": 1410}


@pytest.mark.slow
def test_the_page(records: voltana.Records, tmp_path: Path) -> None:
    assert records.report(tmp_path / "page.html", timelines=1).read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"policy": "none_such"}, "policy=none_such: no such option; allowed: agft"),
        ({"nothing": 1}, "nothing"),
        ("rps=75", "overrides: found 'rps=75', allowed: a mapping"),
    ],
)
def test_bad_input_says_what_is_allowed(overrides: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(voltana.UserError, match=message.replace("(", r"\(")):
        voltana.simulate(overrides, tmp_path)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.text(alphabet=st.characters(codec="ascii", exclude_categories=["Cc"])),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@given(values)
def test_any_value_reaches_the_configuration_as_it_is(value: object) -> None:
    (word,) = as_overrides({"key": value})
    assert OverridesParser.create().parse_override(word).value() == value


def test_the_import_is_light() -> None:
    heavy = {"numpy", "pandas", "hydra", "pyarrow", "pydantic", "yaml"}
    code = f"import sys, voltana; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert {"simulate", "load", "compare", "Record"} <= set(dir(voltana))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = voltana.nothing
