"""The numbers of the comparison, what makes a setting, and the files it writes."""

import csv
import json
import math
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from voltana.analysis.commands import print_table
from voltana.analysis.runs import flat_config, load_runs
from voltana.analysis.tables import (
    Comparison,
    Estimate,
    Row,
    caption,
    compare,
    csv_text,
    estimate,
    markdown,
    rich_table,
    text_rows,
)
from voltana.errors import UserError
from voltana.record import RunRecord

WriteRun = Callable[..., Path]


def compared(tmp_path: Path, baseline: str = "static_max") -> Comparison:
    return compare(load_runs([tmp_path]), baseline)


def row_of(comparison: Comparison, policy: str, **setting: object) -> Row:
    (row,) = (row for row in comparison.rows if row.policy == policy and setting.items() <= row.setting.items())
    return row


def mean(row: Row, name: str) -> float:
    value = row.values[name]
    assert value is not None
    return value.mean


def test_numbers_of_a_run(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "static_max", 200)
    write_run("1", "voltana", 150, requests={"ttft_s": [0.1, 0.2, 0.3, 0.9], "itl_s": 0.03, "failed": 1})
    row = row_of(compared(tmp_path), "voltana")
    numbers = {name: value.mean for name, value in row.values.items() if value is not None}
    assert numbers == pytest.approx(
        {
            "energy_kj": 150,
            "saving_pct": 25,
            "ttft_attainment_pct": 60,
            "itl_attainment_pct": 80,
            "joint_attainment_pct": 60,
            "goodput_per_s": 3 / 4.2,
            "ttft_p50_ms": 250,
            "ttft_p90_ms": 720,
            "ttft_p95_ms": 810,
            "ttft_p99_ms": 882,
            "itl_p50_ms": 30,
            "itl_p90_ms": 30,
            "itl_p95_ms": 30,
            "itl_p99_ms": 30,
            "e2e_mean_ms": 675,
            "e2e_p50_ms": 550,
            "e2e_p90_ms": 1020,
            "e2e_p95_ms": 1110,
            "e2e_p99_ms": 1182,
            "energy_per_request_j": 150_000 / 4,
            "energy_per_output_token_j": 150_000 / 44,
            "requests_completed": 4,
            "requests_failed": 1,
        }
    )
    assert all(value.ci95 is None for value in row.values.values() if value)


def test_settings_are_what_varies_besides_policy_and_seed(tmp_path: Path, write_run: WriteRun) -> None:
    for index, (policy, rps, seed) in enumerate([("static_max", 50, 1), ("voltana", 100, 1), ("voltana", 50, 2)]):
        write_run(str(index), policy, rps=rps, seed=seed)
    runs = load_runs([tmp_path])
    assert runs.keys == ["rps"]
    assert runs.settings() == [{"rps": 50}, {"rps": 100}]
    assert runs.shared["model"] == "llama31_8b"
    assert runs.shared["duration_s"] == 120


def test_parts_of_a_named_group_are_not_told_twice(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "static_max")
    write_run("1", "static_max", model__name="qwen3_32b", model__layers=64)
    write_run("2", "static_max", slo__ttft_ms=300)
    assert load_runs([tmp_path]).keys == ["model", "slo.ttft_ms"]


def test_policy_variants_of_one_name_are_told_apart(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "static_max", 100)
    write_run("1", "voltana", 80, policy__decode_controller={"margin": 1})
    write_run("2", "voltana", 70, policy__decode_controller={"margin": 2})
    assert load_runs([tmp_path]).policies() == [
        "static_max",
        "voltana decode_controller.margin=1",
        "voltana decode_controller.margin=2",
    ]


def test_policy_parameters_that_follow_the_setting_make_no_variant(tmp_path: Path, write_run: WriteRun) -> None:
    for index, slo in enumerate((300, 600)):
        write_run(str(index), "voltana", slo__ttft_ms=slo, policy__decode_controller={"slo_ms": slo})
    assert load_runs([tmp_path]).policies() == ["voltana"]


def test_mean_and_confidence_interval_over_seeds(tmp_path: Path, write_run: WriteRun) -> None:
    for seed, (base, ours) in enumerate([(100.0, 80.0), (110.0, 99.0), (120.0, 90.0)]):
        write_run(f"base{seed}", "static_max", base, seed=seed)
        write_run(f"ours{seed}", "voltana", ours, seed=seed)
    comparison = compared(tmp_path)
    row = row_of(comparison, "voltana")
    assert row.runs == 3
    assert mean(row, "saving_pct") == pytest.approx((20 + 10 + 25) / 3)
    base_energy = row_of(comparison, "static_max").values["energy_kj"]
    assert base_energy == pytest.approx((110, 4.302652729911275 * 10 / math.sqrt(3), 3, 100, 120))
    assert "Mean ± 95 % confidence interval over 3 runs" in comparison.notes[0]


def test_estimate() -> None:
    assert estimate([]) is None
    assert estimate([3.0]) == Estimate(3.0, None, 1, 3.0, 3.0)
    assert estimate([1.0, 2.0]) == Estimate(1.5, None, 2, 1.0, 2.0)
    assert estimate([1.0, 1.0, 1.0]) == Estimate(1.0, 0.0, 3, 1.0, 1.0)


def test_saving_needs_the_baseline_at_the_same_setting_and_seed(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "static_max", 100, rps=50)
    write_run("1", "voltana", 80, rps=50)
    write_run("2", "voltana", 90, rps=60)
    write_run("3", "governor", 70, rps=50, seed=99)
    comparison = compared(tmp_path)
    assert mean(row_of(comparison, "voltana", rps=50), "saving_pct") == pytest.approx(20)
    assert row_of(comparison, "voltana", rps=60).values["saving_pct"] is None
    assert row_of(comparison, "governor").values["saving_pct"] is None
    assert [note for note in comparison.notes if "No run" in note] == [
        "No run of static_max at rps=60: no saving there."
    ]


def test_unknown_baseline_lists_what_is_there(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "voltana")
    write_run("1", "governor")
    with pytest.raises(UserError, match="baseline: found static_max, allowed: voltana, governor"):
        compared(tmp_path)


def test_an_unknown_baseline_may_be_one_that_did_not_end(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "voltana")
    (write_run("1", "static_max") / "summary.json").unlink()
    with pytest.raises(UserError, match=f"allowed: voltana; left out, as they did not end: {tmp_path / '1'}$"):
        compared(tmp_path)


def test_a_simulation_repeated_counts_once_and_a_live_run_each_time(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "static_max", 100)
    copy = write_run("1", "static_max", 100)
    comparison = compared(tmp_path)
    assert comparison.rows[0].runs == 1
    assert str(copy) in comparison.notes[-1]
    write_run("0", "static_max", 100, source="live")
    write_run("1", "static_max", 104, source="live")
    (row,) = compared(tmp_path).rows
    assert row.runs == 2
    assert mean(row, "energy_kj") == pytest.approx(102)


def test_text_of_short_columns(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "voltana", 150)
    write_run("1", "static_max", 200)
    header, rows = text_rows(compared(tmp_path), "short")
    assert header == [
        "policy", "energy kJ", "saving %", "TTFT met %", "ITL met %", "both met %", "TTFT p99 ms", "ITL p99 ms",
    ]  # fmt: skip
    assert rows == [
        ["static_max", "200.0", "0.0", "75.0", "100.0", "75.0", "882", "30.0"],
        ["voltana", "150.0", "25.0", "75.0", "100.0", "75.0", "882", "30.0"],
    ]


def test_csv_holds_unrounded_numbers(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "static_max", 300, rps=50)
    write_run("1", "voltana", 200, rps=50)
    write_run("2", "voltana", 200, rps=55)
    rows = list(csv.DictReader(StringIO(csv_text(compared(tmp_path)))))
    assert [(row["rps"], row["policy"], row["runs"]) for row in rows] == [
        ("50", "static_max", "1"),
        ("50", "voltana", "1"),
        ("55", "voltana", "1"),
    ]
    assert float(rows[1]["saving_pct"]) == pytest.approx(100 / 3, rel=1e-15)
    assert rows[1]["saving_pct_ci95"] == rows[2]["saving_pct"] == ""


def test_markdown(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "static_max", 200, rps=50)
    write_run("1", "voltana", 150, rps=60)
    lines = markdown(compared(tmp_path), "full").splitlines()
    header = "| source | model | gpu | cluster | trace | arrival | slo | rps | policy | runs | energy kJ | saving % |"
    assert lines[0].startswith(header)
    assert lines[1].startswith(f"{'| --- ' * 9}| ---: |") and lines[1].endswith("| ---: | --- |")
    same = "sim | llama31_8b | a100_sxm4_80g | 2p2d | sharegpt | poisson | paper"
    assert lines[3].startswith(f"| {same} | 60 | voltana | 1 | 150.0 | - | 3409.091 |")
    assert lines[3].endswith("| 250/720/810/882 | 30.0/30.0/30.0/30.0 | 550/1020/1110/1182 | 4/0 | - |")
    assert lines[5:] == [
        "No run of static_max at rps=60: no saving there.",
        "",
        "All rows: duration_s=120 engine=reference seed=13.",
    ]


@pytest.mark.parametrize("rps", [(50, 60), (50, 50)])
def test_the_csv_of_any_runs_says_where_each_row_comes_from(
    tmp_path: Path, write_run: WriteRun, rps: tuple[int, int]
) -> None:
    for index, rate in enumerate(rps):
        write_run(str(index), ("static_max", "voltana")[index], rps=rate, model__name="qwen3_32b")
    rows = list(csv.DictReader(StringIO(csv_text(compared(tmp_path)))))
    told = ("source", "model", "gpu", "trace", "slo", "rps", "policy", "duration_s", "slo_ttft_ms", "slo_itl_ms")
    assert [[row[key] for key in told] for row in rows] == [
        ["sim", "qwen3_32b", "a100_sxm4_80g", "sharegpt", "paper", str(rate), policy, "120", "600.0", "60.0"]
        for rate, policy in zip(rps, ("static_max", "voltana"), strict=True)
    ]


def test_records_of_earlier_versions_lack_some_numbers(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write_run("0", "static_max")
    numbers = json.loads((folder / "summary.json").read_text())
    del numbers["e2e_ms"], numbers["goodput_per_s"], numbers["ttft_ms"]["p95"], numbers["itl_ms"]["p95"]
    (folder / "summary.json").write_text(json.dumps(numbers))
    header, (row,) = text_rows(compared(tmp_path), "full")
    shown = dict(zip(header, row, strict=True))
    assert shown["goodput 1/s"] == "-"
    assert shown["TTFT ms p50/p90/p95/p99"] == "250/720/-/882"
    assert shown["E2E ms p50/p90/p95/p99"] == "-/-/-/-"
    (cells,) = csv.DictReader(StringIO(csv_text(compared(tmp_path))))
    assert cells["e2e_p50_ms"] == cells["goodput_per_s"] == "" != cells["ttft_p99_ms"]


def test_two_seeds_have_a_mean_and_no_interval(tmp_path: Path, write_run: WriteRun) -> None:
    for seed, energy in enumerate((100.0, 110.0)):
        write_run(f"a{seed}", "static_max", energy, seed=seed)
        write_run(f"b{seed}", "voltana", energy, seed=seed)
    write_run("b2", "voltana", 111.0, seed=2)
    comparison = compared(tmp_path)
    header, (two, three) = text_rows(comparison, "short")
    assert header[:3] == ["policy", "runs", "energy kJ"]
    assert two[:3] == ["static_max", "2", "105.0"]
    assert three[1] == "3" and three[2].startswith("107.0 ±")
    assert "2 to 3 runs, ± 95 % confidence interval from 3 on" in comparison.notes[0]
    first, _ = csv.DictReader(StringIO(csv_text(comparison)))
    assert first["energy_kj_ci95"] == ""


def test_starved_runs_are_marked(tmp_path: Path, write_run: WriteRun) -> None:
    for index, (policy, reasons) in enumerate([("static_max", []), ("voltana", ["client lag p99 80 ms | 50"])]):
        folder = write_run(str(index), policy, source="live")
        numbers = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**numbers, "starved": reasons}))
    comparison = compared(tmp_path)
    assert [row[0] for row in text_rows(comparison, "short")[1]] == ["static_max", "voltana *"]
    assert comparison.notes[-1].startswith("* starved") and "voltana: client lag p99 80 ms" in comparison.notes[-1]
    assert [row["starved"] for row in csv.DictReader(StringIO(csv_text(comparison)))] == [
        "",
        "client lag p99 80 ms | 50",
    ]
    lines = markdown(comparison, "short").splitlines()
    assert lines[3].endswith(r"| client lag p99 80 ms \| 50 |")
    (folder / "summary.json").write_text(json.dumps({**numbers, "starved": "yes"}))
    with pytest.raises(UserError, match="starved: found 'yes', allowed: a list of texts"):
        compared(tmp_path)


@pytest.mark.parametrize(
    ("count", "met", "note"),
    [
        (
            70,
            (63, 68),
            "Few requests, 70 a row: differences of attainment from static_max below 10 points may be chance, as may",
        ),
        (
            70,
            (30, 68),
            "Few requests, 70 a row: differences of attainment from static_max below 13 points may be chance (",
        ),
        (3000, (2700, 2910), None),
    ],
)
def test_what_few_requests_cannot_tell_is_told(
    tmp_path: Path, write_run: WriteRun, count: int, met: tuple[int, int], note: str | None
) -> None:
    for index, (policy, within) in enumerate(zip(("static_max", "voltana"), met, strict=True)):
        folder = write_run(str(index), policy)
        numbers = json.loads((folder / "summary.json").read_text())
        numbers |= {"requests": {**numbers["requests"], "submitted": count}, "joint_attainment": within / count}
        (folder / "summary.json").write_text(json.dumps(numbers))
    notes = [each for each in compared(tmp_path).notes if each.startswith("Few")]
    assert len(notes) == (note is not None) and all(each.startswith(str(note)) for each in notes)


def test_that_latencies_do_not_follow_the_clock_is_told(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write_run("0", "static_max", source="live")
    numbers = json.loads((folder / "summary.json").read_text())
    numbers["live"] = {"servers": "sglang", "control": "simulated"}
    (folder / "summary.json").write_text(json.dumps(numbers))
    assert compared(tmp_path).notes[-1].startswith("Real servers beside simulated GPUs: their latencies do not follow")


def test_runs_in_which_a_server_died_are_told(tmp_path: Path, write_run: WriteRun) -> None:
    for index, died in enumerate([{}, {"decode-1": "it ended by signal 9"}]):
        folder = write_run(str(index), "static_max", source="live", seed=index)
        numbers = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**numbers, "live": {"servers_ended": died}}))
    assert compared(tmp_path).notes[-1] == "Servers died in runs shown here: static_max: decode-1."


USERS_OWN = "_a[red]b*c|d\ne:smile:$x$ <b>"


def test_text_of_the_user_is_no_markup(tmp_path: Path, write_run: WriteRun, capsys: pytest.CaptureFixture[str]) -> None:
    write_run("0", USERS_OWN, trace__name="[bold]")
    write_run("1", USERS_OWN, trace__name=":tada:")
    comparison = compared(tmp_path, USERS_OWN)
    print_table("[b]:smile:", rich_table(comparison, "short"), ["[i]:x:"])
    out = capsys.readouterr().out
    for text in ("[b]:smile:", "[i]:x:", "[bold]", ":tada:", "_a[red]b*c|d e:smile:$x$ <b>"):
        assert text in out
    lines = markdown(comparison, "short").splitlines()
    assert r"| \_a\[red\]b\*c\|d e:smile:\$x\$ \<b\> |" in lines[2]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines[:4]}) == 1
    assert [row["policy"] for row in csv.DictReader(StringIO(csv_text(comparison), newline=""))] == [USERS_OWN] * 2


def test_unknown_numbers_are_shown_as_absent(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write_run("0", "static_max")
    summary = json.loads((folder / "summary.json").read_text())
    summary["ttft_attainment"] = None
    (folder / "summary.json").write_text(json.dumps(summary))
    _, ((*_, attained, _itl, _both, _p99, _itl_p99),) = text_rows(compared(tmp_path), "short")
    assert attained == "-"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"energy_j": {}}, "missing key energy_j.total"),
        ({"energy_j": {"total": "much"}}, "energy_j.total: found 'much', allowed: a number"),
    ],
)
def test_malformed_summary(tmp_path: Path, write_run: WriteRun, change: dict[str, object], message: str) -> None:
    folder = write_run("0", "static_max")
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | change))
    with pytest.raises(UserError, match=f"summary.json: {message}"):
        compared(tmp_path)


def test_record_without_a_policy_name(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "static_max", policy__name=None)
    with pytest.raises(UserError, match=r"config.yaml: policy.name: found None, allowed: the name of a policy"):
        compared(tmp_path)


def test_distances_to_the_oracle_and_the_bound(tmp_path: Path, write_run: WriteRun) -> None:
    for seed, (ours, best) in enumerate([(90.0, 75.0), (110.0, 100.0)]):
        write_run(f"base{seed}", "static_max", 150.0, seed=seed)
        write_run(f"best{seed}", "oracle", best, seed=seed)
        folder = write_run(f"ours{seed}", "voltana", ours, seed=seed)
        numbers = json.loads((folder / "summary.json").read_text())
        (folder / "summary.json").write_text(json.dumps({**numbers, "energy_bound_j": 50_000.0}))
    comparison = compare(load_runs([tmp_path]), "static_max", "oracle")
    ours_row = row_of(comparison, "voltana")
    assert mean(ours_row, "energy_over_oracle") == pytest.approx((1.2 + 1.1) / 2)
    assert mean(ours_row, "energy_over_bound") == pytest.approx(2.0)
    assert mean(row_of(comparison, "oracle"), "energy_over_oracle") == 1
    assert row_of(comparison, "static_max").values["energy_over_bound"] is None
    header, rows = text_rows(comparison, "short")
    assert header[:5] == ["policy", "energy kJ", "saving %", "/oracle", "/bound"]
    assert rows[0][4] == "-"
    lines = markdown(comparison, "full").splitlines()
    assert len({line.count("|") for line in lines[:5]}) == 1


def test_no_distance_is_shown_where_none_is_known(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "static_max", 150.0)
    write_run("1", "oracle", 100.0)
    assert "/oracle" not in text_rows(compared(tmp_path), "full")[0]
    assert text_rows(compare(load_runs([tmp_path]), "static_max", "oracle"), "full")[0][2:5] == [
        "saving %",
        "/oracle",
        "J/token",
    ]
    assert text_rows(compare(load_runs([tmp_path]), "static_max", "elsewhere"), "full")[0][3] == "J/token"


def replayed(rate_per_s: float | None) -> dict[str, object]:
    return {"process": "timestamps", "requested_rps": None, "rate_per_s": rate_per_s}


def test_a_replay_stands_under_the_rate_of_its_trace(tmp_path: Path, write_run: WriteRun) -> None:
    own = {"arrival__name": "timestamps", "trace__name": "file"}
    for index, (policy, energy, rate, path) in enumerate(
        [
            ("static_max", 200, 10.001, "slow.csv"),
            ("voltana", 150, 10.001, "slow.csv"),
            ("static_max", 400, 9.8123, "a.csv"),
            ("voltana", 200, 9.8123, "a.csv"),
            ("voltana", 100, 9.8099, "b.csv"),
        ]
    ):
        write_run(str(index), policy, energy, **own, trace__path=path, arrivals=replayed(rate))
    write_run("5", "static_max", 300, rps=9.8)
    comparison = compared(tmp_path)
    header, rows = text_rows(comparison, "short")
    at = [header.index(name) for name in ("trace.path", "rps", "policy", "saving %")]
    assert [[row[index] for index in at] for row in rows if row[header.index("trace")] == "file"] == [
        ["a.csv", "trace 9.81", "static_max", "0.0"],
        ["a.csv", "trace 9.81", "voltana", "50.0"],
        ["b.csv", "trace 9.81", "voltana", "-"],
        ["slow.csv", "trace 10", "static_max", "0.0"],
        ["slow.csv", "trace 10", "voltana", "25.0"],
    ]
    assert "trace 9.81," in csv_text(comparison)
    assert "75" not in [row[header.index("rps")] for row in rows]


def test_replays_of_one_trace_are_told_by_its_rate(tmp_path: Path, write_run: WriteRun) -> None:
    for index, (policy, rate) in enumerate([("static_max", 2000.0), ("voltana", 2000.0)]):
        skipped = {"rows_read": 7, "skipped": [{"reason": "output_tokens is 0", "count": 3, "first_line": 2}]}
        arrivals = {**replayed(rate), **skipped}
        write_run(str(index), policy, arrival__name="timestamps", trace__path="t.csv", arrivals=arrivals)
    runs = load_runs([tmp_path])
    assert " rps=trace 2000 " in caption(runs)
    comparison = compare(runs, "static_max")
    assert [row.values["saving_pct"] for row in comparison.rows] == [Estimate(0.0, None, 1, 0.0, 0.0)] * 2
    few, *notes = comparison.notes
    assert few.startswith("Few requests, 4 a row")
    assert notes == ["Traces at their own times: trace 2000/s: 4 requests in 3.0 s of t.csv, 3 of 7 rows skipped."]


@pytest.mark.parametrize(
    ("name", "arrivals", "rps"), [("poisson", {}, 75), ("timestamps", {}, None), ("timestamps", replayed(None), None)]
)
def test_records_that_do_not_tell_a_rate(
    tmp_path: Path, write_run: WriteRun, name: str, arrivals: dict[str, object], rps: float | None
) -> None:
    folder = write_run("0", "static_max", arrival__name=name, arrivals=arrivals)
    assert flat_config(RunRecord(folder))["rps"] == rps
    assert compared(tmp_path).rows[0].policy == "static_max"
