"""The console scripts `voltana-fit`, `voltana-compare`, `voltana-plot` and `voltana-report`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voltana.app.cli import hydra_command
from voltana.app.terminal import plain_console
from voltana.errors import UserError
from voltana.files import write_whole

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console
    from rich.table import Table

_PLAIN_WIDTH = 120


def _compare(config: DictConfig) -> None:
    from voltana.analysis import tables
    from voltana.analysis.runs import folders_of, load_runs

    options = _options(config)
    if _flag("gap", options["gap"]):
        _gap(folders_of(options["runs"]))
        return
    columns = tables.columns_option(options["columns"])
    runs = load_runs(folders_of(options["runs"]))
    oracle = options["oracle"]
    comparison = tables.compare(runs, str(options["baseline"]), None if oracle is None else str(oracle))
    notes = list(comparison.notes)
    if options["csv"] is not None:
        notes.append(_write("csv", options["csv"], tables.csv_text(comparison)))
    if options["markdown"] is not None:
        notes.append(_write("markdown", options["markdown"], tables.markdown(comparison, columns)))
    print_table(tables.caption(runs), tables.rich_table(comparison, columns), notes)


def _gap(folders: list[str]) -> None:
    from voltana.analysis.gap import compared, pair, rich_table

    live, simulated = pair(folders)
    rows = list(compared(live.summary, simulated.summary))
    print_table(f"live and simulated: {live.folder} and {simulated.folder}", rich_table(rows), [])


def _flag(key: str, found: object) -> bool:
    if not isinstance(found, bool):
        raise UserError(f"{key}: found {found!r}, allowed: true or false")
    return found


def _plot(config: DictConfig) -> None:
    from voltana.analysis import figures, style
    from voltana.analysis.capacity import capacity
    from voltana.analysis.runs import folders_of, load_runs

    options = _options(config)
    kind, width = options["figure"], options["width"]
    draw = {
        "curves": lambda runs: figures.curves(runs, options["published"], str(options["x"])),
        "tradeoff": lambda runs: figures.tradeoff(runs, str(options["baseline"])),
        "pareto": lambda runs: figures.tradeoff(runs, str(options["baseline"]), front=True),
        "timeline": lambda runs: figures.timeline(runs, options["window"]),
        "capacity": capacity,
        "energy": figures.energy,
        "residency": figures.residency,
    }
    if kind not in draw:
        raise UserError(f"figure: found {kind}, allowed: {', '.join(draw)}")
    if width is not None and width not in style.WIDTHS:
        raise UserError(f"width: found {width}, allowed: {', '.join(style.WIDTHS)}, null")
    out = figures.output_path(str(options["out"]))
    with style.page_width(width):
        figure = draw[kind](load_runs(folders_of(options["runs"]), interrupted=kind == "timeline"))
        figures.save(figure, out)
    print(f"Wrote {out}")


def _report(config: DictConfig) -> None:
    from voltana.analysis.page.write import Options, write_report
    from voltana.analysis.runs import folders_of, load_runs
    from voltana.analysis.trackers import track, tracker_option

    values = _options(config)
    folders, out = folders_of(values.pop("runs")), Path(str(values.pop("out")))
    tracker = tracker_option(values.pop("tracker"))
    for key in ("details", "timelines"):
        if isinstance(values[key], bool) or not isinstance(values[key], int) or values[key] < 0:
            raise UserError(f"{key}: found {values[key]!r}, allowed: a whole number from 0")
    for key in ("baseline", "oracle", "x", "title"):
        values[key] = None if values[key] is None else str(values[key])
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"out: found {out}, allowed: a path that ends in .html")
    runs = load_runs(folders)
    write_report(runs, out, Options(**values))
    if tracker is not None:
        print(track(tracker, runs, out))
    print(f"Wrote {out}: open it in a browser")


def _fit(config: DictConfig) -> None:
    from voltana.analysis import figures, predictor
    from voltana.prediction.fit import fit_ecopred
    from voltana.prediction.profile import read_profile

    options = _options(config)
    source, out, seed, drawn = Path(options["table"]), Path(options["out"]), options["seed"], options["figure"]
    if not isinstance(seed, int) or seed < 0:
        raise UserError(f"seed: found {seed!r}, allowed: a whole number from 0")
    figure = None if drawn is None else figures.output_path(str(drawn), "figure")
    samples = read_profile(source)
    fitted = fit_ecopred(samples, {"table": source.name}, seed)
    fitted.save(out)
    plain_console().print(predictor.error_table(fitted, samples, f"EcoPred from {source}"))
    print(f"written to {out}")
    if figure is not None:
        figures.save(predictor.draw(fitted, samples), figure, "figure")
        print(f"drawn to {figure}")


def _options(config: DictConfig) -> dict[str, Any]:
    from omegaconf import OmegaConf

    options = OmegaConf.to_container(config, resolve=True)
    assert isinstance(options, dict)
    return {str(key): value for key, value in options.items()}


def print_table(caption: str, table: Table, notes: list[str]) -> None:
    """Print a table with what all its rows share above and notes below; wide enough for it where nobody looks."""
    console = plain_console()
    if not console.is_terminal:
        console = plain_console(width=max(_PLAIN_WIDTH, _natural_width(console, table)))
    try:
        console.print(caption, soft_wrap=True)
        console.print()
        console.print(table)
        for note in ["", *notes] if notes else []:
            console.print(note, soft_wrap=True)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _natural_width(console: Console, table: Table) -> int:
    from rich.measure import Measurement

    return Measurement.get(console, console.options.update(max_width=10_000), table).maximum


def _write(key: str, path: Any, text: str) -> str:
    try:
        write_whole(Path(str(path)), text)
    except UserError as error:
        raise UserError(f"{key}: {error}") from error
    return f"Wrote {path}"


def compare() -> None:
    """voltana-compare: policies against a baseline, or a live run beside its simulation; `--gap` means `gap=true`."""
    sys.argv[1:] = ["gap=true" if word == "--gap" else word for word in sys.argv[1:]]
    hydra_command("compare", _compare, program="voltana-compare")()


plot = hydra_command("plot", _plot, program="voltana-plot")
report = hydra_command("report", _report, program="voltana-report")
fit = hydra_command("fit", _fit, program="voltana-fit")
