"""`voltana-compare` and `voltana-plot` as a user types them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from voltana.analysis.commands import compare, plot
from voltana.record import SUMMARY

WriteRun = Callable[..., Path]
Run = Callable[..., tuple[object, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)

    def start(command: Callable[[], None], *words: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["voltana", *words])
        status: object = 0
        try:
            command()
        except SystemExit as stop:
            status = stop.code
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return start


def test_compare_prints_a_block_per_setting(run: Run, write_run: WriteRun) -> None:
    for index, (policy, rps) in enumerate([("voltana", 60), ("static_max", 60), ("voltana", 50), ("static_max", 50)]):
        write_run(f"runs/{index}", policy, {"voltana": 150.0, "static_max": 200.0}[policy], rps=rps)
    status, out, err = run(compare, "runs=runs")
    assert (status, err) == (0, "")
    assert out.startswith("source=sim model=llama31_8b gpu=a100_sxm4_80g cluster=2p2d trace=sharegpt")
    *lines, note = [line for line in out.splitlines() if "static_max" in line or "voltana" in line]
    assert note.startswith("Few requests, 4 a row")
    assert [line.split()[:4] for line in lines] == [
        ["50", "static_max", "200.0", "0.0"],
        ["voltana", "150.0", "25.0", "3409.091"],
        ["60", "static_max", "200.0", "0.0"],
        ["voltana", "150.0", "25.0", "3409.091"],
    ]


def test_compare_writes_the_files_it_names_and_nothing_else(run: Run, write_run: WriteRun, tmp_path: Path) -> None:
    write_run("runs/0", "static_max")
    status, out, _ = run(compare, "runs=[runs]", "csv=out/table.csv", "markdown=table.md", "columns=short")
    assert status == 0
    assert out.splitlines()[-2:] == ["Wrote out/table.csv", "Wrote table.md"]
    assert (tmp_path / "out/table.csv").read_text().startswith("source,model,gpu,cluster,trace,arrival,slo,rps,")
    assert (tmp_path / "table.md").read_text().startswith("| source | model | gpu |")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs", "table.md"]


def test_short_columns_fit_a_hundred(run: Run, write_run: WriteRun) -> None:
    for seed, energy in enumerate((198.123, 205.5, 201.0)):
        for policy in ("static_max", "static_1005", "voltana"):
            write_run(f"runs/{policy}{seed}", policy, energy, seed=seed)
            write_run(f"runs/{policy}{seed}b", policy, energy, seed=seed, rps=100)
    _, out, _ = run(compare, "runs=runs", "columns=short")
    table = [line for line in out.splitlines() if "static_" in line or "policy" in line]
    assert max(map(len, table)) <= 100


@pytest.mark.slow
def test_plot_curves_and_timeline(run: Run, write_run: WriteRun, tmp_path: Path) -> None:
    write_run("runs/0", "voltana", instances=[(0.0, "decode-0", 1410, 1, 200.0)])
    assert run(plot, "runs=runs", "out=figures/a.png") == (0, "Wrote figures/a.png\n", "")
    assert run(plot, "runs=runs", "figure=timeline", "window=[0,2]") == (0, "Wrote timeline.png\n", "")
    assert (tmp_path / "figures/a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures", "runs", "timeline.png"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words", "line"),
    [
        (compare, [], "missing value: runs; give it as runs=..."),
        (compare, ["runs=nowhere"], "nowhere: no such folder; allowed: a folder that holds run records"),
        (compare, ["runs=empty"], "empty: holds no finished run record (summary.json)"),
        (compare, ["runs=3"], "runs: found 3, allowed: a folder or a list of folders, runs=[a,b]"),
        (compare, ["runs=runs", "columns=wide"], "columns: found wide, allowed: short, full"),
        (compare, ["runs=runs", "baseline=voltnaa"], "baseline: found voltnaa, allowed: voltana"),
        (compare, ["runs=runs", "baseline=voltana", "csv=runs"], "csv: runs: Is a directory"),
        (compare, ["runs=runs", "gap=runs/0"], "gap: found 'runs/0', allowed: true or false"),
        (
            compare,
            ["runs=runs", "--gap"],
            "runs: found runs/0 (sim), allowed with gap=true: the record of a live run and",
        ),
        (
            compare,
            ["runs=runs", "base=voltana"],
            "unknown config key 'base'; allowed: baseline, columns, csv, gap, markdown, oracle, runs",
        ),
        (
            plot,
            ["runs=runs", "figure=pie"],
            "figure: found pie, allowed: curves, tradeoff, pareto, timeline, capacity, energy, residency",
        ),
        (plot, ["runs=runs", "out=a.gif"], "out: found a.gif, allowed: a path that ends in .png, .pdf, .svg"),
        (plot, ["runs=runs", "out=runs/0/summary.json/a.png"], "out: runs/0/summary.json/a.png: "),
        (plot, ["runs=runs", "published=none.csv"], "published: none.csv: No such file or directory"),
    ],
)
def test_bad_input(
    run: Run, write_run: WriteRun, tmp_path: Path, command: Callable[[], None], words: list[str], line: str
) -> None:
    write_run("runs/0", "voltana")
    (tmp_path / "empty").mkdir()
    status, out, err = run(command, *words)
    assert (status, out) == (2, "")
    assert err.partition(": error: ")[2].startswith(line)
    assert err.count("\n") == 1


def test_truncated_table(run: Run, write_run: WriteRun) -> None:
    table = write_run("runs/0", "voltana") / "instances.parquet"
    table.write_bytes(table.read_bytes()[:-50])
    status, _, err = run(plot, "runs=runs", "figure=timeline")
    assert status == 2
    assert err.startswith("voltana-plot: error: runs/0/instances.parquet: cannot be read: ")
    assert err.count("\n") == 1


def test_broken_summary_and_missing_file(run: Run, write_run: WriteRun) -> None:
    folder = write_run("runs/0", "voltana")
    (folder / "requests.parquet").unlink()
    assert run(compare, "runs=runs")[2] == (
        "voltana-compare: error: runs/0: not a finished run record, missing requests.parquet\n"
    )
    folder = write_run("runs/0", "voltana")
    (folder / "summary.json").write_text("{")
    assert "runs/0/summary.json: cannot be parsed" in run(compare, "runs=runs")[2]


def test_interrupted_runs_are_left_out_and_named(run: Run, write_run: WriteRun) -> None:
    write_run("runs/0", "static_max")
    cut = write_run("runs/1", "voltana")
    numbers = json.loads((cut / SUMMARY).read_text())
    (cut / SUMMARY).write_text(json.dumps({**numbers, "interrupted": True}))
    status, out, _ = run(compare, "runs=runs")
    assert status == 0
    assert "voltana" not in out.split("Left out")[0] and "Left out, interrupted: runs/1." in out
    status, _, err = run(compare, "runs=runs/1")
    assert (status, err.count("\n")) == (2, 1) and "nothing but interrupted runs" in err


def test_a_live_run_beside_its_simulation(run: Run, write_run: WriteRun) -> None:
    write_run("live", "voltana", 102.0, source="live", requests={"ttft_s": (0.11, 0.22, 0.33, 0.44)})
    write_run("twin", "voltana", 100.0, requests={"ttft_s": (0.1, 0.2, 0.3, 0.9)})
    status, out, err = run(compare, "--gap", "runs=[live,twin]")
    assert (status, err) == (0, "")
    assert out.startswith("live and simulated: live and twin\n")
    shown = {line[:22].strip(): line[22:].split() for line in out.splitlines()[2:]}
    assert shown[""] == ["live", "simulated", "difference", "allowed"]
    assert shown["energy, kJ"] == ["102.00", "100.00", "+2.0", "%", "±3"]
    assert shown["TTFT met, %"] == ["100.0", "75.0", "+25.0", "points", "±3,", "beyond"]
    assert shown["energy of prefill, kJ"] == ["40.80", "40.00", "+2.0", "%"], "nothing is asked of it"
    assert run(compare, "runs=[twin,live]", "gap=true") == (status, out, err)


def test_only_a_run_and_its_own_simulation_have_a_gap(run: Run, write_run: WriteRun) -> None:
    write_run("live", "voltana", source="live")
    write_run("other", "voltana", requests={"ttft_s": (0.1, 0.2)})
    cut = write_run("cut", "voltana")
    numbers = json.loads((cut / SUMMARY).read_text())
    (cut / SUMMARY).write_text(json.dumps({**numbers, "interrupted": True}))
    for runs, said in (
        ("[live,other]", "runs: found other requests in other than in live, allowed with gap=true: the same, as"),
        ("[live,cut]", "runs: found cut, which was interrupted, allowed with gap=true: runs that ended"),
        ("[other,cut]", "runs: found other (sim), cut (sim), allowed with gap=true: the record of a live run and"),
        ("[live,other,cut]", "runs: found live (live), other (sim), cut (sim), allowed with gap=true: "),
        ("live", "runs: found live (live), allowed with gap=true: the record of a live run and"),
    ):
        status, out, err = run(compare, "gap=true", f"runs={runs}")
        assert (status, out) == (2, "")
        assert err.startswith(f"voltana-compare: error: {said}") and err.count("\n") == 1
