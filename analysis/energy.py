"""Where the joules of a run went, instance by instance.

A row of `instances.parquet` tells energy, clock and batch, not what the energy was for. The constants of the GPU in the
record's own configuration tell the rest (`voltana.sim.plant.gpu` has the formula):

    floor            base_w over the whole time: leakage, memory refresh, board; no clock changes it
    static           the clock tree of a GPU with a context loaded, busy or not, at the knee's voltage
    above the knee   what the same work at the same clock draws more because the voltage is above that of the knee
    dynamic          the rest: tensor cores, memory pipes and memory traffic of the iterations

The third needs to know how much of an iteration's energy follows the voltage (memory traffic does not) and the clock
really in force under the power limit. Both are those of the plant at the row's batch, KV tokens and clock, at a few
hundred rows spread evenly over the energy of each instance. The sum of the four is the energy that was recorded. Of a
live run the energy is what was measured and the shares are the model's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from voltana.errors import UserError
from voltana.record import RunRecord
from voltana.record.gpus import gpu_of, side_of
from voltana.state import PHASES, Phase

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

    from voltana.sim.plant.plant import Plant, Step

    Numbers = NDArray[np.float64]

PARTS = ("floor", "static", "dynamic", "above the knee")
_SAMPLES = 120
"""Busy rows per instance at which the plant is asked."""


class Joules(NamedTuple):
    """Energy of an instance in J, in the order of `PARTS`."""

    phase: str
    parts: tuple[float, float, float, float]


class _Split(NamedTuple):
    """The draw of an iteration in W; of it `static` is the clock tree's, `above` what voltage above the knee adds."""

    power: float
    static: float
    above: float


class _Gpu:
    """A plant beside the same one whose voltage never leaves that of the knee."""

    def __init__(self, gpu: dict[str, Any], model: dict[str, Any], engine: dict[str, Any]) -> None:
        from voltana.sim.plant.build import plant_of

        flat = 1.0 / float(gpu["voltage_ratio"]) ** 2
        low = {name: float(gpu[name]) * flat for name in ("idle_w", "tensor_w", "stream_w")}
        self.plant = plant_of(gpu, model, engine)
        self._at_knee = plant_of({**gpu, **low, "voltage_ratio": 1.0}, model, engine)
        self.tp = self.plant.model.tp
        self.base_w = self.tp * self.plant.gpu.base_w
        self._known: dict[tuple[str, int, int, float], _Split] = {}

    def static_w(self, clock_mhz: float) -> float:
        """Clock tree at the knee's voltage, all GPUs of the instance."""
        return self._at_knee.idle_power_w(clock_mhz) - self.base_w

    def idle_above_w(self, clock_mhz: float) -> float:
        """What voltage above the knee adds to an idle GPU."""
        return self.plant.idle_power_w(clock_mhz) - self._at_knee.idle_power_w(clock_mhz)

    def busy(self, phase: str, batch: int, tokens: int, clock_mhz: float) -> _Split:
        """An iteration, at the clock that the power limit leaves it; its power is that within the limit."""
        key = phase, batch, tokens, clock_mhz
        if key not in self._known:
            clock = _iteration(self.plant, *key).clock_mhz
            free, knee = (
                _iteration(plant, phase, batch, tokens, clock, math.inf) for plant in (self.plant, self._at_knee)
            )
            self._known[key] = _Split(free.power_w, self.static_w(clock), free.power_w - knee.power_w)
        return self._known[key]


def _iteration(
    plant: Plant, phase: str, batch: int, tokens: int, clock_mhz: float, limit_w: float | None = None
) -> Step:
    if phase == "decode":
        return plant.decode(batch, tokens, clock_mhz, limit_w)
    prompt = max(tokens / batch, 1.0)
    return plant.prefill(batch, tokens, batch * prompt * (prompt + 1) / 2, clock_mhz, limit_w)


@lru_cache(maxsize=4)
def _gpu(sections: str) -> _Gpu:
    return _Gpu(*json.loads(sections))


def split(record: RunRecord, frame: pd.DataFrame | None = None) -> dict[str, Joules] | None:
    """The energy of every instance in four parts.

    Args:
        record: of the run.
        frame: its `instances()`, if they were read already.

    Returns:
        By instance, prefill first; None where the configuration does not tell the constants of the GPU, or nothing was
        metered.
    """
    rows = record.instances() if frame is None else frame
    end_s = record.summary.get("end_s")
    if rows.empty or not isinstance(end_s, int | float):
        return None
    try:
        gpus = {phase: _gpu(json.dumps(_sections(record.config, phase), sort_keys=True)) for phase in PHASES}
    except (UserError, KeyError, TypeError, ValueError):
        return None
    found: dict[str, Joules] = {}
    for name, own in rows.groupby("instance", sort=False):
        joules = _instance(gpus[own["phase"].iloc[0]], own, float(end_s))
        if joules is not None:
            found[str(name)] = joules
    return dict(sorted(found.items(), key=lambda each: (each[1].phase != "prefill", each[0]))) or None


def _sections(config: Mapping[str, Any], phase: Phase) -> list[Any]:
    """GPU, model and engine of a phase."""
    side = side_of(config, phase)
    model = dict(config["model"], **({"tp": side["tp"]} if side.get("tp") else {}))
    return [gpu_of(config, phase), model, side.get("engine") or config["serving"]["engine"]]


def _instance(gpu: _Gpu, rows: pd.DataFrame, end_s: float) -> Joules | None:
    import numpy as np

    phase = str(rows["phase"].iloc[0])
    time, power, clock, batch, tokens = (
        rows[name].to_numpy(float) for name in ("time_s", "power_w", "clock_mhz", "batch_size", "kv_tokens")
    )
    span = np.clip(np.diff(np.append(time, end_s)), 0.0, None)
    known = ~np.isnan(power) & ~np.isnan(clock) & (span > 0)
    if not known.any():
        return None
    span, power, clock, batch, tokens = (each[known] for each in (span, power, clock, batch, tokens))
    energy = power * span
    floor = np.minimum(energy, gpu.base_w * span)
    static, above = np.zeros_like(energy), np.zeros_like(energy)
    working = (batch > 0) & (tokens > 0)
    for each in np.unique(clock[~working]):
        at = ~working & (clock == each)
        static[at] = np.minimum(energy[at] - floor[at], gpu.static_w(each) * span[at])
        above[at] = np.minimum(energy[at] - floor[at] - static[at], gpu.idle_above_w(each) * span[at])
    parts = [floor.sum(), static.sum(), above.sum()]
    if working.any():
        busy = _busy_shares(gpu, phase, *(each[working] for each in (energy - floor, batch, tokens, clock)))
        rest = float((energy - floor)[working].sum())
        parts[1] += busy[0] * rest
        parts[2] += busy[1] * rest
    below, tree, above_knee = (max(0.0, float(part)) for part in parts)
    return Joules(phase, (below, tree, max(0.0, float(energy.sum()) - below - tree - above_knee), above_knee))


def _busy_shares(
    gpu: _Gpu, phase: str, energy: Numbers, batch: Numbers, tokens: Numbers, clock: Numbers
) -> tuple[float, float]:
    """Shares of the energy above the floor that are static and above the knee, from rows spread over that energy."""
    import numpy as np

    reached = np.cumsum(energy)
    if reached[-1] <= 0:
        return 0.0, 0.0
    count = min(_SAMPLES, len(energy))
    chosen = np.searchsorted(reached, (np.arange(count) + 0.5) / count * reached[-1])
    shares = []
    for row in np.minimum(chosen, len(energy) - 1):
        told = gpu.busy(phase, int(batch[row]), max(int(tokens[row]), 1), float(clock[row]))
        rest = told.power - gpu.base_w
        shares.append((told.static / rest, told.above / rest))
    static, above = np.mean(shares, axis=0)
    return float(static), float(above)
