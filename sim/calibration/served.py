"""Power of a GPU from a campaign that served requests: steady state of one server that does both phases.

The campaign is DynamoLLM's (Stojkovic et al., HPCA 2025): a 70B model on four H100s, power of the group by clock and
request rate.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from voltana.errors import UserError
from voltana.sim.plant import EngineSpec, GpuSpec, ModelSpec, Plant

FITTED_MHZ = (780, 1380, 1830)
"""Clocks that the fit sees; the others are predicted."""
PRIOR = {
    "base_w": (90.0, 0.2),  # of 122 W idle with a context, 72 W bare (nvidia-smi)
    "tensor_w": (686.0, 0.5),  # the A100's by the power limit
    "stream_w": (304.0, 0.5),  # same
    "dram_j_per_byte": (5.03e-11, 0.3),  # the A100's
    "knee_mhz": (1077.0, 0.1),  # of power against clock on another H100
    "voltage_ratio": (1.41, 0.1),  # of three further sets on A100s
}
"""What is known of the H100 beforehand: value and relative standard deviation."""
POWER = tuple(PRIOR)
NOISE = 0.03
"""Relative standard deviation of a measured power."""
HOST_S = (0.0, 0.005)
"""Range of the time that the server's scheduler adds to an iteration."""
MOST_REQUESTS = 400


@dataclass(frozen=True)
class Served:
    """One measurement: a group of GPUs at a clock under a request rate."""

    clock_mhz: int
    requests_per_s: float
    input_tokens: int
    output_tokens: int
    power_w: float
    """Of the group."""


def read_served(path: Path) -> list[Served]:
    """Rows of a campaign.

    Raises:
        UserError: there is no such file.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; allowed: a data folder with profiles/{path.name}")
    with path.open(encoding="utf-8") as stream:
        return [
            Served(
                int(r["sm_clock_mhz"]),
                float(r["requests_per_s"]),
                int(r["input_len"]),
                int(r["output_len"]),
                float(r["group_power_w"]),
            )
            for r in csv.DictReader(stream)
        ]


def mean_power_w(plant: Plant, load: Served) -> float:
    """Mean power of a server that runs prefill and decode by turns, W.

    Prefills take their share of the time one by one; decode has what is left. The mean batch b solves Little's law,
    ``b = rate * output_tokens * step(b) / share``; the server is empty for ``exp(-b)`` of decode's share.
    """
    clock, prompt, answer = load.clock_mhz, load.input_tokens, load.output_tokens
    prefill = plant.prefill(1, prompt, prompt * (prompt + 1) / 2, clock)
    share = max(0.02, 1.0 - load.requests_per_s * prefill.duration_s)
    batch = 1.0
    while True:
        low, part = int(max(1.0, batch)), max(1.0, batch) % 1.0
        below, above = (plant.decode(n, int(n * (prompt + answer / 2)), clock) for n in (low, low + 1))
        step_s = below.duration_s + part * (above.duration_s - below.duration_s)
        found = min(MOST_REQUESTS, load.requests_per_s * answer * step_s / share)
        if abs(found - batch) < 1e-4 * batch:
            break
        batch = 0.5 * (batch + found)
    power = below.power_w + part * (above.power_w - below.power_w)
    empty = share * math.exp(-batch)
    return (
        load.requests_per_s * prefill.duration_s * prefill.power_w
        + (share - empty) * power
        + empty * plant.idle_power_w(clock)
    )


def errors(gpu: GpuSpec, model: ModelSpec, engine: EngineSpec, rows: Sequence[Served]) -> NDArray[np.float64]:
    """Relative error of each row."""
    plant = Plant(gpu, model, engine)
    return np.array([mean_power_w(plant, row) / row.power_w - 1.0 for row in rows])


def fit_served(gpu: GpuSpec, model: ModelSpec, rows: Sequence[Served], idle_w: float) -> tuple[GpuSpec, EngineSpec]:
    """The power law on the rows at `FITTED_MHZ`.

    Args:
        gpu: its kernels.
        model: what was served.
        rows: the campaign.
        idle_w: power of a GPU with a context loaded and nothing running, at its highest clock.

    Returns:
        The GPU, and the engine of the campaign's server.
    """
    seen = [row for row in rows if row.clock_mhz in FITTED_MHZ]
    start, spread = np.array(list(PRIOR.values())).T

    def spec(x: NDArray[np.float64]) -> tuple[GpuSpec, EngineSpec]:
        values = dict(zip(POWER, (start * x[:-1]).tolist(), strict=True))
        return gpu.but(**values, idle_w=max(0.0, idle_w - values["base_w"])), EngineSpec(host_decode_s=float(x[-1]))

    def residuals(x: NDArray[np.float64]) -> NDArray[np.float64]:
        candidate, engine = spec(x)
        prior = (x[:-1] - 1.0) / spread
        return np.concatenate([errors(candidate, model, engine, seen) / NOISE, prior])

    found = least_squares(
        residuals,
        [1.0] * len(POWER) + [0.001],
        bounds=([*[0.4] * (len(POWER) - 1), 0.75, HOST_S[0]], [*[2.5] * (len(POWER) - 2), 1.7, 1.4, HOST_S[1]]),
        diff_step=[5e-3] * (len(POWER) + 1),
        x_scale=[*spread, 0.001],
    )
    return spec(found.x)
