"""Arrival processes: when the requests of a trace come.

A run starts at 0 s and the first request comes one gap later, so the expected number of arrivals in T seconds
is rate x T (Poisson, uniform). Rates are in requests per second over the whole cluster.
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from voltana.checks import positive, refused
from voltana.traces.stream import Block, Floats


class Poisson:
    """Poisson arrivals: independent exponential gaps of mean 1 / rate."""

    def __init__(self, *, rate: float) -> None:
        self.rate = positive("rps", rate)

    def schedule(self, blocks: Iterable[Block], rng: np.random.Generator) -> Iterator[Block]:
        """Set the arrival times (see `traces.ArrivalProcess`)."""
        return _renewal(blocks, lambda n: rng.standard_exponential(n) / self.rate)


class Gamma:
    """Gamma-distributed gaps: shape = burstiness, scale = 1 / (rate x burstiness), so the gap's mean is 1 / rate.

    The gap's coefficient of variation is 1 / sqrt(burstiness): 1 is Poisson, below 1 burstier, above 1 more regular.
    Same meaning as `--burstiness` of vLLM's `benchmarks/benchmark_serving.py`.
    """

    def __init__(self, *, rate: float, burstiness: float) -> None:
        self.rate = positive("rps", rate)
        self.burstiness = positive("arrival.burstiness", burstiness)

    def schedule(self, blocks: Iterable[Block], rng: np.random.Generator) -> Iterator[Block]:
        """Set the arrival times (see `traces.ArrivalProcess`)."""
        return _renewal(blocks, lambda n: rng.standard_gamma(self.burstiness, n) / (self.rate * self.burstiness))


class Uniform:
    """One request every 1 / rate seconds exactly."""

    def __init__(self, *, rate: float) -> None:
        self.rate = positive("rps", rate)

    def schedule(self, blocks: Iterable[Block], rng: np.random.Generator) -> Iterator[Block]:
        """Set the arrival times (see `traces.ArrivalProcess`)."""
        first = 1
        for block in blocks:
            n = len(block.input_tokens)
            yield block._replace(arrival_s=np.arange(first, first + n) / self.rate)
            first += n


class Timestamps:
    """The trace's own arrival times, `speedup` times faster."""

    reads_times = True

    def __init__(self, *, speedup: float = 1.0) -> None:
        self.speedup = positive("arrival.speedup", speedup)

    def schedule(self, blocks: Iterable[Block], rng: np.random.Generator) -> Iterator[Block]:
        """Set the arrival times (see `traces.ArrivalProcess`)."""
        for block in blocks:
            if block.arrival_s is None:
                raise refused(
                    "arrival=timestamps",
                    "a trace without arrival times",
                    "trace=file with an arrival column",
                )
            yield block._replace(arrival_s=block.arrival_s / self.speedup)


def _renewal(blocks: Iterable[Block], gaps: Callable[[int], Floats]) -> Iterator[Block]:
    """Add up independent gaps one by one, so that block borders do not change a single bit."""
    last_s = 0.0
    for block in blocks:
        arrival_s = np.cumsum(np.concatenate(([last_s], gaps(len(block.input_tokens)))))[1:]
        last_s = float(arrival_s[-1])
        yield block._replace(arrival_s=arrival_s)
