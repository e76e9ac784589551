"""The console scripts of the simulator."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voltana.app.cli import hydra_command
from voltana.app.extras import require
from voltana.app.terminal import short
from voltana.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

WIDE = 180
"""Columns of a list, whatever the terminal has: it is to be read, searched and cut."""


def simulate() -> None:
    """voltana-sim: one simulated run, or a sweep with -m; `--gpus` and `--models` list what there is."""
    asked = [word for word in sys.argv[1:] if word in ("--gpus", "--models")]
    if asked:
        from voltana.app.terminal import plain_console
        from voltana.sim.run.listing import listing

        for word in asked:
            plain_console(width=WIDE).print(listing(word))
        return
    sim_command(_simulate, program="voltana-sim", known=_known_run)


def sim_command(
    job: Callable[[DictConfig], object],
    program: str,
    known: Callable[[Sequence[str]], Callable[[], object] | None] = lambda words: None,
) -> None:
    """Run a command that takes the configuration of voltana-sim, and has its launcher of sweeps.

    Args:
        job: what it does with a configuration.
        program: its name, as the user typed it.
        known: see `voltana.app.cli.hydra_command`.
    """
    one_thread_each()
    hydra_command("sim", job, program=program, known=known, before_hydra=_register_launcher)()


def _register_launcher() -> None:
    from hydra.core.plugins import Plugins
    from hydra_plugins.voltana import ProcessLauncher

    Plugins.instance().register(ProcessLauncher)  # Hydra's own search does not see editable installs


def one_thread_each() -> None:
    """Have numerical libraries use one thread a process, as the cores are for runs and a run needs one."""
    for library in ("OPENBLAS", "OMP", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def profile() -> None:
    """voltana-profile: measure latency and energy over clock and load. `source=X` is another word for `profile=X`."""
    sys.argv[1:] = [re.sub(r"^source=", "profile=", word) for word in sys.argv[1:]]
    hydra_command("profiling", _profile, program="voltana-profile")()


def _simulate(config: DictConfig) -> float | tuple[float, ...] | None:
    from hydra.core.hydra_config import HydraConfig

    from voltana.app.objective import objective_of, objectives
    from voltana.app.resolve import overwrite_of
    from voltana.app.sweeps import refuse_experiment_alone, this_sweep
    from voltana.sim.run.compose import run_values
    from voltana.sim.run.known import keep_run

    refuse_experiment_alone()
    hydra = HydraConfig.get()
    values, overwrite, asked = run_values(config, hydra.overrides.task), overwrite_of(config), objective_of(config)
    keep_run(config, hydra, values)
    return objectives(_run(values, Path(hydra.runtime.output_dir), overwrite, this_sweep()), asked)


def _known_run(words: Sequence[str]) -> Callable[[], object] | None:
    from voltana.sim.run.known import find_run

    found = find_run(words)
    return None if found is None else partial(_run, found.values, found.folder, found.overwrite, None)


def _run(values: dict[str, Any], folder: Path, overwrite: bool, sweep: dict[str, Any] | None) -> dict[str, Any]:
    from voltana.sim.run.worker import run_job

    with _arrival_progress(values) as progress:
        summary, already_there = run_job(values, folder, overwrite, sweep, progress)
    if already_there:
        print(f"{short(folder)}: this run is there already; overwrite=true runs it again", file=sys.stderr)
    _print_run(values, summary, folder)
    return summary


@contextmanager
def _arrival_progress(values: dict[str, Any]) -> Iterator[Callable[[float], None]]:
    """A bar over the time in which requests arrive, or over their number where that is all that bounds the run."""
    from voltana.app.progress import Progress

    duration, requests = values.get("duration_s"), values.get("requests")
    with Progress("simulating", duration or requests, unit="s of arrivals" if duration else "requests") as progress:
        yield progress.reach if duration else lambda _: progress.step()


def _print_run(values: dict[str, Any], summary: dict[str, Any], folder: Path) -> None:
    from voltana.record.resolution import attainments_in_words
    from voltana.record.summary import arrivals_in_words, energy_rests_on, rate_in_words

    def milliseconds(kind: str) -> str:
        return " / ".join("-" if v is None else f"{v:.1f}" for v in (summary[kind][p] for p in ("p50", "p90", "p99")))

    requests = summary["requests"]
    energy = {phase: summary["energy_j"][phase] / 1e3 for phase in ("total", "prefill", "decode")}
    per_token = summary["energy_per_output_token_j"]
    lines = (
        ("policy", f"{values['policy']['name']}, {rate_in_words(summary['arrivals'])}, seed {values['seed']}"),
        *arrivals_in_words(summary["arrivals"]),
        ("requests", f"{requests['completed']} completed, {requests['failed']} failed"),
        (
            "energy",
            "{total:.1f} kJ (prefill {prefill:.1f}, decode {decode:.1f})".format_map(energy),
        ),
        *([("", rests)] if (rests := energy_rests_on(summary.get("gpu", {}))) else []),
        ("energy per output token", "-" if per_token is None else f"{per_token:.4f} J"),
        *attainments_in_words(summary),
        ("TTFT p50 / p90 / p99", f"{milliseconds('ttft_ms')} ms"),
        ("ITL p50 / p90 / p99", f"{milliseconds('itl_ms')} ms"),
        ("E2E p50 / p90 / p99", f"{milliseconds('e2e_ms')} ms"),
        ("goodput", "-" if summary["goodput_per_s"] is None else f"{summary['goodput_per_s']:.1f} requests/s in time"),
        ("clock changes", f"{summary['clock_changes']}"),
        ("simulated", f"{summary['duration_s']:.1f} s in {summary['wall_s']:.2f} s"),
        ("run record", str(short(folder))),
    )
    widest = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f" {name:{widest}}  {value}")


def _profile(config: DictConfig) -> None:
    """Hand the configuration to the function that `profile._target_` names; it measures and writes the table.

    So `conf/profile/*.yaml` says who measures what, and nothing here has to know real hardware.
    """
    from voltana.app.resolve import resolve

    values = resolve(config)
    out = Path(values.pop("out"))
    path = str(values["profile"].get("_target_"))
    module, _, name = path.rpartition(".")
    try:
        measure = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        if module.startswith("voltana.live."):
            require(f"profile.source={values['profile'].get('source')}", "live")
        allowed = "the dotted path of a function of configuration and output path"
        raise UserError(f"profile._target_: found {path!r}, allowed: {allowed} ({error})") from error
    measure(values, out)


def profile_plant(values: dict[str, Any], out: Path) -> None:
    """The source `plant`: measure the simulated GPU, noise included, and write the table.

    Args:
        values: the resolved configuration of voltana-profile.
        out: the table to write.
    """
    from voltana.app.config import PlantConfig
    from voltana.prediction.profile import write_profile
    from voltana.section import parse
    from voltana.sim.plant.build import build_plant
    from voltana.sim.plant.gpu import GpuSpec
    from voltana.sim.serving import profiling

    parse(GpuSpec, values["gpu"], "gpu")  # first, as the clocks of the profile are shares of its clocks
    checked = parse(PlantConfig, values)
    samples = profiling.profile_plant(build_plant(checked), checked.profile)
    write_profile(out, samples)
    print(f"{len(samples)} samples at {len(checked.profile.clocks_mhz)} clocks written to {out}")
