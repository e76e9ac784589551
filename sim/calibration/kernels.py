"""Fit the GPU constants (`conf/gpu/a100_sxm4_80g_calibrated.yaml`) to measurements; say how well they predict the rest.

Run as ``python -m voltana.sim.calibration.kernels DATA`` (writes the YAML) or with ``--check`` (compares with the
shipped one). DATA is the folder that holds `profiles/` and `traces/`; `docs/validation.md` tells where each file comes
from. Whole clocks, shapes and files are kept out of the fit; the table keeps *fitted on* and *predicted* apart.
"""

import argparse
import csv
import gzip
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from operator import methodcaller
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray
from scipy.optimize import least_squares

from voltana import conf
from voltana.app.progress import Progress
from voltana.errors import UserError
from voltana.section import parse
from voltana.sim.calibration import table as calibrate_table
from voltana.sim.plant import EngineSpec, GpuSpec, ModelSpec, Plant
from voltana.sim.plant.operators import Operators, Work
from voltana.sim.plant.throttle import Point, under_limit
from voltana.sim.plant.transformer import Transformer

CONF = Path(conf.__file__).parent
GPU_FILE = CONF / "gpu" / "a100_sxm4_80g_calibrated.yaml"
A800_FITTED_MHZ = (930, 1170)
A800_PREDICTED_MHZ = (690, 1410)
TOLERANCE = 0.01
"""`--check`: relative difference allowed between a fitted and a shipped constant."""
ROUNDS = 3
"""Attention and GEMM constants share the memory bandwidth: each is fitted with the other held, by turns."""
RATES = ["tensor_efficiency", "tile_overhead", "dram_bytes_per_s", "load_bytes_per_cycle", "tensor_w", "stream_w"]
POWER = ["base_w", "knee_mhz", "voltage_ratio", "dram_j_per_byte"]
DECODE_ATTENTION = ["attention_unit_cycles", "attention_split_cycles", "attention_efficiency"]
PREFILL_ATTENTION = ["prefill_attention_efficiency"]
LINKS = ["link_latency_s", "link_bytes_per_s"]
FITTED = [*RATES, *POWER, *DECODE_ATTENTION, *PREFILL_ATTENTION, *LINKS, "bandwidth_curve"]
ERRORS_MARK = "# Errors of this calibration"

Row = dict[str, str]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One measurement and how the plant computes it."""

    group: str
    """Line of the error table it belongs to."""
    fitted: bool
    measured: float
    predict: Callable[[GpuSpec], float]

    def log_ratio(self, gpu: GpuSpec) -> float:
        """Natural logarithm of computed over measured."""
        return math.log(self.predict(gpu) / self.measured)

    def error(self, gpu: GpuSpec) -> float:
        """Relative error."""
        return self.predict(gpu) / self.measured - 1.0


@dataclass(frozen=True)
class Line:
    """One line of the error table; `None` where a set is empty."""

    group: str
    fitted_rows: int
    fitted_error: float | None
    predicted_rows: int
    predicted_error: float | None


# Reading


def read(data: Path, name: str) -> list[Row]:
    """Rows of a profile, plain or gzipped."""
    path = data / "profiles" / name
    if not path.is_file():
        raise UserError(f"{path}: not found; allowed: a data folder with profiles/{name}")
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as stream:
        return list(csv.DictReader(stream))


def load_gpu(file: Path = GPU_FILE) -> GpuSpec:
    """The GPU of a YAML file, in which a calibration starts."""
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    values.pop("defaults", None)
    return parse(GpuSpec, values, "gpu")


@lru_cache
def load_model(name: str) -> ModelSpec:
    """The model of conf/model/<name>.yaml."""
    return parse(ModelSpec, yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text()), "model")


# Operator tables


def alone(gpu: GpuSpec, kernel: Callable[[Operators], Work]) -> float:
    """Seconds of a kernel that runs by itself at the highest clock, under the power limit."""

    def run(clock: float) -> tuple[float, float]:
        work = kernel(Operators(gpu, clock))
        dynamic = gpu.dynamic_scale(clock) * work.active_ws + work.dram_j
        return work.seconds, dynamic + gpu.idle_power_w(clock) * work.seconds

    return under_limit(run, gpu.clocks(), gpu.clock_max_mhz, gpu.power_limit_w).seconds


def kernel_sample(group: str, fitted: bool, latency_ms: str | float, kernel: Callable[[Operators], Work]) -> Sample:
    """A sample of a kernel run by itself."""
    return Sample(group, fitted, float(latency_ms) / 1e3, lambda gpu: alone(gpu, kernel))


def gemm_samples(data: Path) -> list[Sample]:
    """GEMMs of the sizes transformers have; one row in twelve is fitted, the next predicted."""
    samples = []
    rows = read(data, "aiconfigurator_a100_sglang_gemm.csv.gz")
    shapes = sorted((int(r["m"]), int(r["n"]), int(r["k"]), r["latency"]) for r in rows)
    shapes = [shape for shape in shapes if min(shape[1:3]) >= 2048 and shape[0] <= 8192]
    for i, (m, n, k, latency) in enumerate(shapes):
        if i % 12 in (0, 1):
            samples.append(kernel_sample("GEMM", i % 12 == 0, latency, methodcaller("gemm", m, n, k, 2)))
    return samples


def decode_attention_samples(data: Path) -> list[Sample]:
    """Fitted: 32 heads in 8 KV groups. Predicted: other groupings with at least 4 heads a group."""
    samples = []
    for r in read(data, "aiconfigurator_a100_sglang_generation_attention.csv.gz"):
        heads, groups = int(r["num_heads"]), int(r["num_key_value_heads"])
        units, context = int(r["batch_size"]) * groups, int(r["step"]) + 1
        if groups in (2, 4, 8) and heads in (32, 64):
            samples.append(
                kernel_sample(
                    "decode attention",
                    (heads, groups) == (32, 8),
                    r["latency"],
                    methodcaller("decode_attention", units, context, 512.0),
                )
            )
    return samples


def prefill_attention_samples(data: Path) -> list[Sample]:
    """Fitted: 32 heads in 8 KV groups. Predicted: other groupings with at least 4 heads a group."""
    samples = []
    for r in read(data, "aiconfigurator_a100_sglang_context_attention.csv.gz"):
        heads, groups = int(r["num_heads"]), int(r["num_key_value_heads"])
        batch, length = int(r["batch_size"]), int(r["isl"])
        if groups in (2, 4, 8) and heads in (32, 64) and length >= 64:
            kernel = partial(prefill_attention, heads, groups, batch, length)
            samples.append(kernel_sample("prefill attention", (heads, groups) == (32, 8), r["latency"], kernel))
    return samples


def prefill_attention(heads: int, groups: int, batch: int, length: int, ops: Operators) -> Work:
    """Prefill attention of heads of 128 elements of 2 bytes."""
    tokens = batch * length
    start = ops.prefill_attention_tokens(tokens, tokens * 512.0 * (heads + groups), heads, 128)
    return start + ops.prefill_attention_pair(heads, 128) * (tokens * (length + 1) / 2)


def all_reduce_samples(data: Path) -> list[Sample]:
    """Fitted: 2 GPUs in a CUDA graph. Predicted: 4 and 8. The table counts elements of two bytes."""
    return [
        kernel_sample(
            "all-reduce",
            r["num_gpus"] == "2",
            r["latency"],
            methodcaller("all_reduce", int(r["num_gpus"]), 2.0 * float(r["message_size"])),
        )
        for r in read(data, "aiconfigurator_a100_sglang_allreduce.csv.gz")
        if r["backend"] == "sglang_graph"
    ]


# Step latencies: nothing of them is fitted


@lru_cache(maxsize=16)
def step_plant(gpu: GpuSpec, model: str) -> Plant:
    """A plant without batch padding, as the composed tables have none."""
    return Plant(gpu, load_model(model), EngineSpec(graph_batches=tuple(range(1, 513))))


def step_samples(data: Path) -> list[Sample]:
    """Composed step latencies of both models and phases, all predicted."""
    names = {"meta-llama/Meta-Llama-3.1-8B": "llama31_8b", "Qwen/Qwen3-32B": "qwen3_32b"}
    samples = []
    for r in read(data, "aiconfigurator_a100_step_latency.csv"):
        if r["engine"] == "sglang":
            model, phase = names[r["model"]], r["phase"]
            compute = partial(step_s, model, phase, int(r["batch_size"]), int(r["tokens_per_request"]))
            samples.append(Sample(f"step {model} {phase}", False, float(r["latency_ms"]) / 1e3, compute))
    return samples


def step_s(model: str, phase: str, batch: int, length: int, gpu: GpuSpec) -> float:
    """Seconds of a step at the highest clock."""
    plant = step_plant(gpu, model)
    if phase == "decode":
        return plant.decode(batch, batch * length, gpu.clock_max_mhz).duration_s
    return plant.prefill(batch, batch * length, batch * length * (length + 1) / 2, gpu.clock_max_mhz).duration_s


# A800: another engine (eager), another model (Qwen3-32B on one GPU)

EAGER = EngineSpec(cuda_graph=False, eager_launch_s=34e-6)
"""The A800 runs: no CUDA graphs; 10 launches of the attention block take about 340 us at any clock."""


@lru_cache(maxsize=16)
def a800_plant(gpu: GpuSpec) -> Plant:
    """Qwen3-32B on one GPU under the eager engine."""
    return Plant(gpu, load_model("qwen3_32b").but(tp=1), EAGER)


@lru_cache(maxsize=4096)
def a800_layer(phase: str, batch: int, context: float, clock_mhz: int, gpu: GpuSpec) -> Point:
    """Seconds and joules of one layer; the clock in force is that of the whole step under the power limit."""
    plant = a800_plant(gpu)
    net, pairs = Transformer(plant.model), batch * context * (context + 1) / 2
    if phase == "prefill":
        rows = int(batch * context)
        clock = plant.prefill(batch, rows, pairs, clock_mhz).clock_mhz
        ops = Operators(gpu, clock)
        attention = net.prefill_attention_tokens(ops, rows) + net.prefill_attention_pair(ops) * pairs
    else:
        rows = batch
        clock = plant.decode(batch, int(batch * context), clock_mhz).clock_mhz
        ops = Operators(gpu, clock)
        attention = net.decode_attention(ops, batch, context)
    block = (net.attention_block(ops, rows) + attention).stretched(EAGER.eager_launch_s * net.attention_launches)
    forward = net.feed_forward(ops, rows).stretched(EAGER.eager_launch_s * net.feed_forward_launches)
    work = block + forward
    dynamic = gpu.dynamic_scale(clock) * work.active_ws + work.dram_j
    return Point(work.seconds, dynamic + gpu.idle_power_w(clock) * work.seconds, clock)


def a800_samples(data: Path, phase: str) -> list[Sample]:
    """Time and energy per layer, attention and feed-forward together, at 690 MHz and above."""
    samples = []
    for r in read(data, f"a800_{phase}_dvfs.csv"):
        clock, context = int(r["sm_clock_mhz"]), float(r["input_len"])
        if phase == "decode":
            context += float(r["output_len"]) / 2
        if clock not in A800_FITTED_MHZ + A800_PREDICTED_MHZ:
            continue
        layer = partial(a800_layer, phase, int(r["batch_size"]), context, clock)
        seconds = (float(r["attention_us_per_layer"]) + float(r["ffn_us_per_layer"])) / 1e6
        joules = (float(r["attention_mj_per_layer"]) + float(r["ffn_mj_per_layer"])) / 1e3
        fitted = clock in A800_FITTED_MHZ
        samples.append(Sample(f"A800 {phase} time {clock}", fitted, seconds, partial(layer_s, layer)))
        samples.append(Sample(f"A800 {phase} energy {clock}", fitted, joules, partial(layer_j, layer)))
    return samples


def layer_s(layer: Callable[[GpuSpec], Point], gpu: GpuSpec) -> float:
    """Seconds that a layer takes, as a `Sample` predicts."""
    return layer(gpu).seconds


def layer_j(layer: Callable[[GpuSpec], Point], gpu: GpuSpec) -> float:
    """Joules that a layer uses, as a `Sample` predicts."""
    return layer(gpu).joules


# Fitting


MOST = {
    "expert_efficiency": 1.0,
    "tensor_efficiency": 1.0,
    "prefill_attention_efficiency": 1.0,
    "attention_efficiency": 1.5,
    "attention_filling": 1.0,
}
"""Highest value of what has one."""


def fit(
    gpu: GpuSpec,
    keys: Sequence[str],
    weighted: Iterable[tuple[float, Sequence[Sample]]],
) -> GpuSpec:
    """Least squares over the fitted samples: each set counts by its weight, whatever its size."""
    sets = [(weight, seen) for weight, samples in weighted if (seen := [s for s in samples if s.fitted])]
    start = [float(getattr(gpu, key)) for key in keys]
    ceiling = [min(1.5, math.log(MOST[key] / v)) if key in MOST else 1.5 for key, v in zip(keys, start, strict=True)]

    def spec(logs: Iterable[float]) -> GpuSpec:
        values = {key: v * math.exp(x) for key, v, x in zip(keys, start, logs, strict=True)}
        return gpu.but(**values)

    def residuals(logs: Array) -> Array:
        candidate = spec(logs)
        ratios = [np.array([s.log_ratio(candidate) for s in samples]) for _, samples in sets]
        return np.concatenate([w / math.sqrt(len(r)) * r for (w, _), r in zip(sets, ratios, strict=True)])

    bounds = ([-1.5] * len(keys), ceiling)
    found = least_squares(
        residuals, [min(0.0, c - 0.01) for c in ceiling], bounds=bounds, diff_step=[0.005] * len(keys)
    )
    return spec(found.x)


Stage = tuple[Sequence[str], Sequence[tuple[float, Sequence[Sample]]]]
"""Constants, and what they are fitted to, as `fit` takes them."""


def fit_stages(gpu: GpuSpec, stages: Sequence[Stage]) -> GpuSpec:
    """One fit after another, each from what those before it found; standard error shows how far it is."""
    with Progress("fits", len(stages)) as progress:
        for keys, weighted in stages:
            gpu = fit(gpu, keys, weighted)
            progress.step(", ".join(keys))
    return gpu


def fit_power(gpu: GpuSpec, data: Path) -> tuple[GpuSpec, Line]:
    """The clock law on 25 applications: every second clock is fitted, the others predicted.

    Each application has one activity, found from its fitted clocks in closed form.
    """
    rows = read(data, "a100_sxm4_80gb_dvfs_dcgm_power.csv")
    clock, power, dram = (
        np.array([float(r[key]) for r in rows]) for key in ("sm_app_clock", "power_usage", "dram_active")
    )
    names = np.array([r["application"] for r in rows])
    fitted = (clock - clock.min()) / gpu.clock_step_mhz % 2 == 0

    def spec(x: Array) -> GpuSpec:
        return gpu.but(base_w=float(x[0]), knee_mhz=float(x[2]), voltage_ratio=float(x[3]))

    def errors(x: Array) -> Array:
        law = spec(x)
        scale = np.array([law.dynamic_scale(f) for f in clock])
        error = np.empty_like(power)
        for name in np.unique(names):
            here = names == name
            rest, seen = power - x[0] - x[1] * dram, here & fitted
            weight = 1.0 / power[seen] ** 2
            activity = max(0.0, float((rest * scale)[seen] @ weight / (scale[seen] ** 2 @ weight)))
            error[here] = ((activity * scale - rest) / power)[here]
        return error

    def fitted_errors(x: Array) -> Array:
        chosen: Array = errors(x)[fitted]
        return chosen

    x = least_squares(fitted_errors, [67.0, 100.0, 1150.0, 1.2], x_scale=[10.0, 10.0, 50.0, 0.1]).x
    rms = [float(np.sqrt(np.mean(errors(x)[mask] ** 2))) for mask in (fitted, ~fitted)]
    line = Line("power, 25 applications (rms)", int(fitted.sum()), rms[0], int((~fitted).sum()), rms[1])
    top = np.mean([float(r["rate"]) for r in read_rates(data, "stream") if float(r["sm_app_clock"]) >= 1110])
    busy = float(np.mean(dram[(names == "stream") & (clock >= 1110)]))
    return spec(x).but(dram_j_per_byte=float(x[1]) * busy / (float(top) * 1e9)), line


def read_rates(data: Path, application: str) -> list[Row]:
    """Rows of one kernel of the rate campaign."""
    return [r for r in read(data, "a100_sxm4_80gb_dvfs_rate.csv") if r["application"] == application]


def fit_bandwidth(gpu: GpuSpec, data: Path) -> tuple[GpuSpec, Line]:
    """The STREAM curve: a line through six knots, every second clock fitted, the others predicted."""
    rows = read_rates(data, "stream")
    clock, rate = (np.array([float(r[key]) for r in rows]) for key in ("sm_app_clock", "rate"))
    share = rate / rate[clock >= 1110].mean()
    knots = np.array([510.0, 675.0, 750.0, 810.0, 915.0, 1110.0])
    hats = np.array([np.interp(clock, knots, row) for row in np.eye(len(knots))]).T
    fitted = np.arange(len(clock)) % 2 == 0
    values = np.minimum(1.0, np.linalg.lstsq(hats[fitted], share[fitted], rcond=None)[0])
    values[-1] = 1.0
    error = np.abs(hats @ values / share - 1.0)
    line = Line(
        "STREAM rate",
        int(fitted.sum()),
        float(error[fitted].mean()),
        int((~fitted).sum()),
        float(error[~fitted].mean()),
    )
    curve = tuple((float(f), round(float(v), 4)) for f, v in zip(knots, values, strict=True))
    return gpu.but(bandwidth_curve=curve), line


def dgemm_line(data: Path) -> Line:
    """DGEMM: the rate at the highest clock, scaled by the clock, predicts all others."""
    rates = {float(r["sm_app_clock"]): float(r["rate"]) for r in read_rates(data, "dgemm")}
    top = max(rates)
    errors = [abs(rates[top] * f / top / rate - 1.0) for f, rate in rates.items() if f != top]
    return Line("DGEMM rate", 1, 0.0, len(errors), sum(errors) / len(errors))


def calibrate(data: Path) -> tuple[GpuSpec, list[Line]]:
    """Fit stage by stage: power law, bandwidth, links, then kernels and A800 layers by turns; then predict the rest."""
    gpu, power = fit_power(load_gpu(), data)
    gpu, stream = fit_bandwidth(gpu, data)
    gemm, links = gemm_samples(data), all_reduce_samples(data)
    decode, prefill = decode_attention_samples(data), prefill_attention_samples(data)
    layers = [s for phase in ("prefill", "decode") for s in a800_samples(data, phase)]
    turn: list[Stage] = [
        (DECODE_ATTENTION, [(1.0, decode)]),
        (PREFILL_ATTENTION, [(1.0, prefill)]),
        (RATES, [(2.0, gemm), *a800_sets(layers)]),
    ]
    gpu = rounded(fit_stages(gpu, [(LINKS, [(1.0, links)]), *ROUNDS * turn]))
    samples = [*gemm, *decode, *prefill, *links, *layers, *step_samples(data)]
    return gpu, [power, stream, dgemm_line(data), *error_lines(gpu, samples)]


def a800_sets(layers: Sequence[Sample]) -> list[tuple[float, list[Sample]]]:
    """The A800 samples by phase and quantity; energy weighs double: it alone tells `tensor_w` and `stream_w`."""
    return [
        (weight, [s for s in layers if f"{phase} {what}" in s.group])
        for phase in ("prefill", "decode")
        for what, weight in (("time", 1.0), ("energy", 2.0))
    ]


def rounded(gpu: GpuSpec) -> GpuSpec:
    """The GPU with four significant digits of each constant, as the YAML keeps them."""
    values = {key: float(f"{v:.4g}") for key, v in vars(gpu).items() if isinstance(v, float)}
    return gpu.but(**values)


def error_lines(gpu: GpuSpec, samples: Sequence[Sample]) -> list[Line]:
    """Mean absolute relative error per group, fitted and predicted apart."""
    lines = []
    for group in dict.fromkeys(s.group for s in samples):
        errors = {True: [], False: []}  # type: dict[bool, list[float]]
        for s in samples:
            if s.group == group:
                errors[s.fitted].append(abs(s.error(gpu)))
        means = [sum(e) / len(e) if e else None for e in (errors[True], errors[False])]
        lines.append(Line(group, len(errors[True]), means[0], len(errors[False]), means[1]))
    return lines


# Output


def table(lines: Sequence[Line]) -> str:
    """The errors as a Markdown table; mean absolute relative error unless the line says otherwise."""

    def cell(rows: int, error: float | None) -> str:
        return "-" if error is None else f"{100 * error:.1f} % ({rows})"

    text = ["| measurement | fitted on: error (rows) | predicted: error (rows) |", "|---|---|---|"]
    text += [
        f"| {x.group} | {cell(x.fitted_rows, x.fitted_error)} | {cell(x.predicted_rows, x.predicted_error)} |"
        for x in lines
    ]
    return "\n".join(text)


def gpu_yaml(text: str, gpu: GpuSpec, keys: Sequence[str], lines: Sequence[Line]) -> str:
    """The GPU file with the fitted constants put in, its comments kept, and the errors of this calibration below."""
    for key in keys:
        value = getattr(gpu, key)
        shown = f"{value:.4g}" if isinstance(value, float) else str([list(point) for point in value])
        text = re.sub(rf"^{key}: [^#\n]*", f"{key}: {shown}  ", text, flags=re.MULTILINE)
    head = text.partition(ERRORS_MARK)[0]
    return head + ERRORS_MARK + "\n" + "\n".join(f"# {row}" for row in table(lines).splitlines()) + "\n"


def differences(fitted: GpuSpec, shipped: GpuSpec, keys: Sequence[str] = FITTED) -> list[str]:
    """Constants that differ by more than `TOLERANCE`."""
    found = []
    for key in keys:
        value, old = getattr(fitted, key), getattr(shipped, key)
        if isinstance(value, float) and abs(value - old) > TOLERANCE * abs(old):
            found.append(f"gpu.{key}: fitted {value:.4g}, shipped {old:.4g}")
    return found


def finish(
    file: Path, gpu: GpuSpec, shipped: GpuSpec, keys: Sequence[str], lines: Sequence[Line], *, check: bool
) -> int:
    """Write the GPU file, or compare: the exit status."""
    if check:
        found = differences(gpu, shipped, keys)
        print("\n".join(found) or f"{file.name}: every constant within {TOLERANCE:.0%} of the shipped one")
        return 1 if found else 0
    file.write_text(gpu_yaml(file.read_text(encoding="utf-8"), gpu, keys, lines), encoding="utf-8")
    print(f"wrote {file}")
    return 0


def main() -> int:
    """Calibrate; exit status 1 when `--check` finds a difference, 2 on bad input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, nargs="?", help="folder with profiles/")
    parser.add_argument("--check", action="store_true", help="compare with the shipped YAML instead of writing it")
    own = parser.add_argument_group("a GPU of one's own (sim/calibration/table.py)")
    own.add_argument("--table", type=Path, help="profile table to fit instead of DATA")
    own.add_argument("--gpu", help="name of the GPU")
    own.add_argument("--base", help="GPU that gives what the table cannot tell")
    own.add_argument("--model", help="model of the table, where no JSON beside it tells")
    own.add_argument("--out", type=Path, help="YAML to write; default gpu/NAME.yaml")
    options = parser.parse_args()
    if (options.data is None) == (options.table is None) or (options.table is None) != (options.gpu is None):
        parser.error("give DATA, or --table and --gpu")
    try:
        if options.table is not None:
            return calibrate_table.run(options)
        shipped = load_gpu()
        gpu, lines = calibrate(options.data)
    except UserError as problem:
        print(problem, file=sys.stderr)
        return 2
    print(table(lines))
    return finish(GPU_FILE, gpu, shipped, FITTED, lines, check=options.check)


if __name__ == "__main__":
    sys.exit(main())
