"""Fit the engine constants of the plant to a run: `python -m voltana.sim.calibration.from_run RECORD --out FILE.yaml`.

What a record tells is compared with what the plant says for the same batches, KV tokens and clocks:

- a prefill batch: how long it took and what it drew;
- a decoded request: between its first and its last token as many iterations ran as it got tokens, so the durations of
  the rows of its instance, each over the plant's time of an iteration there, sum to their number; and what rows drew.

The constants of `SOUGHT` are moved until the squared relative errors are least. The plant is not exact, and its errors
are not independent, so standard errors are those of `OBSERVATIONS` observations that are off by `NOISE` each, however
many there are. A constant with one above its bound (`FACTOR_ERROR`, `HOST_ERROR_S`) cannot be told from this record: it
keeps the value that it had, and the others are fitted again. Then the run is simulated again with the constants of
before and of after, and the gaps to the record are printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import ConfigDict
from scipy.optimize import least_squares

from voltana.app.config import ClusterRun
from voltana.errors import UserError
from voltana.files import write_whole
from voltana.record import COMPLETED, RunRecord
from voltana.section import parse
from voltana.sim.plant import EngineSpec, Plant
from voltana.sim.plant.build import build_plant
from voltana.state import PHASES, Phase

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

SOUGHT: dict[Phase, tuple[str, ...]] = {
    "prefill": ("host_prefill_s", "host_request_s", "prefill_slowdown", "prefill_activity"),
    "decode": ("host_decode_s", "decode_slowdown", "decode_activity"),
}
NOISE = 0.01
OBSERVATIONS = 50
FACTOR_ERROR = 0.1
"""Of a slowdown or activity, relative."""
HOST_ERROR_S = 0.5e-3
BATCHES = 300
"""Prefill batches that are looked at, and rows of decode's power."""
REQUESTS = 60
"""Requests whose decoding is looked at."""
MS = 1e-3


class _Config(ClusterRun):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Fitted(NamedTuple):
    """What a record says of the constants of a phase."""

    constants: dict[str, float]
    """All that were sought; those that could not be told as they were."""
    errors: dict[str, float]
    """Standard errors of those that could."""
    unknown: tuple[str, ...]


Residuals = Callable[[Plant], Array]
"""Relative errors of a plant."""


def fit(plant: Plant, phase: Phase, residuals: Residuals) -> Fitted:
    """Fit the constants of a phase, without those that cannot be told.

    Args:
        plant: as the record's configuration has it.
        phase: whose constants.
        residuals: what is to be small.
    """
    free = list(SOUGHT[phase])
    values = {key: float(getattr(plant.engine, key)) for key in free}
    unknown: list[str] = []
    while free:
        found, errors = _least(plant, values, free, residuals)
        worst = max(free, key=lambda key: errors[key] / _bound(key, found[key]))
        if errors[worst] <= _bound(worst, found[worst]):
            return Fitted(values | found, errors, tuple(unknown))
        unknown.append(worst)
        free.remove(worst)
    return Fitted(values, {}, tuple(unknown))


def _bound(key: str, value: float) -> float:
    return HOST_ERROR_S if key.endswith("_s") else FACTOR_ERROR * value


def _least(
    plant: Plant, values: Mapping[str, float], free: Sequence[str], residuals: Residuals
) -> tuple[dict[str, float], dict[str, float]]:
    units = np.array([MS if key.endswith("_s") else 1.0 for key in free])
    low = np.array([0.0 if key.endswith("_s") else 0.1 for key in free])
    high = np.array([200.0 if key.endswith("_s") else 10.0 for key in free])

    def errors(x: Array) -> Array:
        moved = dict(zip(free, (x * units).tolist(), strict=True))
        return residuals(Plant(plant.gpu, plant.model, plant.engine.but(**moved)))

    start = np.clip(np.array([values[key] for key in free]) / units, low, high)
    best = least_squares(errors, start, bounds=(low, high), loss="soft_l1", f_scale=0.05, x_scale=0.1 + start)
    jacobian: Array = np.asarray(best.jac, dtype=np.float64)
    information = jacobian.T @ jacobian * min(1.0, OBSERVATIONS / len(best.fun)) / NOISE**2
    nearly_nothing = np.diag(np.maximum(1e-9 * np.diag(information), 1e-12))
    spread = np.sqrt(np.diag(np.linalg.inv(information + nearly_nothing)))
    return dict(zip(free, (best.x * units).tolist(), strict=True)), dict(zip(free, spread * units, strict=True))


def prefill_residuals(rows: pd.DataFrame) -> Residuals:
    """Times and powers of prefill batches.

    Args:
        rows: of `instances()`, prefill alone, with `span_s`.
    """
    same = ["instance", "batch_size", "kv_tokens", "clock_mhz"]
    changed = (rows[same] != rows[same].shift()).any(axis=1)
    rows = rows.assign(block=changed.cumsum(), energy_j=rows["span_s"] * rows["power_w"])
    batches = (
        rows[rows["batch_size"] > 0]
        .groupby("block")
        .agg(
            requests=("batch_size", "first"),
            tokens=("kv_tokens", "first"),
            clock=("clock_mhz", "first"),
            seconds=("span_s", "sum"),
            joules=("energy_j", lambda each: each.sum(skipna=False)),
        )
    )
    batches = _spread(batches[(batches["tokens"] > 0) & (batches["seconds"] > 0)], BATCHES)

    loads = [tuple(row) for row in batches[["requests", "tokens", "clock"]].to_numpy(float).tolist()]
    measured_s, measured_j = (batches[name].to_numpy(float) for name in ("seconds", "joules"))

    def residuals(plant: Plant) -> Array:
        steps = [
            plant.prefill(int(count), int(tokens), tokens * (tokens / count + 1) / 2, clock)
            for count, tokens, clock in loads
        ]
        seconds, powers = np.array([step.duration_s for step in steps]), np.array([step.power_w for step in steps])
        return _known(np.log(seconds / measured_s), np.log(powers * measured_s / measured_j))

    return residuals


def decode_residuals(rows: pd.DataFrame, requests: pd.DataFrame) -> Residuals:
    """Tokens of decoded requests, and powers of decode.

    Args:
        rows: of `instances()`, decode alone, with `span_s`.
        requests: those completed.
    """
    done = _spread(requests[requests["output_tokens"] > 2].dropna(subset=["first_token_s", "finish_s"]), REQUESTS)
    busy = rows[(rows["batch_size"] > 0) & (rows["kv_tokens"] > 0) & (rows["span_s"] > 0)].reset_index(drop=True)
    weights = _overlaps(busy, done)
    counts = done["output_tokens"].to_numpy(float) - 1
    power_w = np.full(len(busy), np.nan)
    powered = _spread(busy.dropna(subset=["power_w"]), BATCHES)
    power_w[powered.index.to_numpy(int)] = powered["power_w"].to_numpy(float)
    used = np.isfinite(power_w) | (weights.sum(axis=0) > 0)
    weights, power_w = weights[:, used], power_w[used]
    loads = busy.loc[used, ["batch_size", "kv_tokens", "clock_mhz", "span_s"]].to_numpy(float).tolist()

    def residuals(plant: Plant) -> Array:
        seconds, powers = np.empty(len(loads)), np.empty(len(loads))
        for place, (batch, tokens, clock, span_s) in enumerate(loads):
            first = plant.decode(int(batch), int(tokens), clock)
            middle = plant.decode(int(batch), int(tokens + batch * span_s / first.duration_s / 2), clock)
            seconds[place], powers[place] = middle.duration_s, middle.power_w
        return _known(np.log(weights @ (1.0 / seconds) / counts), np.log(powers / power_w))

    return residuals


def _overlaps(rows: pd.DataFrame, requests: pd.DataFrame) -> Array:
    """Seconds of each request's decoding (rows of the answer) in each row of the instances (columns)."""
    starts = rows["time_s"].to_numpy(float)
    ends, names = starts + rows["span_s"].to_numpy(float), rows["instance"].to_numpy(str)
    firsts, lasts = (requests[name].to_numpy(float)[:, None] for name in ("first_token_s", "finish_s"))
    there = requests["decode_instance"].to_numpy(str)[:, None] == names
    return np.asarray(np.where(there, np.clip(np.minimum(ends, lasts) - np.maximum(starts, firsts), 0.0, None), 0.0))


def _known(*errors: Array) -> Array:
    """All that are finite: what was not measured is no error."""
    together = np.concatenate(errors)
    return np.asarray(together[np.isfinite(together)])


def _spread(rows: pd.DataFrame, most: int) -> pd.DataFrame:
    """At most so many rows, evenly over all."""
    if len(rows) <= most:
        return rows
    return rows.iloc[np.linspace(0, len(rows) - 1, most).round().astype(int)]


def calibrate(record: RunRecord) -> dict[Phase, Fitted]:
    """Fit both phases to a record.

    Raises:
        UserError: it holds no completed request, or no iterations.
    """
    config = parse(_Config, record.config)
    rows, requests = record.instances(), record.requests()
    done = requests[requests["status"] == COMPLETED]
    if rows.empty or done.empty:
        raise UserError(f"{record.folder}: found {len(done)} completed requests, allowed: a run that served some")
    until = rows.groupby("instance")["time_s"].shift(-1).fillna(float(record.summary["end_s"]))
    rows = rows.assign(span_s=until - rows["time_s"]).sort_values(["instance", "time_s"])
    found = {}
    for phase in PHASES:
        own = rows[rows["phase"] == phase].dropna(subset=["clock_mhz"])
        if not (own["batch_size"] > 0).any():
            raise UserError(f"{record.folder}: found no {phase} iterations, allowed: a run with some of both phases")
        residuals = prefill_residuals(own) if phase == "prefill" else decode_residuals(own, done)
        found[phase] = fit(build_plant(config.side(phase)), phase, residuals)
    return found


# Telling


GAPS = (
    ("energy kJ", ("energy_j", "total"), 1e-3),
    ("  prefill", ("energy_j", "prefill"), 1e-3),
    ("  decode", ("energy_j", "decode"), 1e-3),
    ("TTFT p50 ms", ("ttft_ms", "p50"), 1.0),
    ("ITL p50 ms", ("itl_ms", "p50"), 1.0),
    ("E2E p50 ms", ("e2e_ms", "p50"), 1.0),
)
"""What is compared: its name, its place in a summary, a factor."""


def simulated(record: RunRecord, engine: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of the same run, simulated with other engine constants."""
    from voltana.sim.run.compose import compose_sim
    from voltana.sim.run.simulate import simulate

    values = compose_sim(f"replay={record.folder}")
    values["serving"] = {**values["serving"], "engine": dict(engine)}
    with tempfile.TemporaryDirectory() as folder:
        return simulate(values, Path(folder))


def gap_lines(record: RunRecord, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The numbers of the record beside those of both simulations."""
    lines = [f"{'':12} {'record':>9} {'before':>9} {'gap %':>7} {'after':>9} {'gap %':>7}"]
    for name, (section, key), factor in GAPS:
        real, *others = (each[section][key] for each in (record.summary, before, after))
        if real is None or None in others:
            continue
        cells = "".join(f" {factor * each:9.2f} {100 * (each / real - 1):+7.1f}" for each in others)
        lines.append(f"{name:12} {factor * real:9.2f}{cells}")
    return lines


def constant_lines(engine: EngineSpec, fits: Mapping[Phase, Fitted]) -> list[str]:
    """Every constant that was sought: before, after, and how well it is known."""
    lines = []
    for fitted in fits.values():
        for key, value in fitted.constants.items():
            known = f"+- {fitted.errors[key]:.2g}" if key in fitted.errors else "cannot be told from this record, kept"
            lines.append(f"{key:17} {getattr(engine, key):9.5g} -> {value:9.5g}  {known}")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, simulate, print, write."""
    parser = argparse.ArgumentParser(prog="python -m voltana.sim.calibration.from_run", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("record", metavar="RECORD", type=Path, help="folder of a finished run, live or simulated")
    parser.add_argument("--out", type=Path, help="file to write, FOLDER/serving/NAME.yaml, for --config-dir FOLDER")
    options = parser.parse_args(arguments)
    try:
        record = RunRecord(options.record)
        fits = calibrate(record)
        old = record.config["serving"]["engine"]
        found = {key: float(f"{v:.4g}") for each in fits.values() for key, v in each.constants.items()}
        lines = constant_lines(parse(EngineSpec, old), fits)
        lines += ["", *gap_lines(record, simulated(record, old), simulated(record, {**old, **found}))]
        print("\n".join(lines))
        if options.out is not None:
            about = [f"Fitted to a record by `python -m voltana.sim.calibration.from_run {options.record}`.", *lines]
            comment = "".join(f"# {line}".rstrip() + "\n" for line in about)
            serving = {**record.config["serving"], "name": options.out.stem, "engine": {**old, **found}}
            options.out.parent.mkdir(parents=True, exist_ok=True)
            write_whole(options.out, (comment + yaml.safe_dump(serving, sort_keys=False)).encode())
            print(f"\nwritten to {options.out}")
    except UserError as error:
        print(f"from_run: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
