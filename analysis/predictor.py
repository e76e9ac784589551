"""What EcoPred learned: its errors as a table, its lines and planes with their samples as a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from voltana.analysis import style
from voltana.prediction.ecopred import EcoPred, decode_bin
from voltana.prediction.fit import held_out_error
from voltana.prediction.profile import Sample
from voltana.state import Phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

SHORT_TOKENS = 1000
"""Prompts up to here are shown once more, larger."""


def error_table(predictor: EcoPred, samples: Sequence[Sample], title: str) -> Table:
    """The error on the fifth held out from a trial fit, then that of the fit to all samples, by clock."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in ("error on", "clock (MHz)", "phase", "samples", "MAE (ms)", "MAPE (%)"):
        table.add_column(name, justify="left" if name in ("error on", "phase") else "right")
    reports = [("held-out fifth", "all", predictor.about["held_out_error"])]
    reports += [
        ("all samples", str(clock), held_out_error(predictor, [s for s in samples if s.clock_mhz == clock]))
        for clock in predictor.clocks_mhz
    ]
    for what, clock, report in reports:
        for phase, error in report.items():
            mae, mape = f"{error['mae_ms']:.3f}", f"{error['mape_pct']:.2f}"
            table.add_row(what, clock, phase, str(error["samples"]), mae, mape)
    return table


def draw(predictor: EcoPred, samples: Sequence[Sample]) -> Figure:
    """Prefill: a line per clock over batched tokens, short batches once more. Decode: planes over batch and KV tokens.

    Samples are dots. Of decode the lowest, the middle and the highest profiled clock are shown.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    clocks = predictor.clocks_mhz
    colours = {clock: colormaps["viridis"](0.9 * i / (len(clocks) - 1)) for i, clock in enumerate(clocks)}
    with style.figure_style():
        figure = Figure(figsize=(13, 4.8), layout="constrained")
        grid = figure.add_gridspec(1, 3, width_ratios=(1, 1, 1.25))
        whole, short = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
        for axis, longest in ((whole, math.inf), (short, SHORT_TOKENS)):
            _draw_lines(axis, predictor, [s for s in samples if s.phase == "prefill" and s.tokens <= longest], colours)
        whole.set_title("Prefill" + _error(predictor, "prefill"))
        whole.legend(title="SM clock (MHz)", ncols=2)
        short.set_title(f"Prefill up to {SHORT_TOKENS:,} tokens")
        space: Any = figure.add_subplot(grid[2], projection="3d")
        for clock in _spread(clocks):
            rows = [s for s in samples if s.phase == "decode" and s.clock_mhz == clock]
            _draw_planes(space, predictor, rows, colours[clock])
        space.set(xlabel="Batch size", ylabel="KV tokens (thousands)", zlabel="Iteration (ms)")
        space.view_init(elev=22, azim=-130)
        space.set_box_aspect((1.2, 1, 1), zoom=0.95)
        space.set_title(f"Decode at {', '.join(map(str, _spread(clocks)))} MHz" + _error(predictor, "decode"))
    return figure


def _spread(clocks: Sequence[int]) -> list[int]:
    return sorted({clocks[0], clocks[len(clocks) // 2], clocks[-1]})


def _error(predictor: EcoPred, phase: Phase) -> str:
    error = predictor.about["held_out_error"].get(phase)
    return f"\nMAE {error['mae_ms']:.2f} ms on a held-out fifth" if error else ""


def _draw_lines(axis: Axes, predictor: EcoPred, rows: Sequence[Sample], colours: Mapping[int, Any]) -> None:
    ends = [0, max((s.tokens for s in rows), default=SHORT_TOKENS)]
    for clock, colour in colours.items():
        mine = [s for s in rows if s.clock_mhz == clock]
        axis.plot([s.tokens for s in mine], [1e3 * s.latency_s for s in mine], ".", color=colour, alpha=0.7)
        axis.plot(ends, [1e3 * predictor.prefill_s(end, clock) for end in ends], color=colour, label=str(clock))
    axis.set(xlabel="Prompt tokens of the batch", ylabel="Iteration (ms)", xlim=(0, None), ylim=(0, None))


def _draw_planes(space: Any, predictor: EcoPred, rows: Sequence[Sample], colour: Any) -> None:
    bins: dict[int, list[Sample]] = {}
    for row in rows:
        bins.setdefault(decode_bin(row.batch_size), []).append(row)
    for members in bins.values():
        batches, tokens = ([min(each), max(each)] for each in zip(*(s[2:4] for s in members), strict=True))
        clock = members[0].clock_mhz
        grid = [[(batch, kv, predictor.decode_s(batch, kv, clock)) for batch in batches] for kv in tokens]
        x, y, z = np.moveaxis(np.array(grid, dtype=float), -1, 0)
        space.plot_surface(x, y / 1e3, z * 1e3, color=colour, alpha=0.45, linewidth=0)
    x, y, z = np.array([(s.batch_size, s.tokens / 1e3, s.latency_s * 1e3) for s in rows]).T
    space.scatter(x, y, z, color=colour, s=3, alpha=0.6)
