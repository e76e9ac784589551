"""The end of an experiment: its table and its figure, made when the last run of the sweep has ended.

A Hydra callback, named in the presets of `conf/experiment/`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback

from voltana.errors import UserError
from voltana.files import write_whole

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
        """Report on the sweep that has ended; bad input ends the command, where Hydra would only warn."""
        try:
            self._report(Path(str(config.hydra.sweep.dir)))
        except UserError as error:
            print(f"{config.hydra.job.name}: error: {error}", file=sys.stderr)
            sys.exit(2)

    def _report(self, folder: Path) -> None:
        from voltana.analysis import commands, figures, tables
        from voltana.analysis.runs import load_runs

        runs = load_runs([folder])
        comparison = tables.compare(runs, self._baseline, self._oracle)
        write_whole(folder / "table.csv", tables.csv_text(comparison))
        write_whole(folder / "table.md", tables.markdown(comparison, "short"))
        figure = (
            figures.tradeoff(runs, self._baseline) if self._figure == "tradeoff" else figures.curves(runs, x=self._x)
        )
        figures.save(figure, folder / "figure.png")
        notes = [*comparison.notes, *(f"Wrote {folder / name}" for name in ("table.csv", "table.md", "figure.png"))]
        commands.print_table(tables.caption(runs), tables.rich_table(comparison, "short"), notes)
