"""Calibrate the power cap of decode: how low a cap the workload at hand bears.

    python -m voltana.sim.studies.power_cap [overrides of voltana-sim]

Runs the configured workload once without a cap and once under each of `CAP_SHARES` of the power that decode then draws
on its own. Prefill runs at the highest clock, so that nothing else changes, and no cap is ever released. Where the cap
is too low, decode falls off a cliff: it no longer keeps its throughput, or its inter-token latency leaves the
objective. The cap to use is the lowest before that. The table is printed; the run folder gets `power_cap.yaml`, which
names the cap, and a run record per cap.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voltana.app.progress import Progress
from voltana.app.terminal import plain_console
from voltana.errors import UserError
from voltana.files import write_whole
from voltana.policies.build import shipped
from voltana.section import parse
from voltana.sim.run.commands import sim_command
from voltana.sim.studies.recorded import RecordedConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig

CAP_SHARES = tuple(percent / 100 for percent in range(95, 45, -5))
"""Caps tried, as shares of the natural draw."""
THROUGHPUT_KEPT = 0.95
"""A cap is over the cliff if less than this share of the uncapped throughput is left (the end of a run, when the last
requests drain, alone costs a few per cent),"""
ATTAINMENT_LOST = 0.005
"""or more than this of the ITL attainment (a share of all requests) is lost."""
RESULT = "power_cap.yaml"


@dataclass(frozen=True)
class Trial:
    """A run under a cap."""

    cap_w: float | None
    """Of each GPU; None: the GPU's own limit."""
    draw_w: float
    """Mean of a decode GPU while it works."""
    energy_j: float
    """Of decode."""
    output_tokens_per_s: float
    itl_attainment: float
    itl_p99_ms: float

    def keeps_up_with(self, natural: Trial) -> bool:
        """Whether it is still before the cliff."""
        return (
            self.output_tokens_per_s >= THROUGHPUT_KEPT * natural.output_tokens_per_s
            and self.itl_attainment >= natural.itl_attainment - ATTAINMENT_LOST
        )


def calibrate(values: Mapping[str, Any], folder: Path) -> list[Trial]:
    """Run the workload without a cap, then under lower and lower ones until one is over the cliff.

    Args:
        values: the resolved configuration of voltana-sim; of its policy only the routers are kept.
        folder: takes the run records.

    Returns:
        The trials; the first is the one without a cap. All but the last are before the cliff; so is the last
        where no lower cap was left to try.

    Raises:
        UserError: a bad configuration, or one under which no token is decoded.
    """
    with Progress("at most", 1 + len(CAP_SHARES), unit="runs") as progress:
        natural = run_trial(values, folder / "uncapped", None)
        progress.step("without a cap")
        trials = [natural]
        for cap_w in caps_to_try(natural.draw_w, power_limits_w(values)):
            trials.append(run_trial(values, folder / f"{cap_w:g}W", cap_w))
            progress.step(f"capped at {cap_w:g} W")
            if not trials[-1].keeps_up_with(natural):
                break
    return trials


def chosen_cap(trials: Sequence[Trial]) -> Trial | None:
    """The trial under the lowest cap before the cliff; None if even the highest is over it."""
    natural, *capped = trials
    kept = [trial for trial in capped if trial.keeps_up_with(natural)]
    return kept[-1] if kept else None


def caps_to_try(natural_w: float, limits_w: tuple[float, float]) -> Iterator[float]:
    """Falling caps in whole watts, as far as the GPU takes them."""
    for share in CAP_SHARES:
        cap_w = float(round(share * natural_w))
        if limits_w[0] <= cap_w <= limits_w[1]:
            yield cap_w


def power_limits_w(values: Mapping[str, Any]) -> tuple[float, float]:
    """Lowest and highest cap that the GPU of decode takes."""
    from voltana.sim.plant import GpuSpec

    gpu = parse(GpuSpec, parse(RecordedConfig, values).side("decode").gpu, "gpu")
    return gpu.power_limit_min_w, gpu.power_limit_w


def run_trial(values: Mapping[str, Any], folder: Path, cap_w: float | None) -> Trial:
    """Simulate the workload with decode under a cap and read what matters from the record."""
    from voltana.sim.run.simulate import simulate

    static = {"_target_": "voltana.policies.static.StaticClock", "clock_mhz": "max"}
    capped = {
        "_target_": "voltana.policies.power_cap.PowerCap",
        **shipped("frequency/power_cap", cap_w=cap_w, releases=False),
    }
    policy = {
        **values["policy"],
        "name": "uncapped" if cap_w is None else f"cap_{cap_w:g}W",
        "prefill_controller": static,
        "decode_controller": static if cap_w is None else capped,
    }
    summary = simulate({**values, "policy": policy}, folder)
    if summary["itl_attainment"] is None:
        raise UserError("trace: no request has a second token, allowed: requests that decode")
    return Trial(
        cap_w,
        working_draw_w(folder) / parse(RecordedConfig, values).side("decode").model["tp"],
        summary["energy_j"]["decode"],
        summary["throughput"]["output_tokens_per_s"],
        summary["itl_attainment"],
        summary["itl_ms"]["p99"],
    )


def working_draw_w(folder: Path) -> float:
    """Mean power of a decode instance while it has a batch, from a run record."""
    from voltana.record import RunRecord

    record = RunRecord(folder)
    rows = record.instances().query("phase == 'decode'")
    until = rows.groupby("instance")["time_s"].shift(-1).fillna(record.summary["end_s"])
    lasting_s = (until - rows["time_s"])[rows["batch_size"] > 0]
    return float((rows["power_w"] * lasting_s).sum() / lasting_s.sum())


def main() -> None:
    """The command: calibrate, print, write."""
    sim_command(_calibrate, program="voltana.sim.studies.power_cap")


def _calibrate(config: DictConfig) -> None:
    from hydra.core.hydra_config import HydraConfig

    from voltana.sim.run.compose import run_values

    hydra = HydraConfig.get()
    values, folder = run_values(config, hydra.overrides.task), Path(hydra.runtime.output_dir)
    trials = calibrate(values, folder)
    _print_table(trials)
    chosen = chosen_cap(trials)
    if chosen is None:
        print("every cap tried is over the cliff: decode bears none under this load, nothing written")
        return
    out = folder / RESULT
    write_whole(out, result_yaml(trials[0], chosen))
    print(f"use policy.decode_controller.cap_w={chosen.cap_w:g}; written to {out}")


def result_yaml(natural: Trial, chosen: Trial) -> str:
    """What the run folder gets: the key of `conf/frequency/power_cap.yaml` and where it comes from."""
    share = (chosen.cap_w or 0.0) / natural.draw_w
    return f"# {share:.0%} of the natural draw, {natural.draw_w:.0f} W\ncap_w: {chosen.cap_w:g}\n"


def _print_table(trials: Sequence[Trial]) -> None:
    from rich.table import Table

    natural = trials[0]
    table = Table(title="decode under power caps", title_justify="left")
    for name in ("cap W", "of natural", "draws W", "kJ", "tokens/s", "ITL met %", "p99 ms", "cliff"):
        table.add_column(name, justify="right", no_wrap=True)
    for trial in trials:
        table.add_row(
            "none" if trial.cap_w is None else f"{trial.cap_w:g}",
            "-" if trial.cap_w is None else f"{trial.cap_w / natural.draw_w:.0%}",
            f"{trial.draw_w:.0f}",
            f"{trial.energy_j / 1e3:.1f}",
            f"{trial.output_tokens_per_s:.0f}",
            f"{100 * trial.itl_attainment:.1f}",
            f"{trial.itl_p99_ms:.1f}",
            "" if trial.keeps_up_with(natural) else "over",
        )
    plain_console().print(table)


if __name__ == "__main__":
    main()
