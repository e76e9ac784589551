"""What is drawn is what was recorded."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.text import Text

from voltana.analysis import figures, style
from voltana.analysis.capacity import capacity
from voltana.analysis.figures import curves, output_path, save, timeline, tradeoff
from voltana.analysis.runs import load_runs
from voltana.analysis.style import POLICIES
from voltana.errors import UserError
from voltana.record import RunRecord

WriteRun = Callable[..., Path]

PUBLISHED = """model,dataset,rps,series,ttft_attainment_pct,itl_attainment_pct,energy_kJ
Llama-3.1-8B,ShareGPT,60,sglang_f1410,97,99,180
Llama-3.1-8B,ShareGPT,50,sglang_f1410,98,100,170
Llama-3.1-8B,ShareGPT,50,voltanallm,95,100,110
Other,ShareGPT,50,voltanallm,1,1,1
"""


def line(axis: Axes, name: str) -> Any:
    (found,) = (line for line in axis.get_lines() if line.get_label() == name)
    return found


def points(axis: Axes, name: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in line(axis, name).get_xydata()]


def legend(figure: Figure) -> list[str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def footnote(figure: Figure) -> str:
    (found,) = figure.texts
    return found.get_text()


def test_curves_hold_the_summaries(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "voltana", 130, rps=60, requests={"ttft_s": [0.1, 0.9], "itl_s": 0.09})
    write_run("1", "voltana", 120, rps=50)
    write_run("2", "static_max", 200, rps=50)
    figure = curves(load_runs([tmp_path]))
    ttft, itl, energy = figure.axes
    assert points(ttft, "voltana") == [(50, 75), (60, 50)]
    assert points(itl, "voltana") == [(50, 100), (60, 0)]
    assert points(energy, "voltana") == [(50, 120), (60, 130)]
    assert points(energy, "static_max") == [(50, 200)]
    assert legend(figure) == ["static_max", "voltana"]
    assert line(energy, "voltana").get_color() == POLICIES["voltana"].colour
    assert [axis.get_ylabel() for axis in figure.axes] == ["TTFT attainment (%)", "ITL attainment (%)", "Energy (kJ)"]


def test_curves_of_several_seeds_have_a_band(tmp_path: Path, write_run: WriteRun) -> None:
    for rps in (50, 60):
        for seed, energy in enumerate((100.0, 110.0, 120.0)):
            write_run(f"{rps}_{seed}", "voltana", energy, rps=rps, seed=seed)
    energy_axis = curves(load_runs([tmp_path])).axes[2]
    assert points(energy_axis, "voltana") == [(50, 110), (60, 110)]
    (band,) = energy_axis.collections
    heights = band.get_paths()[0].get_extents()
    assert (heights.y0, heights.y1) == pytest.approx((110 - 24.841, 110 + 24.841), abs=1e-3)


@pytest.mark.slow
def test_two_seeds_are_no_interval(tmp_path: Path, write_run: WriteRun) -> None:
    for rps in (50, 60):
        for seed, energy in enumerate((100.0, 110.0)):
            write_run(f"{rps}_{seed}", "voltana", energy, rps=rps, seed=seed)
            write_run(f"{rps}_{seed}_base", "static_max", 200.0, rps=rps, seed=seed)
    figure = curves(load_runs([tmp_path]))
    energy_axis = figure.axes[2]
    assert not [each for each in energy_axis.collections if isinstance(each, PolyCollection)]
    reaches = [bar.get_segments()[0][:, 1].tolist() for bar in energy_axis.collections]
    assert [100.0, 110.0] in reaches
    assert footnote(figure) == "2 seeds: a whisker from one value to the other; two make no interval."
    first = tradeoff(load_runs([tmp_path]), "static_max")
    bars = {c.get_label(): c.lines[2] for c in first.axes[0].containers}["voltana"]
    assert bars[0].get_segments()[0][:, 0].tolist() == pytest.approx([45, 50])
    assert "2 seeds" in footnote(first)


def test_starved_points_are_hollow(tmp_path: Path, write_run: WriteRun) -> None:
    for index, (policy, rps) in enumerate([("static_max", 50), ("voltana", 50), ("voltana", 60)]):
        folder = write_run(str(index), policy, rps=rps, source="live")
        numbers = json.loads((folder / "summary.json").read_text())
        reasons = ["client lag"] if (policy, rps) == ("voltana", 60) else []
        (folder / "summary.json").write_text(json.dumps({**numbers, "starved": reasons}))
    figure = curves(load_runs([tmp_path]))
    hollow = [line for line in figure.axes[0].get_lines() if line.get_markerfacecolor() == "white"]
    assert [line.get_xdata().tolist() for line in hollow] == [[60]]
    assert footnote(figure).startswith("Hollow: starved")
    scatter = tradeoff(load_runs([tmp_path / "0", tmp_path / "1"]), "static_max")
    assert footnote(scatter).startswith("Few requests, 4 a row: ")
    write_run("3", "static_max", rps=60, source="live")
    scatter = tradeoff(load_runs([tmp_path]), "static_max")
    faces = {c.get_label(): c.lines[0].get_markerfacecolor() for c in scatter.axes[1].containers}
    assert faces["voltana"] == "white" != faces["static_max"]
    assert footnote(scatter).startswith("Hollow: starved")


def test_text_of_the_user_is_no_markup_in_figures(tmp_path: Path, write_run: WriteRun) -> None:
    name = r"_x$\frac{$ [b]%"
    write_run("0", name, rps=50, trace__name="$_")
    figure = curves(load_runs([tmp_path]))
    assert legend(figure) == [name]
    for ending in ("png", "svg"):
        save(figure, tmp_path / f"a.{ending}")
    assert legend(tradeoff(load_runs([tmp_path]), name)) == [name]


@pytest.mark.parametrize("x", ["foo", "slo.scael"])
def test_curves_over_a_key_that_no_run_has(tmp_path: Path, write_run: WriteRun, x: str) -> None:
    for index, scale in enumerate((0.5, 1.0)):
        write_run(str(index), "voltana", slo__scale=scale)
    with pytest.raises(UserError) as told:
        curves(load_runs([tmp_path]), x=x)
    message = f"x: found {x}, which no run has, allowed: a configuration key; those that vary here: slo.scale"
    assert str(told.value) == message + ("; did you mean slo.scale?" if x != "foo" else "")


def test_curves_over_a_key_that_one_run_lacks(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "voltana", slo__scale=0.5)
    lacking = write_run("1", "voltana")
    with pytest.raises(UserError, match=f"x: found slo.scale, which {lacking} lacks, allowed: "):
        curves(load_runs([tmp_path]), x="slo.scale")


def test_a_group_on_the_axis_may_be_named_by_itself(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "voltana", cluster__name="1p3d")
    write_run("1", "voltana", cluster__name="2p2d")
    energy = curves(load_runs([tmp_path]), x="cluster").axes[-1]
    assert [tick.get_text() for tick in energy.get_xticklabels()] == ["1p3d", "2p2d"]


def test_half_a_point_is_no_collapse(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "static_max", 200, requests={"ttft_s": [0.1] * 200})
    write_run("1", "voltana", 199, requests={"ttft_s": [0.1] * 199 + [0.9]})
    (axis,) = tradeoff(load_runs([tmp_path]), "static_max").axes
    (low, high), (left, right) = axis.get_ylim(), axis.get_xlim()
    assert high - low >= 10 <= right - left
    assert low < 99.5 < 100 <= high < 101


def test_no_share_below_none_is_shown(tmp_path: Path, write_run: WriteRun) -> None:
    for number, (policy, energy_kj) in enumerate((("static_max", 100), ("voltana", 70))):
        write_run(f"{number}", policy, energy_kj, requests={"ttft_s": [0.9] * 4})
    low, high = tradeoff(load_runs([tmp_path]), "static_max").axes[0].get_ylim()
    assert -1 < low < 0 and high - low >= 10


def test_a_tradeoff_needs_energies(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write_run("0", "static_max", source="live")
    numbers = json.loads((folder / "summary.json").read_text())
    numbers["energy_j"]["total"] = None
    (folder / "summary.json").write_text(json.dumps(numbers))
    with pytest.raises(UserError, match="found none whose energy and that of static_max are known"):
        tradeoff(load_runs([tmp_path]), "static_max")


def test_markers_that_cover_each_other_are_named(tmp_path: Path, write_run: WriteRun) -> None:
    for index, (policy, energy) in enumerate([("static_max", 200), ("a", 150), ("b", 150.2), ("c", 149.9)]):
        write_run(str(index), f"mine {policy}", energy)
    figure = tradeoff(load_runs([tmp_path]), "mine static_max")
    (axis,) = figure.axes
    assert sorted(text.get_text() for text in axis.texts) == ["a", "b", "c"]
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axis.texts]
    inside = axis.get_window_extent()
    markers = [axis.transData.transform(c.lines[0].get_xydata()[0]) for c in axis.containers]
    for index, box in enumerate(boxes):
        assert inside.x0 <= box.x0 and box.x1 <= inside.x1 and inside.y0 <= box.y0 and box.y1 <= inside.y1
        assert not any(box.padded(-1).overlaps(other) for other in boxes[:index])
        assert not any(box.contains(*marker) for marker in markers)


@pytest.mark.slow
def test_settings_of_the_user_change_no_figure(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("runs/0", "voltana")
    write_run("runs/1", "static_max")
    own = tmp_path / "own"
    own.mkdir()
    (own / "matplotlibrc").write_bytes(b"text.usetex: True\nlines.linewidth: 9\nsavefig.dpi: 30\nfont.size: 30\n\xff")
    command = [Path(sys.executable).with_name("voltana-plot"), f"runs={tmp_path / 'runs'}", "figure=tradeoff"]
    surroundings = {"MPLBACKEND": "no_such_backend", "TZ": "Asia/Kathmandu", "LC_ALL": "C", "PYTHONUTF8": "0"}
    for folder, extra in ((tmp_path, {}), (own, {**surroundings, "PYTHONCOERCECLOCALE": "0"})):
        done = subprocess.run(command, cwd=folder, env={**os.environ, **extra}, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "tradeoff.png").read_bytes() == (own / "tradeoff.png").read_bytes()


def test_a_column_per_model_and_trace(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "voltana", 10, model__name="qwen3_32b")
    write_run("1", "voltana", 20, trace__name="lmsys")
    figure = curves(load_runs([tmp_path]))
    assert [axis.get_title() for axis in figure.axes[:2]] == ["llama31_8b\nlmsys", "qwen3_32b\nsharegpt"]
    assert [points(axis, "voltana")[0][1] for axis in figure.axes[4:]] == [20, 10]


def test_another_difference_makes_another_line(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "voltana", slo__name="paper")
    write_run("1", "voltana", slo__name="tight")
    assert legend(curves(load_runs([tmp_path]))) == ["voltana slo=paper", "voltana slo=tight"]


def test_published_points_in_the_colour_of_their_policy(tmp_path: Path, write_run: WriteRun) -> None:
    table = tmp_path / "paper.csv"
    table.write_text(PUBLISHED)
    write_run("runs/0", "voltana", rps=50)
    figure = curves(load_runs([tmp_path / "runs"]), str(table))
    assert points(figure.axes[0], "static_max, published") == [(50, 98), (60, 97)]
    assert points(figure.axes[2], "voltana, published") == [(50, 110)]
    dashed = line(figure.axes[2], "voltana, published")
    assert dashed.get_color() == POLICIES["voltana"].colour
    assert dashed.is_dashed()
    assert legend(figure) == ["voltana", "static_max, published", "published"]
    (tmp_path / "other.csv").write_text(PUBLISHED.splitlines()[0] + "\n")
    assert legend(curves(load_runs([tmp_path / "runs"]), str(tmp_path))) == legend(figure)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,dataset\nx,y\n", ":2: missing rps, series, ttft_attainment_pct"),
        (PUBLISHED.replace("170", "much"), ":3: could not convert string to float: 'much'"),
        (
            PUBLISHED.replace("Llama-3.1-8B", "Gemma"),
            "found Gemma ShareGPT, Other ShareGPT, allowed: the model and trace",
        ),
        ("", "found no rows, allowed"),
    ],
)
def test_bad_published_table(tmp_path: Path, write_run: WriteRun, text: str, message: str) -> None:
    table = tmp_path / "paper.csv"
    table.write_text(text)
    write_run("runs/0", "voltana")
    with pytest.raises(UserError, match=message):
        curves(load_runs([tmp_path / "runs"]), str(table))


def test_curves_need_a_rate(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "voltana", rps=None)
    with pytest.raises(UserError, match="rps: found None, allowed: a request rate"):
        curves(load_runs([tmp_path]))


def test_replays_stand_at_the_rate_of_their_trace(tmp_path: Path, write_run: WriteRun) -> None:
    for index, rate in enumerate((9.8, 20.0)):
        arrivals = {"process": "timestamps", "requested_rps": None, "rate_per_s": rate}
        write_run(str(index), "voltana", arrival__name="timestamps", arrivals=arrivals)
    (line,) = curves(load_runs([tmp_path])).axes[0].get_lines()
    assert list(line.get_xdata()) == [9.8, 20.0]
    write_run("2", "static_max", arrival__name="timestamps", arrivals=arrivals)
    titles = [axis.get_title() for axis in tradeoff(load_runs([tmp_path / "1", tmp_path / "2"]), "static_max").axes]
    assert titles == ["llama31_8b\nsharegpt\ntrace 20 requests/s"]


def test_too_many_panels(tmp_path: Path, write_run: WriteRun) -> None:
    for index in range(7):
        write_run(str(index), "voltana", model__name=f"model{index}")
    with pytest.raises(UserError, match="found 7 pairs of model and trace, allowed: up to 6"):
        curves(load_runs([tmp_path]))


STATES = [
    (0.0, "decode-0", 1005, 0, 90.0),
    (1.0, "decode-0", 1005, 8, 150.0),
    (3.0, "decode-0", 1410, 9, 250.0),
    (0.0, "prefill-10", 1410, 1, 300.0),
    (0.0, "prefill-2", 1410, 2, 310.0),
]


def test_curves_over_another_number(tmp_path: Path, write_run: WriteRun) -> None:
    for rps in (50, 60):
        write_run(f"{rps}_a", "voltana", 130, rps=rps, slo__scale=0.5)
        write_run(f"{rps}_b", "voltana", 120, rps=rps, slo__scale=1.0)
    figure = curves(load_runs([tmp_path]), x="slo.scale")
    assert [axis.get_title() for axis in figure.axes[:2]] == [
        "llama31_8b\nsharegpt\n50 requests/s",
        "llama31_8b\nsharegpt\n60 requests/s",
    ]
    assert points(figure.axes[-1], "voltana") == [(0.5, 130), (1.0, 120)]


def test_curves_over_words(tmp_path: Path, write_run: WriteRun) -> None:
    for index, name in enumerate(("1p3d", "2p2d")):
        write_run(str(index), "voltana", 100 + index, rps=50, cluster__name=name)
    energy = curves(load_runs([tmp_path]), x="cluster.name").axes[-1]
    assert points(energy, "voltana") == [(0, 100), (1, 101)]
    assert [tick.get_text() for tick in energy.get_xticklabels()] == ["1p3d", "2p2d"]


def test_tradeoff_names_the_column_that_lacks_the_baseline(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "static_max", rps=50)
    write_run("1", "voltana", rps=60)
    with pytest.raises(
        UserError, match=r"baseline: found no run of static_max at .*60 .*, allowed: one in every column"
    ):
        tradeoff(load_runs([tmp_path]), "static_max")


def test_tradeoff_is_saving_against_attainment(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "static_max", 200, rps=50)
    write_run("1", "voltana", 150, rps=50, requests={"ttft_s": [0.1, 0.9]})
    figure = tradeoff(load_runs([tmp_path]), "static_max")
    (axis,) = figure.axes
    found = {c.get_label(): c.lines[0].get_xydata()[0].tolist() for c in axis.containers}
    assert found == {"static_max": [0, 75], "voltana": [25, 50]}
    assert legend(figure) == ["static_max", "voltana"]


def test_timeline_is_the_step_function_of_the_record(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write_run("0", "voltana", instances=STATES)
    (run,) = load_runs([folder]).runs
    end = run.number("end_s")
    axes = timeline(load_runs([folder])).axes
    assert [axis.get_ylabel() for axis in axes[::3]] == ["prefill-2", "prefill-10", "decode-0"]
    clock, batch, power = axes[6:]
    assert points(clock, "clock_mhz") == [(0, 1005), (1, 1005), (3, 1410), (end, 1410)]
    assert points(batch, "batch_size") == [(0, 0), (1, 8), (3, 9), (end, 9)]
    assert points(power, "power_w") == [(0, 90), (1, 150), (3, 250), (end, 250)]
    assert line(power, "power_w").get_drawstyle() == "steps-post"


def test_timeline_window_keeps_the_value_that_holds(tmp_path: Path, write_run: WriteRun) -> None:
    folder = write_run("0", "voltana", instances=STATES)
    power = timeline(load_runs([folder]), [2, 3.5]).axes[8]
    assert points(power, "power_w") == [(2, 150), (3, 250), (3.5, 250)]
    assert power.get_xlim() == (2, 3.5)


@pytest.mark.parametrize("window", [[5, 4], [100, 200], [1], "1", [None, 2]])
def test_bad_window(tmp_path: Path, write_run: WriteRun, window: Any) -> None:
    folder = write_run("0", "voltana", instances=STATES)
    with pytest.raises(UserError, match=r"window: found .*, allowed"):
        timeline(load_runs([folder]), window)


def test_dense_steps_get_their_mean_and_lose_no_energy(tmp_path: Path, write_run: WriteRun) -> None:
    power = np.random.default_rng(1).uniform(80, 300, 2000)
    states = [(i / 500, "decode-0", 1410, 1, float(watt)) for i, watt in enumerate(power)]
    axis = timeline(load_runs([write_run("0", "voltana", instances=states)]), [0, 4]).axes[2]
    assert len(line(axis, "power_w").get_xdata()) == 2001
    assert line(axis, "power_w_mean").get_ydata().mean() == pytest.approx(power.mean())


def test_timeline_is_of_one_run(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "voltana", instances=STATES)
    write_run("1", "governor", instances=STATES)
    with pytest.raises(UserError, match="runs: found 2 runs, allowed: the folder of one run"):
        timeline(load_runs([tmp_path]))


def test_timeline_without_instances(tmp_path: Path, write_run: WriteRun) -> None:
    with pytest.raises(UserError, match="no instance was recorded"):
        timeline(load_runs([write_run("0", "voltana")]))


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_same_figure_same_bytes(tmp_path: Path, write_run: WriteRun, ending: str) -> None:
    write_run("runs/0", "voltana")
    files = [tmp_path / f"{name}.{ending}" for name in "ab"]
    for file in files:
        save(curves(load_runs([tmp_path / "runs"])), file)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert b"CreationDate" not in files[0].read_bytes()


def test_output_format() -> None:
    with pytest.raises(UserError, match=r"out: found a.jpg, allowed: a path that ends in .png, .pdf, .svg, .pgf"):
        output_path("a.jpg")


def test_a_pgf_needs_latex(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("runs/0", "voltana")
    figure, file = curves(load_runs([tmp_path / "runs"])), tmp_path / "a.pgf"
    if shutil.which(style.TEX):
        save(figure, file)
        assert file.read_text().startswith("%% Creator: Matplotlib, PGF backend")
    else:
        with pytest.raises(UserError, match=r"out: .*a\.pgf: needs LaTeX with pgf \(pdflatex\)"):
            save(figure, file)
        assert not file.exists()


def test_capacity_is_a_line_a_seed_of_what_meets_both(tmp_path: Path, write_run: WriteRun) -> None:
    for number, (rate, seed, late) in enumerate(((50, 1, 0), (60, 1, 1), (70, 1, 3), (80, 1, 4), (50, 2, 1))):
        ttft_s = [0.9] * late + [0.1] * (4 - late)
        write_run(f"{number}", "voltana", rps=rate, seed=seed, requests={"ttft_s": ttft_s})
    (axis,) = capacity(load_runs([tmp_path])).axes
    drawn = [[tuple(map(float, point)) for point in line.get_xydata()] for line in axis.get_lines()]
    assert [(50, 100), (60, 75), (70, 25)] in drawn and [(50, 75)] in drawn


def test_timeline_has_a_gap_where_nothing_is_known(tmp_path: Path, write_run: WriteRun) -> None:
    states = [
        (0.0, "decode-0", 1410, 3, 200.0),
        (1.0, "decode-0", None, 3, None),
        (3.0, "decode-0", 1395, 3, 150.0),
        (0.0, "decode-1", None, 3, None),
    ]
    axes = timeline(load_runs([write_run("0", "voltana", instances=states)])).axes
    clock, power = points(axes[0], "clock_mhz"), points(axes[2], "power_w")
    assert clock[0] == (0, 1410) and power[0] == (0, 200) and power[2] == (3, 150)
    assert np.isnan([clock[1][1], power[1][1], *(value for _, value in points(axes[5], "power_w"))]).all()
    assert axes[0].get_yticks().tolist() == [1395, 1410] and axes[2].get_ylim()[1] > 200


@pytest.mark.filterwarnings("error")
def test_means_of_dense_steps_are_over_what_is_known(tmp_path: Path, write_run: WriteRun) -> None:
    states = [(i / 500, "decode-0", 1410, 1, None if 500 <= i < 1000 or i % 2 else 150.0) for i in range(2000)]
    axis = timeline(load_runs([write_run("0", "voltana", instances=states)]), [0, 4]).axes[2]
    means = line(axis, "power_w_mean").get_ydata()
    assert np.isnan(means[25:50]).all() and np.delete(means, range(25, 50)) == pytest.approx(150.0)


def test_energy_that_is_not_known_is_not_drawn(tmp_path: Path, write_run: WriteRun) -> None:
    for index, (policy, energy) in enumerate((("static_max", 200), ("voltana", 150), ("agft", 170))):
        folder = write_run(str(index), policy, energy)
    summary = json.loads((folder / "summary.json").read_text())
    summary["energy_j"]["total"] = None
    (folder / "summary.json").write_text(json.dumps(summary))
    runs = load_runs([tmp_path])
    ttft, _, energy_axis = curves(runs).axes
    assert {name for name in ("static_max", "voltana", "agft") if labelled(energy_axis, name)} == {
        "static_max",
        "voltana",
    }
    assert labelled(ttft, "agft")
    (axis,) = tradeoff(runs, "static_max").axes
    assert {str(container.get_label()) for container in axis.containers} == {"static_max", "voltana"}


def labelled(axis: Axes, name: str) -> bool:
    return any(found.get_label() == name and len(found.get_xydata()) for found in axis.get_lines())


def test_the_front_joins_what_nothing_beats() -> None:
    places = [(0.0, 100.0), (20.0, 95.0), (25.0, 70.0), (15.0, 90.0), (20.0, 95.0)]
    assert figures.pareto(places) == [(0.0, 100.0), (20.0, 95.0), (25.0, 70.0), (20.0, 95.0)]


@pytest.mark.parametrize(("width", "inches"), [("column", 3.33), ("text", 7.0)])
def test_as_wide_as_a_paper_has_it(tmp_path: Path, write_run: WriteRun, width: str, inches: float) -> None:
    write_run("0", "static_max", 200, rps=50)
    write_run("1", "static_max", 210, rps=75)
    with style.page_width(width):
        figure = figures.curves(load_runs([tmp_path]))
    assert figure.get_figwidth() == inches
    assert figure.axes[0].yaxis.label.get_fontsize() == 7.5


def test_time_at_each_clock_is_stacked_to_the_whole(tmp_path: Path, write_run: WriteRun) -> None:
    states = [(0.0, "decode-0", 1005, 1, 100.0), (1.0, "decode-0", 1410, 1, 200.0)]
    end_s = RunRecord(write_run("0", "voltana", instances=states)).summary["end_s"]
    (axis,) = figures.residency(load_runs([tmp_path])).axes
    widths = [patch.get_width() for patch in axis.patches]
    assert widths == pytest.approx([100 / end_s, 100 - 100 / end_s], rel=1e-3)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["voltana, decode"]


def test_energy_that_cannot_be_told_apart_is_refused(tmp_path: Path, write_run: WriteRun) -> None:
    write_run("0", "voltana", instances=[(0.0, "decode-0", 1005, 1, 100.0)])
    with pytest.raises(UserError, match="runs: found none whose energy can be told apart"):
        figures.energy(load_runs([tmp_path]))
