"""The report: its numbers are those of voltana-compare, it needs nothing else, and it takes any records."""

import base64
import csv
import hashlib
import json
import math
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import voltana.analysis.page
from voltana.analysis.page.packed import buckets, packed, rounded
from voltana.analysis.page.write import Options, page
from voltana.analysis.runs import load_runs
from voltana.analysis.tables import compare, csv_text, text_rows
from voltana.record import RunRecord, replace_summary

WriteRun = Callable[..., Path]
PAGE = Path(voltana.analysis.page.__file__).parent
STATES = [
    (0.0, "prefill-0", 1410, 1, 300.0),
    (2.0, "prefill-0", 1005, 0, 75.0),
    (0.0, "decode-0", 1005, 4, 200.0),
    (1.0, "decode-0", 1410, 8, 350.0),
]


def told(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, flags=re.DOTALL)
    assert found
    loaded: dict[str, Any] = json.loads(found[1])
    return loaded


@pytest.fixture(name="sweep")
def _sweep(tmp_path: Path, write_run: WriteRun) -> Path:
    """Two policies and an oracle at two rates, three seeds."""
    for seed in (1, 2, 3):
        for rps in (50, 75):
            for policy, energy in (("static_max", 200), ("voltana", 150 + seed), ("oracle", 140)):
                ttft = [0.1] * (9 if policy == "static_max" else 8) + [0.9] * (rps // 25 - 1)
                write_run(
                    f"{policy}{rps}{seed}",
                    policy,
                    energy + rps,
                    rps=rps,
                    seed=seed,
                    requests={"ttft_s": ttft},
                    instances=STATES,
                )
    return tmp_path


@pytest.mark.slow
def test_the_numbers_are_those_of_compare(sweep: Path) -> None:
    runs = load_runs([sweep])
    data = told(page(runs, Options()))
    comparison = compare(runs, "static_max", "oracle")
    header, rows = text_rows(comparison, "report")
    assert data["table"]["header"] == header
    assert [row["cells"] for row in data["table"]["rows"]] == rows
    assert data["csv"] == csv_text(comparison)
    by_title = [dict(zip(header, row["sort"], strict=True)) for row in data["table"]["rows"]]
    written = list(csv.DictReader(StringIO(data["csv"])))
    for shown, row in zip(by_title, written, strict=True):
        for title, name in (
            ("energy kJ", "energy_kj"),
            ("saving %", "saving_pct"),
            ("at equal attainment %", "saving_at_equal_attainment_pct"),
            ("J/request", "energy_per_request_j"),
            ("/oracle", "energy_over_oracle"),
        ):
            number = float(row[name]) if row[name] else None
            assert shown[title] == (None if number is None else pytest.approx(number, rel=1e-6))


def test_the_verdict_tells_how_much_at_what_cost(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "static_max", 200, requests={"ttft_s": [0.1] * 10})
    write_run("1", "voltana", 150, requests={"ttft_s": [0.1] * 9 + [0.9]})
    verdict = told(page(load_runs([tmp_path]), Options()))["verdict"]
    assert verdict["lead"] == (
        "voltana saves 25.0 % of the energy of static_max; 10.0 points fewer requests meet both objectives"
    )
    assert verdict["best"] == "voltana"


def test_what_cannot_be_brought_level_is_not_praised(tmp_path: Path, write_run: WriteRun) -> None:
    for rps in (50, 75):
        write_run(f"max{rps}", "static_max", 200, rps=rps, requests={"ttft_s": [0.1] * 9 + [0.9]})
        write_run(f"low{rps}", "static_1005", 100, rps=rps, requests={"ttft_s": [0.9] * 10})
        write_run(f"own{rps}", "voltana", 180, rps=rps, requests={"ttft_s": [0.1] * 9 + [0.9]})
    assert told(page(load_runs([tmp_path]), Options()))["verdict"]["best"] == "voltana"


def test_curves_and_front(sweep: Path) -> None:
    data = told(page(load_runs([sweep]), Options()))
    (panel,) = data["curves"]["panels"]
    line = next(line for line in panel["lines"] if line["name"] == "voltana")
    mean, least, most = line["points"][0]["y"][2]
    assert mean == pytest.approx(202) and least < 201 < 203 < most  # an interval over three seeds, wider than they are
    fronts = {point["name"]: point["front"] for point in data["tradeoff"]["panels"][0]["points"]}
    assert fronts == {"static_max": True, "voltana": False, "oracle": True}
    shown = {run["id"] for run in data["runs"]}
    assert {point["run"] for point in data["tradeoff"]["panels"][1]["points"]} <= shown


def test_a_run_is_told_in_detail(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "voltana", instances=STATES, requests={"failed": 2})
    (run,) = told(page(load_runs([tmp_path]), Options()))["runs"]
    assert run["failures"]["failed"] == 2 and [row[2] for row in run["failures"]["rows"]] == ["failed"] * 2
    end_s = RunRecord(tmp_path / "0").summary["end_s"]
    shares = dict(map(tuple, run["residency"]["decode"]))
    assert shares == {1005: pytest.approx(1 / end_s, rel=1e-3), 1410: pytest.approx(1 - 1 / end_s, rel=1e-3)}
    assert run["distributions"]["ttft"][0] == 100 and run["distributions"]["ttft"][-1] == 900
    assert [path["name"] for path in run["states"]["paths"]] == ["decode-0"]
    assert max(run["states"]["paths"][0]["kv"]) == 800
    names = [(each["name"], each["phase"]) for each in run["timeline"]["instances"]]
    assert names == [("prefill-0", "prefill"), ("decode-0", "decode")]
    assert run["timeline"]["instances"][1]["values"]["queued"]["mean"] == {"c": 0}


def test_few_runs_of_many_are_told_in_detail(sweep: Path) -> None:
    data = told(page(load_runs([sweep]), Options(details=4, timelines=2)))
    assert len(data["runs"]) == 4 and data["all_runs"] == 18
    drawn = [(run["policy"], run["setting"]) for run in data["runs"] if run["timeline"]]
    assert drawn == [("static_max", "75 requests/s"), ("voltana", "75 requests/s")]


def test_a_baseline_need_not_be_there(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "voltana", 150)
    write_run("1", "static_1005", 120)
    data = told(page(load_runs([tmp_path]), Options()))
    assert data["verdict"]["lead"].startswith("voltana used 150.0 kJ")
    assert data["tradeoff"]["x"] == "Energy (kJ)" and data["curves"] is None
    assert "No run of static_max: no saving there." in data["notes"]


def test_a_live_record_with_gaps(tmp_path: Path, write_run: WriteRun) -> None:
    """Nothing metered at first, nothing known of the batch, a starved client, power scaled from another GPU."""
    states = [(0.0, "decode-0", None, None, None), (1.0, "decode-0", 1005, None, 100.0)]
    rows = [(time, name, clock, 0 if batch is None else batch, power) for time, name, clock, batch, power in states]
    folder = write_run("0", "voltana", source="live", instances=rows, gpu__power="scaled")
    summary = RunRecord(folder).summary
    starved = {"starved": ["client lag"], "live": {"servers_ended": {"decode-0": "killed"}}}
    replace_summary(folder, summary | starved)
    data = told(page(load_runs([folder]), Options()))
    assert [note.split(" ")[0] for note in data["warnings"]] == ["Power", "*", "Servers"]
    assert "a100_sxm4_80g is scaled" in data["warnings"][0]
    assert ["Power", "scaled"] in data["what"]["origin"]
    assert data["runs"][0]["failures"]["servers"] == ["decode-0"]


def test_text_from_outside_stays_text(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "</script><b>x", instances=STATES)
    text = page(load_runs([tmp_path]), Options(title="<i>&"))
    assert "<b>x" not in text and "<i>" not in text
    assert told(text)["title"] == "<i>&"


def test_it_needs_nothing_else_and_is_the_same_each_time(sweep: Path) -> None:
    runs = load_runs([sweep])
    text = page(runs, Options())
    assert text == page(load_runs([sweep]), Options())
    code = re.sub(r'<script type="application/json".*?</script>', "", text, flags=re.DOTALL)
    outside = set(re.findall(r"https?://[^\s\"'`)]+", code))
    assert outside == {"https://github.com/leeoniya/uPlot", "http://www.w3.org/2000/svg"}  # a comment, a name
    assert not re.search(r"\b(fetch|XMLHttpRequest|import)\s*\(|<link|src=", code)
    assert "default-src 'none'" in code


@pytest.mark.slow
def test_twenty_four_runs_with_three_timelines_are_small(tmp_path: Path, write_run: WriteRun) -> None:
    """Timelines of four instances whose every quantity jumps all the time."""
    rng = np.random.default_rng(1)
    states = [
        (float(t), f"{phase}-{i}", int(rng.integers(210, 1410)), int(rng.integers(0, 500)), float(rng.uniform(70, 400)))
        for phase in ("prefill", "decode")
        for i in (0, 1)
        for t in np.sort(rng.uniform(0, 4, 700))
    ]
    for index in range(24):
        write_run(str(index), ("static_max", "voltana", "agft")[index % 3], rps=50 + index // 3, instances=states)
    text = page(load_runs([tmp_path]), Options())
    data = told(text)
    assert len(data["runs"]) == 24 and sum(run["timeline"] is not None for run in data["runs"]) == 3
    assert len(text.encode()) < 1_500_000


def test_the_vendored_library_is_the_one_we_looked_at() -> None:
    """uPlot 1.6.32 from the npm registry, MIT; a newer one is looked at in a browser first."""
    library = (PAGE / "vendor" / "uPlot.iife.min.js").read_bytes()
    assert library.startswith(b"/*! https://github.com/leeoniya/uPlot (v1.6.32) */")
    digest = hashlib.sha256(library).hexdigest()
    assert digest == "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f"
    assert (PAGE / "vendor" / "uPlot.LICENSE").read_text().startswith("The MIT License (MIT)")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_contrast(theme: str) -> None:
    """WCAG 2.1: 4.5 to 1 for text, 3 to 1 for marks."""
    styles = (PAGE / "style.css").read_text()
    found = re.search(
        r':root\[data-theme="dark"\] \{(.*?)\}' if theme == "dark" else r"^:root \{(.*?)\}", styles, flags=re.DOTALL
    )
    assert found
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", found[1]))
    for paper in ("paper", "card"):
        for ink in ("ink", "soft", "accent"):
            assert contrast(colours[ink], colours[paper]) >= 4.5, (ink, paper)
    assert contrast(colours["warn"], colours["warn-paper"]) >= 4.5
    for mark in ("floor", "static", "dynamic", "knee", "p0", "d0"):
        assert contrast(colours[mark], colours["paper"]) >= 3, mark


def contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


numbers = st.floats(-1e6, 1e6)


@given(st.lists(numbers | st.just(math.nan), min_size=1, max_size=50))
def test_what_is_packed_comes_back(values: list[float]) -> None:
    told = packed(np.array(values))
    known = [value for value in values if not math.isnan(value)]
    if "c" in told:
        assert told["c"] is None or known == pytest.approx([told["c"]] * len(known), rel=1e-6)
        return
    steps = np.frombuffer(base64.b64decode(told["d"]), "<u2")
    back = [math.nan if q == 65535 else told["lo"] + q * (told["hi"] - told["lo"]) / 65534 for q in steps]
    assert back == pytest.approx(values, abs=(told["hi"] - told["lo"]) / 65534 + 1e-9, nan_ok=True)


@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 1e3)), min_size=1, max_size=30),
    st.integers(1, 12),
    st.floats(0, 3),
)
def test_no_extreme_is_lost_and_means_keep_the_area(steps: list[tuple[float, float]], count: int, after: float) -> None:
    time = np.cumsum([0.0, *(span for span, _ in steps[:-1])])
    value = np.array([each for _, each in steps])
    edges = np.linspace(0, time[-1] + steps[-1][0] + after, count + 1)
    low, mean, high = buckets(time, value, edges)
    assert low.min() == value.min() and high.max() == value.max()
    assert (low <= mean).all() and (mean <= high).all()
    spans = np.diff(np.append(time, edges[-1]))
    assert (mean * np.diff(edges)).sum() == pytest.approx((value * spans).sum(), rel=1e-6, abs=1e-6)


@given(st.floats(-1e300, 1e300) | st.sampled_from([math.nan, math.inf, -math.inf]))
def test_rounding_keeps_five_digits(value: float) -> None:
    kept = rounded(value)
    if math.isfinite(value):
        assert kept == pytest.approx(value, rel=1e-4)
    else:
        assert kept is None
