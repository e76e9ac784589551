"""A small synthetic plant: latency is affine in load with a staircase over decode bins, and linear in the clock."""

from collections.abc import Callable

import pytest

from voltana.prediction.ecopred import EcoPred, decode_bin
from voltana.prediction.fit import fit_ecopred
from voltana.prediction.profile import Sample
from voltana.state import Phase, Slo

CLOCKS = tuple(range(210, 1411, 15))
PROFILED = (1005, 1200, 1410)
BATCHES = (1, 2, 4, 5, 8, 40, 128, 129, 256)

Latency = Callable[[Phase, int, int, int], float]


@pytest.fixture(scope="session")
def clocks() -> tuple[int, ...]:
    return CLOCKS


@pytest.fixture(scope="session")
def slo() -> Slo:
    return Slo(ttft_s=0.6, itl_s=0.06)


@pytest.fixture(scope="session")
def latency() -> Latency:
    """True latency in seconds of (phase, clock, batch size, tokens)."""

    def affine(phase: Phase, clock_mhz: int, batch_size: int, tokens: int) -> float:
        slowness = 2 - clock_mhz / 1410
        if phase == "prefill":
            return slowness * (8e-3 + 30e-6 * tokens)
        return slowness * (10e-3 + 0.3e-3 * decode_bin(batch_size) + 40e-6 * batch_size + 50e-9 * tokens)

    return affine


@pytest.fixture(scope="session")
def profile(latency: Latency) -> list[Sample]:
    """Noise-free measurements of the plant; bins without a batch of `BATCHES` are missing."""
    loads: list[tuple[Phase, int, int]] = [("prefill", 4, tokens) for tokens in range(2000, 20001, 1500)]
    loads += [("decode", batch, batch * each) for batch in BATCHES for each in (70, 200, 500, 900, 1400)]
    return [
        Sample(*load[:1], clock, *load[1:], latency(load[0], clock, *load[1:]), None)
        for clock in PROFILED
        for load in loads
    ]


@pytest.fixture(scope="session")
def predictor(profile: list[Sample]) -> EcoPred:
    """Fitted to the profile."""
    return fit_ecopred(profile, {"gpu": "synthetic"}, seed=1)
