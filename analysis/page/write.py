"""The file of the report."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import voltana
from voltana.analysis import energy, tables
from voltana.analysis.page import content, details
from voltana.analysis.runs import Run, RunSet
from voltana.app.progress import Progress
from voltana.errors import UserError
from voltana.files import write_whole
from voltana.record.resolution import UNCLOCKED

_SCRIPTS = ("vendor/uPlot.iife.min.js", "charts.js", "page.js")
_STYLES = ("vendor/uPlot.min.css", "style.css")

_WARNINGS = (tables.STARVED, "Power of", "Servers died", "Few requests", UNCLOCKED)
"""How the notes begin that put the numbers in doubt."""


class Options(NamedTuple):
    """What a reader may choose.

    Args:
        baseline: the policy whose energy the others save.
        oracle: the policy whose energy theirs is shown over, where it is there.
        x: the configuration key along the axis of curves; auto: the rate, else the first number that varies.
        details: so many runs at most are told one by one.
        timelines: so many of those have their timelines.
        title: of the page; None: of the runs.
    """

    baseline: str = "static_max"
    oracle: str | None = "oracle"
    x: str = "auto"
    details: int = 24
    timelines: int = 3
    title: str | None = None


def write_report(runs: RunSet, path: Path, options: Options | None = None) -> None:
    """Write the page of a set of runs.

    Raises:
        UserError: a record is malformed, the axis is no key of the runs, or the file cannot be written.
    """
    text = page(runs, options or Options())
    try:
        write_whole(path, text)
    except UserError as error:
        raise UserError(f"out: {error}") from error


def page(runs: RunSet, options: Options) -> str:
    """The page as text; the same records give the same text."""
    data = gather(runs, options)
    told = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")
    parts = {
        "title": html.escape(data["title"]),
        "version": html.escape(voltana.__version__),
        "styles": "\n".join(map(_asset, _STYLES)),
        "scripts": "\n".join(map(_asset, _SCRIPTS)),
        "data": told,
    }
    before, *rest = _asset("template.html").split("{{")
    return before + "".join(parts[name] + text for name, _, text in (each.partition("}}") for each in rest))


def gather(runs: RunSet, options: Options) -> dict[str, Any]:
    """What the scripts of the page draw."""
    comparison = tables.compare(runs, options.baseline, options.oracle, baseline_may_lack=True)
    chosen = choose(runs, options)
    anchors = {id(each.run): each.anchor for each in chosen}
    compared = content.Compared(runs, comparison, options.baseline, options.oracle, anchors)
    policies = list(dict.fromkeys(row.policy for row in comparison.rows))
    return {
        "title": options.title or _title(runs),
        "what": content.what_was_run(runs),
        "notes": [*content.how_levelled(comparison), *comparison.notes],
        "warnings": [note for note in comparison.notes if note.startswith(_WARNINGS)],
        "verdict": content.verdict(compared),
        "colours": content.looks(policies),
        "table": content.table(compared),
        "csv": tables.csv_text(comparison),
        "curves": content.curves(compared, options.x),
        "tradeoff": content.tradeoff(compared),
        "baseline": options.baseline,
        "buckets": details.BUCKETS,
        "percent": list(details.PERCENT),
        "quantities": [list(each) for each in details.QUANTITIES],
        "parts": list(energy.PARTS),
        "runs": _one_by_one(chosen),
        "all_runs": len(runs.runs),
    }


def _one_by_one(chosen: Sequence[details.Chosen]) -> list[dict[str, Any]]:
    told = []
    with Progress("runs", len(chosen)) as progress:
        for each in chosen:
            told.append({**_heading(each), **details.details(each)})
            progress.step()
    return told


def choose(runs: RunSet, options: Options) -> list[details.Chosen]:
    """The runs that are told one by one: the first seed of each policy and setting, spread evenly if they are many.

    Timelines are those of the first policies at the setting in the middle.
    """
    settings = runs.settings()
    firsts = [found[0] for setting in settings for policy in runs.policies() if (found := runs.at(setting, policy))]
    middle = settings[len(settings) // 2]
    drawn = _policies_first([run for run in firsts if run.setting == middle], options)[: options.timelines]
    others = [run for run in firsts if run not in drawn]
    room = max(0, options.details - len(drawn))
    kept = others if len(others) <= room else [others[i * len(others) // room] for i in range(room)]
    told = [run for run in firsts if any(run is each for each in (*drawn, *kept))]
    return [details.Chosen(run, f"run-{i}", any(run is each for each in drawn)) for i, run in enumerate(told)]


def _policies_first(runs: Sequence[Run], options: Options) -> list[Run]:
    """The baseline, then policies in the order of the records, the oracle last."""
    return sorted(runs, key=lambda run: (run.policy == options.oracle, run.policy != options.baseline))


def _heading(chosen: details.Chosen) -> dict[str, Any]:
    run = chosen.run
    return {
        "policy": run.policy,
        "setting": content.in_words(run.setting),
        "seed": None if run.seed is None else str(run.seed),
        "folder": str(run.record.folder),
        "starved": list(run.starved),
    }


def _title(runs: RunSet) -> str:
    shared = [str(runs.shared[key]) for key in ("model", "trace", "cluster") if key in runs.shared]
    policies = runs.policies()
    named = ", ".join(policies) if len(policies) <= 4 else f"{len(policies)} policies"
    return f"{named}: {', '.join(shared)}" if shared else named


def _asset(name: str) -> str:
    return resources.files("voltana.analysis.page").joinpath(name).read_text(encoding="utf-8")
