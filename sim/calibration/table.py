"""Fit a GPU's constants to a profile table, as `voltana-profile source=torch` writes it, and write the GPU's YAML.

Run as ``python -m voltana.sim.calibration.kernels --table profile.csv --gpu NAME``. A table holds whole iterations at
the clocks that could be set, often one, so it cannot tell all constants apart. What it cannot tell is kept from a base
GPU, scaled to what the card says of itself (clocks, SMs, memory, power limit). Which those are is computed, not
assumed: constants are fitted as factors of the base with a broad prior (`PRIOR`), and one whose factor stays uncertain
by more than `VAGUE` under residuals of `NOISE` is set back to the base and the rest fitted again.
"""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hydra.errors import HydraException
from numpy.typing import NDArray
from scipy.optimize import least_squares

from voltana.app.cli import explain
from voltana.errors import UserError
from voltana.files import write_whole
from voltana.prediction.profile import Sample, read_profile
from voltana.section import parse
from voltana.sim.plant import EngineSpec, GpuSpec, ModelSpec, Plant
from voltana.sim.run.compose import compose_sim

Array = NDArray[np.float64]

BASE = "a100_sxm4_80g_calibrated"
NOISE = 0.03
"""Relative residual expected of the plant's formulas on whole iterations (docs/validation.md: step latency)."""
PRIOR = 0.7
"""Standard deviation of a constant's logarithm around the base's: a factor of two is nothing unusual."""
VAGUE = 0.25
"""A constant known no better than this, relatively, is kept from the base."""
HELD_OUT = 5
"""One row in so many is held out."""
TIME = (
    "tensor_efficiency",
    "tile_overhead",
    "dram_bytes_per_s",
    "load_bytes_per_cycle",
    "kernel_s",
    "elementwise_s",
    "attention_unit_cycles",
    "attention_split_cycles",
    "attention_efficiency",
    "prefill_attention_efficiency",
)
POWER = ("base_w", "idle_w", "tensor_w", "stream_w", "dram_j_per_byte", "knee_mhz", "voltage_ratio")
CLOCK_LAW = ("load_bytes_per_cycle", "knee_mhz", "voltage_ratio")
"""What bends along the clock: out of reach of fewer than three clocks, whatever a power limit may hint at."""
SET = {
    "clock_min_mhz": "clocks_mhz",
    "clock_max_mhz": "clocks_mhz",
    "clock_step_mhz": "clocks_mhz",
    "memory_gib": "memory_gib",
    "power_limit_w": "power_limit_w",
    "sm_count": "sm_count",
}
"""Constants that the card itself tells, and by which key of the JSON."""
SCALED = (
    "load_bytes_per_cycle",
    "attention_unit_cycles",
    "attention_split_cycles",
    "knee_mhz",
    "bandwidth_curve",
    "tensor_w",
    "stream_w",
)
"""Constants of the base that are scaled by SMs, clock or power limit where the table cannot tell them."""


class Table(NamedTuple):
    """A profile table and the JSON beside it, empty if there is none."""

    name: str
    samples: list[Sample]
    about: dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """What the table was measured with."""

    model: ModelSpec
    engine: EngineSpec
    all_reduce: bool
    """Whether iterations contain the group's all-reduces."""


class Fitted(NamedTuple):
    """A fit: the GPU and the relative standard deviation of each constant that was fitted."""

    gpu: GpuSpec
    uncertainty: dict[str, float]


class Errors(NamedTuple):
    """Mean absolute relative error of one quantity in one phase."""

    what: str
    rows: int
    fitted: float
    held_out_rows: int
    held_out: float | None


def run(options: Namespace) -> int:
    """The command: fit, write the YAML, print the errors.

    Raises:
        UserError: no such table, base or model, or a table that says too little.
    """
    table = load_table(options.table)
    base, setup = load_setup(table, options.base or BASE, options.model)
    start = described(base, options.gpu, table.about)
    fitted, errors = calibrate(start, table, setup)
    drawn = "measured" if "tensor_w" in fitted.uncertainty else "scaled"
    fitted = fitted._replace(gpu=fitted.gpu.but(power=drawn))
    out = options.out or Path("gpu") / f"{options.gpu}.yaml"
    write_whole(out, gpu_yaml(fitted, errors, table, base.name))
    print(error_table(errors))
    kept = [key for key in (*TIME, *POWER) if key not in fitted.uncertainty]
    print(f"kept from {base.name}, for want of a trace in the table: {', '.join(kept)}")
    print(f"wrote {out}")
    return 0


# What is known beside the table


def load_table(path: Path) -> Table:
    """Read a table and the JSON of the same name beside it."""
    samples = read_profile(path)
    if len(samples) < 4 * HELD_OUT:
        raise UserError(f"{path}: found {len(samples)} rows, allowed: at least {4 * HELD_OUT}")
    beside = path.with_suffix(".json")
    try:
        about = json.loads(beside.read_text()) if beside.is_file() else {}
    except ValueError as error:
        raise UserError(
            f"{beside}: no JSON ({error}); allowed: what voltana-profile wrote beside {path.name}"
        ) from error
    return Table(path.name, samples, about if str(about.get("format", "")).startswith("voltana-torch") else {})


def load_setup(table: Table, base: str, model: str | None) -> tuple[GpuSpec, Setup]:
    """The base GPU, and model and engine of the table.

    Without a JSON the table came from elsewhere: then the model must be named, and the engine is that of
    `serving=sglang` with all it adds, so its effects do not end up in the GPU.
    """
    if model is None and "model" not in table.about:
        raise UserError(f"--model: missing; {table.name} has no JSON beside it that names the model")
    try:
        values = compose_sim(f"gpu={base}", *([f"model={model}"] if model else []))
    except HydraException as error:
        raise UserError(explain(error)) from error
    gpu = parse(GpuSpec, values["gpu"], "gpu")
    if not table.about:
        return gpu, Setup(
            parse(ModelSpec, values["model"], "model"), parse(EngineSpec, values["serving"]["engine"], "engine"), True
        )
    rest = {key: values["model"][key] for key in ("slo", "token_scale")}
    batches = tuple(table.about.get("graph_batches", ()))
    engine = EngineSpec(cuda_graph=bool(batches), graph_batches=batches, mem_fraction=1.0)
    return gpu, Setup(parse(ModelSpec, {**rest, **table.about["model"]}, "model"), engine, False)


def described(base: GpuSpec, name: str, about: Mapping[str, Any]) -> GpuSpec:
    """The base with what the card says of itself, and the constants scaled that go with it.

    The peak per SM and cycle is the power of two at or above the measured GEMM rate: tensor cores come in powers of
    two (A100 2048, H100 4096, L40S 1024 FLOP), and a large GEMM reaches more than half of its peak.
    """
    card = about.get("gpu", {})
    clocks = card.get("clocks_mhz") or list(base.clocks())
    sms = card.get("sm_count") or base.sm_count
    limit = card.get("power_limit_w") or base.power_limit_w
    stretch, wider, hungrier = max(clocks) / base.clock_max_mhz, sms / base.sm_count, limit / base.power_limit_w
    gpu = base.but(
        name=name,
        clock_min_mhz=int(min(clocks)),
        clock_max_mhz=int(max(clocks)),
        clock_step_mhz=int(min(np.diff(sorted(clocks)), default=base.clock_step_mhz)),
        memory_gib=card.get("memory_gib") or base.memory_gib,
        power_limit_w=limit,
        power_limit_min_w=min(base.power_limit_min_w, limit),
        sm_count=sms,
        load_bytes_per_cycle=base.load_bytes_per_cycle * wider,
        attention_unit_cycles=base.attention_unit_cycles / wider,
        attention_split_cycles=base.attention_split_cycles / wider,
        knee_mhz=base.knee_mhz * stretch,
        bandwidth_curve=tuple((clock * stretch, share) for clock, share in base.bandwidth_curve),
        tensor_w=base.tensor_w * hungrier,
        stream_w=base.stream_w * hungrier,
    )
    rates = about.get("rates", {})
    if not rates:
        return gpu
    clock, best = max((int(clock), rate) for clock, rate in rates.items())
    per_cycle = best["flop_per_s"] / (sms * clock * 1e6)
    return gpu.but(flops_per_cycle=float(2 ** math.ceil(math.log2(per_cycle))), dram_bytes_per_s=best["bytes_per_s"])


# Fitting


def calibrate(start: GpuSpec, table: Table, setup: Setup) -> tuple[Fitted, list[Errors]]:
    """Find what the table can tell, fit that to all rows; the held-out error is of a fit to four fifths of them."""
    metered = any(sample.energy_j is not None for sample in table.samples)
    several = len({sample.clock_mhz for sample in table.samples}) >= 3
    keys = [key for key in (*TIME, *(POWER if metered else ())) if several or key not in CLOCK_LAW]
    idle_w = {int(clock): float(power) for clock, power in table.about.get("idle_w", {}).items()}
    rows = sorted(table.samples, key=lambda sample: sample[:4])
    known = fit(start, keys, rows, setup, idle_w).uncertainty
    told = [key for key in keys if known[key] <= VAGUE]
    trial = fit(start, told, [s for i, s in enumerate(rows) if i % HELD_OUT], setup, idle_w)
    fitted = fit(trial.gpu, told, rows, setup, idle_w, around=start)
    return fitted, _errors(fitted.gpu, rows, trial.gpu, rows[::HELD_OUT], setup)


def fit(
    start: GpuSpec,
    keys: Sequence[str],
    rows: Sequence[Sample],
    setup: Setup,
    idle_w: Mapping[int, float],
    around: GpuSpec | None = None,
) -> Fitted:
    """Least squares over logarithms of time, energy and idle power, with a prior around the base.

    Args:
        start: where to begin.
        keys: the constants to fit; the others stay.
        rows: of the table.
        setup: model and engine.
        idle_w: power of one idle GPU by clock.
        around: centre of the prior, if not `start`.
    """
    centre = around or start
    measured = np.log(_measured(rows, idle_w))

    def residuals(x: Array) -> Array:
        computed = np.log(_computed(_moved(centre, keys, x), rows, setup, idle_w))
        return np.concatenate([(computed - measured) / NOISE, x / PRIOR])

    first = np.array([math.log(_scale(start, key) / _scale(centre, key)) for key in keys])
    low, high = np.array([_bounds(centre, key) for key in keys]).T
    found = least_squares(
        residuals,
        np.clip(first, low + 1e-3, high - 1e-3),
        bounds=(low, high),
        diff_step=[1e-3] * len(keys),
        x_scale=0.1,
        loss="soft_l1",
        ftol=1e-5,
        max_nfev=60,
    )
    slopes = np.asarray(found.jac)
    spread = np.sqrt(np.diag(np.linalg.inv(slopes.T @ slopes)))
    return Fitted(_moved(centre, keys, found.x), dict(zip(keys, spread.tolist(), strict=True)))


def _moved(gpu: GpuSpec, keys: Sequence[str], logs: Array) -> GpuSpec:
    """Each constant times the exponential of its number."""
    values = {key: _scale(gpu, key) * math.exp(x) for key, x in zip(keys, logs.tolist(), strict=True)}
    if "voltage_ratio" in values:
        values["voltage_ratio"] += 1.0
    return gpu.but(**values)


def _scale(gpu: GpuSpec, key: str) -> float:
    """What is multiplied: of the voltage ratio, what it has above one."""
    value = float(getattr(gpu, key))
    return max(0.01, value - 1.0) if key == "voltage_ratio" else max(value, 1e-30)


def _bounds(gpu: GpuSpec, key: str) -> tuple[float, float]:
    """Smallest and largest logarithm: what a GpuSpec takes, and a factor of 20 at most."""
    low, high = -3.0, 3.0
    if key.endswith("efficiency"):
        high = -math.log(getattr(gpu, key)) + 1e-3 if getattr(gpu, key) >= 1.0 else -math.log(getattr(gpu, key))
    if key == "knee_mhz":
        low, high = math.log(gpu.clock_min_mhz / gpu.knee_mhz), math.log((gpu.clock_max_mhz - 1) / gpu.knee_mhz)
    if key == "voltage_ratio":
        high = math.log(2.0 / _scale(gpu, key))
    return low, high


def _measured(rows: Sequence[Sample], idle_w: Mapping[int, float]) -> Array:
    energies = [s.energy_j for s in rows if s.energy_j is not None]
    return np.array([s.latency_s for s in rows] + energies + list(idle_w.values()))


def _computed(gpu: GpuSpec, rows: Sequence[Sample], setup: Setup, idle_w: Mapping[int, float]) -> Array:
    """What the plant says to the same, in the same order."""
    pairs = predict(gpu, rows, setup)
    energies = [joules for s, (_, joules) in zip(rows, pairs, strict=True) if s.energy_j is not None]
    return np.array([seconds for seconds, _ in pairs] + energies + [gpu.idle_power_w(clock) for clock in idle_w])


def predict(gpu: GpuSpec, rows: Sequence[Sample], setup: Setup) -> list[tuple[float, float]]:
    """Seconds and joules of each row on a plant of this GPU."""
    if not setup.all_reduce:
        gpu = gpu.but(link_latency_s=0.0, link_bytes_per_s=1e30)
    plant = Plant(gpu, setup.model, setup.engine)
    found = []
    for s in rows:
        if s.phase == "decode":
            step = plant.decode(s.batch_size, s.tokens, s.clock_mhz)
        else:
            pairs = s.tokens * (s.tokens / s.batch_size + 1) / 2
            step = plant.prefill(s.batch_size, s.tokens, pairs, s.clock_mhz)
        found.append((step.duration_s, step.duration_s * step.power_w))
    return found


# Output


def _errors(gpu: GpuSpec, rows: Sequence[Sample], trial: GpuSpec, held: Sequence[Sample], setup: Setup) -> list[Errors]:
    lines = []
    for phase in ("prefill", "decode"):
        for index, quantity in enumerate(("time", "energy")):
            fitted = _off(gpu, [s for s in rows if s.phase == phase], setup, index)
            apart = _off(trial, [s for s in held if s.phase == phase], setup, index)
            if fitted:
                mean = sum(apart) / len(apart) if apart else None
                lines.append(Errors(f"{phase} {quantity}", len(fitted), sum(fitted) / len(fitted), len(apart), mean))
    return lines


def _off(gpu: GpuSpec, rows: Sequence[Sample], setup: Setup, index: int) -> list[float]:
    """Absolute relative errors of time (index 0) or energy (1), of the rows that have it."""
    pairs = zip(predict(gpu, rows, setup), rows, strict=True)
    both = [(computed[index], (s.latency_s, s.energy_j)[index]) for computed, s in pairs]
    return [abs(computed / true - 1.0) for computed, true in both if true is not None]


def error_table(errors: Sequence[Errors]) -> str:
    """The errors as a Markdown table."""
    text = ["| mean absolute relative error | all rows | fifth held out |", "|---|---|---|"]
    for line in errors:
        apart = "-" if line.held_out is None else f"{100 * line.held_out:.1f} % ({line.held_out_rows})"
        text.append(f"| {line.what} | {100 * line.fitted:.1f} % ({line.rows}) | {apart} |")
    return "\n".join(text)


def gpu_yaml(fitted: Fitted, errors: Sequence[Errors], table: Table, base: str) -> str:
    """The GPU's YAML: every constant with its origin, the errors below."""
    card, software = table.about.get("gpu", {}), table.about.get("software", {})
    facts = [
        f"{key} {value}" for key, value in (("driver", card.get("driver")), *software.items()) if value is not None
    ]
    clocks = sorted({s.clock_mhz for s in table.samples})
    lines = [
        f"# {card.get('name', fitted.gpu.name)}: fitted to {table.name} by"
        " python -m voltana.sim.calibration.kernels --table.",
        f"# Measured at {', '.join(map(str, clocks))} MHz{'; ' if facts else ''}{', '.join(facts)}.",
        "# Meaning and unit of each key: sim/plant/gpu.py. The number after +- is one standard deviation.",
    ]
    for key, value in vars(fitted.gpu).items():
        lines.append(f"{key}: {_shown(value)}  # {_origin(key, fitted, table, base)}")
    lines += ["", *(f"# {row}" for row in error_table(errors).splitlines())]
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return str([[round(clock, 1), share] for clock, share in value])
    if value is None:
        return "null"
    if not isinstance(value, float):
        return str(value)
    text = f"{value:.4g}"
    return text if "e" not in text or "." in text else text.replace("e", ".0e")  # YAML takes 1e-05 for a word


def _origin(key: str, fitted: Fitted, table: Table, base: str) -> str:
    """Where a constant comes from, in words."""
    if key in fitted.uncertainty:
        return f"fitted, +-{100 * fitted.uncertainty[key]:.0f} %"
    if key in ("name", "power"):
        return "set"
    if table.about.get("gpu", {}).get(SET.get(key)):
        return "set, told by the card"
    if key == "flops_per_cycle" and table.about.get("rates"):
        return "set, power of two above the measured GEMM rate"
    return f"kept, {base}" + (" scaled to this card" if key in SCALED and table.about else "")
