"""The end of an experiment: its table and its figure, made when the last run of the sweep has ended.

A Hydra callback, named in the presets of `conf/experiment/`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback

if TYPE_CHECKING:
    from omegaconf import DictConfig


class Report(Callback):
    """Compares the runs of a sweep, prints the table, and writes `table.csv`, `table.md` and `figure.png` beside them.

    Args:
        figure: as of `voltana-plot`: curves or tradeoff.
        x: the configuration key along the axis of curves.
        baseline: the policy whose energy the others save.
        oracle: the policy whose energy theirs is shown over, where it is there.
    """

    def __init__(
        self, figure: str = "curves", x: str = "rps", baseline: str = "static_max", oracle: str = "oracle"
    ) -> None:
        self._figure = figure
        self._x = x
        self._baseline = baseline
        self._oracle = oracle

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Report on the sweep that has ended."""
        from analysis import commands, figures, tables
        from analysis.runs import load_runs

        folder = Path(str(config.hydra.sweep.dir))
        runs = load_runs([folder])
        comparison = tables.compare(runs, self._baseline, self._oracle)
        (folder / "table.csv").write_text(tables.csv_text(comparison))
        (folder / "table.md").write_text(tables.markdown(comparison, "short"))
        figure = (
            figures.tradeoff(runs, self._baseline) if self._figure == "tradeoff" else figures.curves(runs, x=self._x)
        )
        figures.save(figure, folder / "figure.png")
        notes = [*comparison.notes, *(f"Wrote {folder / name}" for name in ("table.csv", "table.md", "figure.png"))]
        commands.print_table(tables.caption(runs), tables.rich_table(comparison, "short"), notes)
