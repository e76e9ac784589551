"""`voltana-profile source=torch`: profile a GPU with random weights at a model's real shapes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from voltana.errors import UserError
from voltana.live.clocks.device import GpuDevice
from voltana.live.profiling.cells import Cell, Group, decode_groups, prefill_group, spread_order
from voltana.live.profiling.journal import Journal
from voltana.live.profiling.search import Search
from voltana.live.profiling.show import Show
from voltana.live.profiling.torch.blocks import Shapes, Shard
from voltana.live.profiling.torch.device import GIB, Device, open_device
from voltana.live.profiling.torch.measure import Bench, Measured
from voltana.live.profiling.torch.roofline import BYTES, Rates, measure_rates, rates_bytes
from voltana.live.profiling.torch.sensor import NoPrivilegeError, check_clocks, describe, find_gpu, locked
from voltana.live.profiling.torch.settings import Attention, Settings
from voltana.prediction.profile import write_profile
from voltana.section import parse
from voltana.sim.plant import EngineSpec, ModelSpec

FORMAT = "voltana-torch-profile-1"
IDLE_S = 2.0
FREE_SHARE = 0.95
"""Of the free memory: the rest for the libraries' workspaces."""
CPU_GEMM = 256
GPU_GEMM = 8192
SAME_CLOCK = 0.02
"""How far the clock in force may have moved when a profile is resumed."""
CPU_CLOCK_MHZ = 1000
"""What stands for a clock in the table of a CPU, which has no one clock."""
NO_KERNEL = ("No available kernel", "No viable backend")
"""What torch says where the one attention kernel that is allowed cannot do it."""
NOT_MEASURED = ("all-reduce of the TP group", "host time between iterations", "sampling other than greedy")


def profile_gpu(values: Mapping[str, Any], out: Path) -> None:
    """Measure, and write the profile table, a JSON file beside it that says what was measured how, and a journal.

    Args:
        values: the resolved configuration of voltana-profile.
        out: the table to write.

    Raises:
        UserError: a bad setting, no such device, too little memory; or cells that undercut their floor, which the
            table then leaves out.
    """
    if values["gpu"].get("name") != "auto":
        found = values["gpu"].get("name")
        raise UserError(f"gpu: found {found}, allowed with source=torch: auto, the GPU at hand (profile.device)")
    settings = parse(Settings, values["profile"], "profile")
    model = parse(ModelSpec, values["model"], "model")
    engine = parse(EngineSpec, values["serving"]["engine"], "engine")
    device = open_device(settings.device)
    with Show(settings.budget_s) as show:
        import torch

        with torch.inference_mode(), device.attention(settings.attention):
            profile = Profile(device, model, engine, settings, out, show)
            try:
                profile.run()
            finally:
                profile.write()
    if profile.too_fast:
        first = profile.too_fast[0]
        raise UserError(
            f"{len(profile.too_fast)} cells are faster than memory and arithmetic allow and are left out of {out}, "
            f"the first: {first.phase} of {first.batch_size} x {first.length} tokens, {first.latency_s * 1e3:.3f} ms, "
            f"floor {first.floor_s * 1e3:.3f} ms; see {out.with_suffix('.json')}"
        )


@dataclass(frozen=True)
class ClockPlan:
    """A clock to measure at; `locked` if it is set, else it is the one in force."""

    clock_mhz: int
    locked: bool


@dataclass
class Notes:
    """What a reader of the table must know."""

    lines: list[str] = field(default_factory=list)

    def add(self, line: str) -> None:
        """Remember a line, once."""
        if line not in self.lines:
            self.lines.append(line)


class Profile:
    """One profile of one device.

    Args:
        device: where.
        model: the architecture.
        engine: batch sizes of CUDA graphs and share of memory.
        settings: what and how long.
        out: the table.
        show: where progress goes.
        gpu: its clocks and meters; found through NVML unless given.
    """

    def __init__(
        self,
        device: Device,
        model: ModelSpec,
        engine: EngineSpec,
        settings: Settings,
        out: Path,
        show: Show,
        gpu: GpuDevice | None = None,
    ) -> None:
        self._device, self._model, self._engine, self._settings = device, model, engine, settings
        self._out, self._show = out, show
        self._notes = Notes()
        self._gpu = gpu or self._find_gpu()
        self._rates: dict[int, Rates] = {}
        self._idle_w: dict[int, float] = {}
        self._stored = 0
        self._journal = Journal(out.with_suffix(".cells.jsonl"), self._about(), Measured)

    @property
    def too_fast(self) -> list[Measured]:
        """Cells that undercut their floor."""
        return [measured for measured in self._journal.cells if measured.too_fast]

    def run(self) -> None:
        """Measure every clock."""
        shapes = Shapes.of(self._model)
        if self._model.tp > 1:
            self._notes.add(
                f"one GPU's share of {self._model.tp}: energy is times {self._model.tp}, no all-reduce in it"
            )
        groups = self._groups(shapes)
        shard = self._shard(shapes, max(cell.tokens for group in groups for cell in group.cells))
        self._stored = len(shard.layers)
        bench = Bench(self._device, shard, self._engine, self._gpu, self._settings, self._layer_counts())
        for plan in self._clock_plans(bench):
            with self._clock(plan):
                self._measure_clock(bench, shapes, plan, groups)

    def write(self) -> None:
        """Write the table and what is known of it; called after an interruption too."""
        if not self._journal.cells:
            return
        cells = [measured for measured in self._journal.cells if not measured.too_fast]
        if cells:
            write_profile(self._out, [measured.sample() for measured in cells])
            self._show.line(f"{len(cells)} cells written to {self._out}")
        for line in self._notes.lines:
            self._show.line(f"note: {line}")
        self._out.with_suffix(".json").write_text(_readable(self._report()))

    # Set-up

    def _find_gpu(self) -> GpuDevice | None:
        if not self._device.facts.uuid:
            self._notes.add("no NVML for this device: time only, energy is empty")
            return None
        try:
            gpu = find_gpu(self._device.facts.uuid)
        except UserError as error:
            self._notes.add(f"{error}: time only, energy is empty")
            return None
        if gpu.read().energy_j is None:
            self._notes.add("this GPU has no energy counter: energy is empty")
        return gpu

    def _groups(self, shapes: Shapes) -> list[Group]:
        embeddings = 1 if self._model.tied_embeddings else 2
        weights = BYTES * (self._model.layers * shapes.layer_weights + embeddings * shapes.head_weights)
        room = self._engine.mem_fraction * self._device.facts.memory_bytes - weights
        capacity = int(room / (BYTES * self._model.layers * shapes.kv_elements))
        groups = [
            prefill_group(self._settings.prefill),
            *decode_groups(self._settings.decode, max(1, capacity)),
        ]
        if len(groups) == 1:
            self._notes.add("a server of this model would have no room for KV on this device: decode is not measured")
        return spread_order(groups)

    def _layer_counts(self) -> Sequence[int]:
        asked = self._settings.layers
        if asked == "all":
            return [self._model.layers]
        low, high = (int(count) for count in asked)
        self._notes.add(
            f"{low} and {high} layers were measured; time and energy of all {self._model.layers} are extrapolated"
        )
        return [low, high]

    def _shard(self, shapes: Shapes, kv_tokens: int) -> Shard:
        """As many layers as fit beside the largest iteration."""
        run = max(self._layer_counts())
        per_layer = BYTES * (shapes.layer_weights + kv_tokens * shapes.kv_elements)
        largest = max(self._settings.prefill.tokens[1], self._settings.decode.max_batch)
        iteration = shapes.activation_bytes(largest) + BYTES * self._settings.decode.max_batch * shapes.vocab
        fixed = BYTES * shapes.head_weights + max(iteration, rates_bytes(shapes, self._gemm_size()))
        free = FREE_SHARE * self._device.free_bytes()
        stored = min(run, int((free - fixed) / per_layer))
        if stored < 1:
            raise UserError(
                f"profile.device: found {free / GIB:.1f} GiB free, allowed: {(fixed + per_layer) / GIB:.1f} GiB for "
                "one layer with its KV; lower profile.decode.max_batch or profile.prefill.tokens"
            )
        if stored < run:
            self._notes.add(f"{stored} layers fit and were run over and over, {run} in an iteration")
            if stored * per_layer < 4 * self._device.facts.cache_bytes:
                self._notes.add("the layers held are few enough to stay in the cache: times may be too short")
        return Shard(self._model, self._device.torch_device, stored, kv_tokens, self._settings.seed)

    def _gemm_size(self) -> int:
        return GPU_GEMM if self._device.torch_device.type == "cuda" else CPU_GEMM

    # Clocks

    def _clock_plans(self, bench: Bench) -> list[ClockPlan]:
        wanted = sorted(set(self._settings.clocks_mhz))
        if self._gpu is not None and wanted:
            check_clocks(self._gpu, wanted)
            try:
                with locked(self._gpu, wanted[0]):
                    return [ClockPlan(clock, locked=True) for clock in wanted]
            except NoPrivilegeError as error:
                self._notes.add(f"no privilege to set clocks ({error}): not measured at {wanted}")
        elif len(wanted) == 1:
            self._notes.add(f"the clock is {wanted[0]} MHz by the user's word; it was neither set nor read")
            return [ClockPlan(wanted[0], locked=False)]
        elif wanted:
            raise UserError(f"profile.clocks_mhz: found {wanted}, allowed without NVML: [], or the one clock in force")
        return [self._plan_in_force(bench)]

    def _plan_in_force(self, bench: Bench) -> ClockPlan:
        if self._device.torch_device.type == "cpu":
            self._notes.add(f"a CPU has no one clock: {CPU_CLOCK_MHZ} MHz in the table stands for it")
            return ClockPlan(CPU_CLOCK_MHZ, locked=False)
        seen = bench.clock_in_force(self._gpu) if self._gpu else None
        if self._gpu is None or seen is None:
            raise UserError("profile.clocks_mhz: found [], allowed where NVML cannot tell: the one clock in force")
        nearest = min(self._gpu.info.clocks_mhz, key=lambda mhz: abs(mhz - seen), default=round(seen))
        before = {measured.clock_mhz for measured in self._journal.cells}
        clock = next((mhz for mhz in before if abs(mhz - nearest) <= SAME_CLOCK * nearest), nearest)
        self._notes.add(f"clocks were left alone; {clock} MHz is the one in force under a light load")
        return ClockPlan(clock, locked=False)

    @contextmanager
    def _clock(self, plan: ClockPlan) -> Iterator[None]:
        lock = locked(self._gpu, plan.clock_mhz) if plan.locked and self._gpu else nullcontext()
        with lock:
            yield

    # Measuring

    def _measure_clock(self, bench: Bench, shapes: Shapes, plan: ClockPlan, groups: Sequence[Group]) -> None:
        clock = plan.clock_mhz
        rates = self._rates[clock] = measure_rates(self._device, shapes, self._gemm_size())
        memory, arithmetic = rates.bytes_per_s / 1e9, rates.flop_per_s / 1e12
        how = "set" if plan.locked else "in force"
        self._show.begin(f"{clock} MHz")
        self._show.line(f"{clock} MHz ({how}): memory {memory:.1f} GB/s, GEMM {arithmetic:.2f} TFLOP/s")
        idle = bench.idle_power_w(IDLE_S)
        if idle is not None:
            self._idle_w[clock] = idle
        search = Search(groups, [m for m in self._journal.cells if m.clock_mhz == clock], self._settings.budget_s)
        while (cell := search.next_cell()) is not None:
            measured = self._measure(bench, cell, clock, rates)
            if measured is None:
                search.skip(cell)
                continue
            self._journal.add(measured)
            search.add(measured)
            self._show.progress(search.spent_s)
            self._show.line(describe_cell(measured))

    def _measure(self, bench: Bench, cell: Cell, clock_mhz: int, rates: Rates) -> Measured | None:
        """A cell, measured again if it undercuts its floor; None if it does not fit."""
        try:
            measured = bench.measure(cell, clock_mhz, rates)
            if measured.too_fast:
                measured = bench.measure(cell, clock_mhz, rates)
            if measured.energy_j is None and self._gpu and self._gpu.read().energy_j is not None:
                self._notes.add("the energy counter moved less than twice in some windows: raise profile.window_s")
            return measured
        except (RuntimeError, MemoryError) as error:
            if self._device.out_of_memory(error):
                self._notes.add(f"skipped, out of memory: {cell.phase} of {cell.batch_size} x {cell.length} tokens")
                return None
            if any(words in str(error) for words in NO_KERNEL):
                raise UserError(
                    f"profile.attention: found {self._settings.attention}, which torch does not have for this GPU and "
                    f"model; allowed: another of {', '.join(get_args(Attention))}"
                ) from error
            raise

    # Reporting

    def _about(self) -> dict[str, Any]:
        """What all cells of a journal must have in common."""
        facts = self._device.facts
        return {
            "format": FORMAT,
            "gpu": facts.name,
            "software": facts.software,
            "model": {key: value for key, value in vars(self._model).items() if key not in ("slo", "token_scale")},
            "graph_batches": list(self._engine.graph_batches) if self._engine.cuda_graph else [],
            "attention": self._settings.attention,
            "prompt_tokens": self._settings.prefill.prompt_tokens,
            "layers": self._settings.layers,
            "window_s": self._settings.window_s,
        }

    def _report(self) -> dict[str, Any]:
        facts = self._device.facts
        return {
            **self._about(),
            "table": self._out.name,
            "gpu": {
                "name": facts.name,
                "memory_gib": round(facts.memory_bytes / GIB, 1),
                "sm_count": facts.processors,
                "cache_mib": facts.cache_bytes / 2**20,
                **(describe(self._gpu) if self._gpu else {}),
            },
            "layers": {
                "model": self._model.layers,
                "run": list(self._layer_counts()),
                "stored": self._stored,
                "extrapolated": self._settings.layers != "all",
            },
            "rates": {str(clock): rates._asdict() for clock, rates in self._rates.items()},
            "idle_w": {str(clock): power for clock, power in self._idle_w.items()},
            "notes": self._notes.lines,
            "not_measured": list(NOT_MEASURED),
            "too_fast": [asdict(measured) for measured in self.too_fast],
            "cells": [asdict(measured) for measured in self._journal.cells],
        }


def _readable(report: Mapping[str, Any]) -> str:
    """JSON with a line per key, and per cell."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in report.items() if key != "cells"]
    cells = ",\n".join(f"  {json.dumps(cell)}" for cell in report["cells"])
    return "{\n" + ",\n".join([*lines, f' "cells": [\n{cells}\n ]']) + "\n}\n"


def describe_cell(measured: Measured) -> str:
    """One line: load, latency and its interval, power, floor and how far above it."""
    latency, energy = measured.latency_s, measured.energy_j
    power = "       -" if energy is None else f"{energy / latency:6.1f} W"
    times = latency / measured.floor_s if measured.floor_s else float("inf")
    verdict = "  FASTER THAN ITS FLOOR" if measured.too_fast else ""
    return (
        f"{measured.phase:7} {measured.batch_size:5} x {measured.length:<6} {latency * 1e3:10.3f} ms "
        f"+-{100 * measured.latency_interval:4.1f} %  {power}  floor {measured.floor_s * 1e3:10.3f} ms "
        f"({measured.floor_bound}), {times:.2f} x{verdict}"
    )
