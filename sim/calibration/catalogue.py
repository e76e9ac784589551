"""Fit a GPU of the catalogue (`conf/gpu/<name>.yaml`) to the kernel tables of `aiconfigurator-core`.

Run as ``python -m voltana.sim.calibration.catalogue --gpu h100_sxm`` (extra `catalogue`): it puts the fitted constants
and their errors into the YAML, whose other keys are facts with a source. ``--check`` compares with the shipped one
instead. A GPU whose power was measured needs ``--data DATA`` with `profiles/`; the power of the others is scaled from
that of a relative. `docs/catalogue.md` tells which rows are fitted and which predicted.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from operator import methodcaller
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from voltana.app.extras import require
from voltana.errors import UserError
from voltana.sim.calibration import kernels, served
from voltana.sim.calibration.kernels import Line, Sample, kernel_sample
from voltana.sim.plant import EngineSpec, GpuSpec
from voltana.sim.plant.operators import ExpertLoad

BACKEND, VERSION = "sglang", "0.5.14"
RELATIVE = "h100_sxm"
"""GPU whose measured power law the others scale."""
GEMM_STRIDE = 40
"""One row in so many is fitted, the one half-way to the next predicted."""
LONG_S, LONG_WEIGHT = 5e-4, 0.5
"""GEMMs longer than this are what prefill is made of: they count once more by so much."""
COLD = 1.25
"""A working set that is so many times the second-level cache is read from memory."""
NEGLIGIBLE = 0.1
"""Share of a kernel's time below which it does not matter where its data comes from."""
LONGEST = 16384
"""Tokens of the longest context of decode attention."""
UNLIMITED_W = 1e6
"""Power limit of a benchmark: its bursts of milliseconds are mostly over before the GPU lowers its clock."""
ROUNDS = 3
START = {
    "kernel_s": 3e-6,
    "attention_unit_cycles": 40.0,
    "attention_split_cycles": 1.0,
    "attention_split_kernels": 1.0,
    "attention_efficiency": 1.0,
    "attention_filling": 0.2,
    "prefill_attention_efficiency": 0.6,
    "prefill_attention_kernels": 3.0,
    "prefill_attention_tile": 60.0,
    "tensor_efficiency": 0.75,
    "tile_overhead": 3.0,
    "expert_efficiency": 0.4,
    "expert_tile_overhead": 40.0,
    "expert_start_s": 3e-5,
}
"""Where a fit begins, whatever the YAML has: so it ends where it ended before."""
DECODE_ATTENTION = [
    "kernel_s",
    "attention_unit_cycles",
    "attention_split_cycles",
    "attention_split_kernels",
    "attention_efficiency",
    "attention_filling",
]
PREFILL_ATTENTION = ["prefill_attention_efficiency", "prefill_attention_kernels", "prefill_attention_tile"]
GEMM = ["tensor_efficiency", "tile_overhead", "dram_bytes_per_s"]
EXPERTS = ["expert_efficiency", "expert_tile_overhead", "expert_start_s"]
KERNELS = [*kernels.LINKS, *DECODE_ATTENTION, *PREFILL_ATTENTION, *GEMM, *EXPERTS]
EXPERT_STRIDE = 3
"""One row of the experts' table in so many is taken."""
NARROWEST = 96
"""Width of the narrowest slice of an expert that is taken."""
STEPS = {
    "llama31_8b": ("meta-llama/Meta-Llama-3.1-8B", 1),
    "qwen3_32b": ("Qwen/Qwen3-32B", 2),
    "llama33_70b": ("meta-llama/Meta-Llama-3.1-70B", 4),
}
"""Models whose composed step latencies are predicted: their name in aiconfigurator, and GPUs."""
DECODE_BATCHES, PREFILL_BATCHES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256), (1, 2, 4, 8, 16)
CONTEXTS = (128, 256, 512, 1024, 2048, 4096, 8192)
MOST_KV_TOKENS, MOST_PROMPT_TOKENS = 1_000_000, 16_384


@dataclass(frozen=True)
class Source:
    """What a GPU of the catalogue is fitted to."""

    cache_bytes: float
    """Second-level cache (data sheet)."""
    attention: str
    """Its attention kernels in SGLang, as the tables name them."""
    campaign: str | None = None
    """File in `profiles/` with the power of this GPU under load."""
    version: str = VERSION
    """Of SGLang."""
    idle_w: float = 0.0
    """Measured with a context loaded, at the highest clock; where power is fitted."""


GPUS = {
    "h100_sxm": Source(50e6, "fa3", campaign="dynamollm_h100_70b_tp4.csv", idle_w=122.0),
    "h200_sxm": Source(50e6, "fa3"),
    "b200_sxm": Source(126e6, "trtllm_mha"),
}


class Tables:
    """The measured kernels of one GPU.

    Args:
        folder: `systems/data/<system>` of aiconfigurator-core.
        source: of this GPU.
        stream_bytes_per_s: about what its memory delivers, to tell rows that ran from the cache.
    """

    def __init__(self, folder: Path, source: Source, stream_bytes_per_s: float) -> None:
        self._folder = folder
        self._source = source
        self._stream = stream_bytes_per_s

    def _rows(self, family: str, table: str, by: Sequence[str], **only: object) -> Iterator[Any]:
        """Median latency (s) per combination of `by`, of the rows in which each key of `only` has its value."""
        path = self._folder / family / BACKEND / self._source.version / f"{table}_perf.parquet"
        if not path.is_file():
            raise UserError(
                f"{path}: not found; allowed: a GPU whose tables of {BACKEND} {self._source.version} are complete"
            )
        rows = pd.read_parquet(path)
        for key, value in only.items():
            rows = rows[rows[key] == value]
        medians: pd.DataFrame = rows.groupby(list(by))[["latency"]].median().sort_index().reset_index()
        yield from medians.itertuples(index=False)

    def _from_memory(self, moved: float, latency_ms: float) -> bool:
        """Whether a benchmark that repeats itself still reads from memory, as a server does, or it does not matter."""
        cold = moved >= COLD * self._source.cache_bytes
        return cold or moved / self._stream <= NEGLIGIBLE * latency_ms / 1e3

    def gemm(self) -> list[Sample]:
        """GEMMs of the sizes that transformers have, bfloat16."""
        rows = self._rows("gemm", "gemm", ("m", "n", "k"), gemm_dtype="bfloat16")
        shapes = [r for r in rows if min(r.n, r.k) >= 2048 and r.m <= MOST_PROMPT_TOKENS]
        return [
            kernel_sample(
                "GEMM", i % GEMM_STRIDE == 0, r.latency, methodcaller("gemm", int(r.m), int(r.n), int(r.k), 2)
            )
            for i, r in enumerate(shapes)
            if i % GEMM_STRIDE in (0, GEMM_STRIDE // 2)
        ]

    def _attention(self, table: str, length: str) -> Iterator[tuple[int, int, int, int, float]]:
        """Heads, KV heads, batch, length, latency of full attention in bfloat16, heads of 128."""
        keys = ("batch_size", "num_heads", "num_key_value_heads", length)
        plain = {
            "kernel_source": self._source.attention,
            "head_dim": 128,
            "attn_dtype": "bfloat16",
            "kv_cache_dtype": "bfloat16",
            "window_size": 0,
        }
        for batch, heads, groups, at, latency in self._rows("attention", table, keys, **plain):
            if heads in (32, 64) and groups in (2, 4, 8):
                yield int(heads), int(groups), int(batch), int(at), float(latency)

    def decode_attention(self) -> list[Sample]:
        """Fitted: 32 heads in 8 KV groups; predicted: other groupings."""
        samples = []
        for heads, groups, batch, step, latency in self._attention("generation_attention", "step"):
            units, context = batch * groups, step + 1
            if context <= LONGEST and self._from_memory(units * context * 512.0, latency):
                kernel = methodcaller("decode_attention", units, context, 512.0)
                samples.append(kernel_sample("decode attention", (heads, groups) == (32, 8), latency, kernel))
        return samples

    def prefill_attention(self) -> list[Sample]:
        """Fitted: 32 heads in 8 KV groups; predicted: other groupings."""
        samples = []
        for heads, groups, batch, length, latency in self._attention("context_attention", "isl"):
            if length >= 64 and self._from_memory(batch * length * 512.0 * (heads + groups), latency):
                kernel = partial(kernels.prefill_attention, heads, groups, batch, length)
                samples.append(kernel_sample("prefill attention", (heads, groups) == (32, 8), latency, kernel))
        return samples

    def all_reduce(self) -> list[Sample]:
        """Fitted: 2 GPUs in a CUDA graph; predicted: more. The tables count elements of two bytes."""
        rows = self._rows("comm", "custom_allreduce", ("num_gpus", "message_size"), backend="sglang_graph")
        return [
            kernel_sample("all-reduce", n == 2, latency, methodcaller("all_reduce", int(n), 2.0 * float(elements)))
            for n, elements, latency in rows
        ]

    def experts(self) -> list[Sample]:
        """Routed experts in bfloat16, unevenly hit, sliced over GPUs; every second shape of a model is fitted."""
        keys = ("hidden_size", "inter_size", "topk", "num_experts", "moe_tp_size", "num_tokens")
        only = {"moe_dtype": "bfloat16", "kernel_source": "sglang_fused_moe_triton", "distribution": "power_law_1.01"}
        rows = list(self._rows("moe", "moe", keys, **only, moe_ep_size=1))
        shapes = sorted({tuple(row[:4]) for row in rows})
        samples = []
        for hidden, inter, topk, experts, slices, tokens, latency in rows[::EXPERT_STRIDE]:
            if inter // slices >= NARROWEST:
                load = ExpertLoad.of(float(tokens * topk), float(experts))
                kernel = methodcaller("experts", load, int(hidden), int(inter // slices), 2, 2.0)
                fitted = shapes.index((hidden, inter, topk, experts)) % 2 == 0
                samples.append(kernel_sample("experts", fitted, latency, kernel))
        return samples


def step_samples(system: str, source: Source) -> list[Sample]:
    """Step latencies that aiconfigurator composes from the tables, all predicted."""
    from aiconfigurator_core.sdk.engine import EngineHandle

    wide = "bfloat16"
    samples = []
    for model, (name, tp) in STEPS.items():
        engine = EngineHandle.compile(
            name,
            system,
            BACKEND,
            tp_size=tp,
            gemm_quant_mode=wide,
            kvcache_quant_mode=wide,
            fmha_quant_mode=wide,
            attention_backend=source.attention,
        )
        for phase, batches, most in (
            ("prefill", PREFILL_BATCHES, MOST_PROMPT_TOKENS),
            ("decode", DECODE_BATCHES, MOST_KV_TOKENS),
        ):
            tell = engine.predict_prefill_latency if phase == "prefill" else engine.predict_decode_latency
            for batch, length in ((b, c) for b in batches for c in CONTEXTS if b * c <= most):
                compute = partial(kernels.step_s, model, phase, batch, length)
                samples.append(Sample(f"step {model} {phase}", False, tell(batch, length) / 1e3, compute))
    return samples


def scaled_power(gpu: GpuSpec, relative: GpuSpec) -> GpuSpec:
    """Power of a relative by the power limit, its knee by the highest clock; joules a byte and voltages stay."""
    ratio = gpu.power_limit_w / relative.power_limit_w
    by_limit = {key: getattr(relative, key) * ratio for key in ("base_w", "idle_w", "tensor_w", "stream_w")}
    return gpu.but(
        **by_limit,
        dram_j_per_byte=relative.dram_j_per_byte,
        knee_mhz=relative.knee_mhz * gpu.clock_max_mhz / relative.clock_max_mhz,
        voltage_ratio=relative.voltage_ratio,
    )


def calibrate(gpu: GpuSpec, tables: Tables) -> GpuSpec:
    """The constants of time; attention and GEMM share the memory bandwidth and are fitted by turns."""
    gemm, decode, prefill = tables.gemm(), tables.decode_attention(), tables.prefill_attention()
    turn: list[kernels.Stage] = [
        (DECODE_ATTENTION, [(1.0, decode)]),
        (PREFILL_ATTENTION, [(1.0, prefill)]),
        (GEMM, [(1.0, gemm), (LONG_WEIGHT, [s for s in gemm if s.measured > LONG_S])]),
    ]
    links, experts = (kernels.LINKS, [(1.0, tables.all_reduce())]), (EXPERTS, [(1.0, tables.experts())])
    burst = kernels.fit_stages(gpu.but(**START, power_limit_w=UNLIMITED_W), [links, *ROUNDS * turn, experts])
    return burst.but(power_limit_w=gpu.power_limit_w)


def power_lines(gpu: GpuSpec, engine: EngineSpec, rows: Sequence[served.Served]) -> list[Line]:
    """Error of the power under load, and of the same power scaled from the A100 instead of fitted."""
    model = kernels.load_model("llama33_70b")
    fitted = np.array([row.clock_mhz in served.FITTED_MHZ for row in rows])
    own = np.abs(served.errors(gpu, model, engine, rows))
    n = int(fitted.sum())
    a100 = scaled_power(gpu, kernels.load_gpu())
    foreign = np.abs(served.errors(a100, model, engine, rows))
    return [
        Line("power under load", n, float(own[fitted].mean()), len(rows) - n, float(own[~fitted].mean())),
        Line("the same, scaled from the A100", 0, None, len(rows), float(foreign.mean())),
    ]


def run(options: argparse.Namespace) -> int:
    """Calibrate one GPU.

    Raises:
        UserError: no such GPU in the catalogue, or its data is not at hand.
    """
    name = options.gpu
    if name not in GPUS:
        raise UserError(f"--gpu: found {name!r}, allowed: {', '.join(GPUS)}")
    require("the catalogue", "catalogue")
    source, file = GPUS[name], kernels.CONF / "gpu" / f"{name}.yaml"
    shipped, rows = kernels.load_gpu(file), list[served.Served]()
    if source.campaign is not None:
        if options.data is None:
            raise UserError(f"--data: missing; power of {name} is fitted to profiles/{source.campaign}")
        rows = served.read_served(options.data / "profiles" / source.campaign)
    tables = Tables(systems() / "data" / name, source, shipped.dram_bytes_per_s)
    gpu, engine = calibrate(shipped, tables), EngineSpec()
    if rows:
        gpu, engine = served.fit_served(gpu, kernels.load_model("llama33_70b"), rows, source.idle_w)
    else:
        gpu = scaled_power(gpu, kernels.load_gpu(kernels.CONF / "gpu" / f"{RELATIVE}.yaml"))
    gpu = kernels.rounded(gpu)
    samples = [*tables.gemm(), *tables.decode_attention(), *tables.prefill_attention()]
    samples += [*tables.all_reduce(), *tables.experts()]
    burst = gpu.but(power_limit_w=UNLIMITED_W)
    lines = kernels.error_lines(burst, [*samples, *step_samples(name, source)])
    lines += power_lines(gpu, engine, rows) if rows else []
    print(kernels.table(lines))
    return kernels.finish(file, gpu, shipped, [*KERNELS, *served.POWER, "idle_w"], lines, check=options.check)


def systems() -> Path:
    """The folder of aiconfigurator-core that holds its tables."""
    spec = find_spec("aiconfigurator_core")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "systems"


def main() -> int:
    """Calibrate; exit status 1 when `--check` finds a difference, 2 on bad input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gpu", required=True, help=f"one of {', '.join(GPUS)}")
    parser.add_argument("--data", type=Path, help="folder with profiles/, for a GPU whose power was measured")
    parser.add_argument("--check", action="store_true", help="compare with the shipped YAML instead of writing it")
    try:
        return run(parser.parse_args())
    except UserError as problem:
        print(problem, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
