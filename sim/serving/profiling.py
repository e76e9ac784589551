"""Profiling the plant: the same table that a profiling run on a live server gives, measurement noise included."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from voltana import checks
from voltana.app.config import DecodeProfile, PrefillProfile, ProfileConfig
from voltana.errors import UserError
from voltana.prediction.cache import Measured
from voltana.prediction.ecopred import BIN_ENDS
from voltana.prediction.profile import Sample
from voltana.sim import plant as plant_room
from voltana.sim.plant.plant import Plant, Step
from voltana.state import Phase


def profile_plant(plant: Plant, config: ProfileConfig) -> list[Sample]:
    """Measure iterations of the plant at every clock of the profile.

    Raises:
        UserError: a clock the GPU lacks, or a range that is empty.
    """
    rng = np.random.default_rng(config.seed)
    samples: list[Sample] = []
    for clock in checks.levels("profile.clocks_mhz", config.clocks_mhz, plant.gpu.clocks()):
        for prompts, tokens in _prefill_loads(config.prefill):
            pairs = tokens * (tokens / prompts + 1) / 2
            samples.append(_measure("prefill", clock, prompts, tokens, plant.prefill(prompts, tokens, pairs, clock)))
        for batch, kv_tokens in _decode_loads(config.decode, plant.kv_capacity_tokens, rng):
            samples.append(_measure("decode", clock, batch, kv_tokens, plant.decode(batch, kv_tokens, clock)))
    factors = np.exp(config.noise * rng.standard_normal((len(samples), 2)))
    return [_noisy(sample, *pair) for sample, pair in zip(samples, factors.tolist(), strict=True)]


def measured(plant: Plant, config: ProfileConfig) -> Measured:
    """What a predictor of a plant is fitted to, and the code it follows from."""
    return Measured(
        partial(profile_plant, plant, config), [*Path(plant_room.__file__).parent.glob("*.py"), Path(__file__)]
    )


def _prefill_loads(config: PrefillProfile) -> Iterator[tuple[int, int]]:
    """Prompts and prompt tokens of each batch, at even ratios over the range: most batches are short."""
    low, high = _range("profile.prefill.tokens", config.tokens)
    for tokens in np.geomspace(low, high, config.samples).round().astype(int).tolist():
        yield max(1, tokens // config.prompt_tokens), tokens


def _decode_loads(config: DecodeProfile, capacity: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Batch size and KV tokens of each iteration: every bin within `max_batch`, contexts drawn from the range."""
    low, high = _range("profile.decode.tokens_per_request", config.tokens_per_request)
    first = 1
    for last in BIN_ENDS:
        if first > config.max_batch or first * low > capacity:
            return
        for batch in np.linspace(first, min(last, config.max_batch), config.samples).round().astype(int).tolist():
            longest = min(high, capacity // batch)
            if longest >= low:
                yield batch, int(batch * rng.uniform(low, longest))
        first = last + 1


def _range(key: str, bounds: tuple[int, int]) -> tuple[int, int]:
    if bounds[0] > bounds[1]:
        raise UserError(f"{key}: found {list(bounds)}, allowed: a lower and an upper bound")
    return bounds


def _measure(phase: Phase, clock_mhz: int, batch: int, tokens: int, step: Step) -> Sample:
    return Sample(phase, clock_mhz, batch, tokens, step.duration_s, step.duration_s * step.power_w)


def _noisy(sample: Sample, time_factor: float, energy_factor: float) -> Sample:
    energy = None if sample.energy_j is None else sample.energy_j * energy_factor
    return sample._replace(latency_s=sample.latency_s * time_factor, energy_j=energy)
