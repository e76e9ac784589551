"""Arrival processes: when the requests of a trace come.

A run starts at 0 s and the first request comes one gap later, so the expected number of arrivals in T seconds
is rate x T (Poisson, uniform). Rates are in requests per second over the whole cluster.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

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


class Curve:
    """Poisson arrivals whose rate follows a curve, period after period.

    Gaps of mean 1 are set on the integral of the rate (the time-rescaling theorem for Poisson processes), so another
    curve of the same mean meets the same requests a little earlier or later.

    Args:
        rate: mean over a period.
        shape: the curve at even moments of a period, the first at its start, in any unit; linear in between and from
            the last to the first of the next period.
        period_s: a day, in the time of the run.
    """

    def __init__(self, *, rate: float, shape: Sequence[float], period_s: float) -> None:
        self.rate = positive("rps", rate)
        self.period_s = positive("arrival.period_s", period_s)
        if isinstance(shape, str) or not isinstance(shape, Sequence) or len(shape) < 2:
            raise refused("arrival.shape", shape, "a list of two numbers > 0 and more")
        points = np.array([positive("arrival.shape", point) for point in shape])
        self._each_s = self.period_s / len(points)
        self._rates = points * (self.rate / points.mean())
        self._slopes = (np.roll(self._rates, -1) - self._rates) / self._each_s
        parts = self._rates * self._each_s + self._slopes * self._each_s**2 / 2
        self._expected = np.concatenate(([0.0], np.cumsum(parts)))

    def schedule(self, blocks: Iterable[Block], rng: np.random.Generator) -> Iterator[Block]:
        """Set the arrival times (see `traces.ArrivalProcess`)."""
        last_s = 0.0
        for block in _renewal(blocks, rng.standard_exponential):
            assert block.arrival_s is not None
            arrival_s = np.maximum.accumulate(np.concatenate(([last_s], self._when(block.arrival_s))))[1:]
            last_s = float(arrival_s[-1])
            yield block._replace(arrival_s=arrival_s)

    def _when(self, expected: Floats) -> Floats:
        """The times until which so many requests are expected."""
        whole, rest = np.divmod(expected, self._expected[-1])
        part = np.searchsorted(self._expected[1:-1], rest, side="right")
        beyond, rate = rest - self._expected[part], self._rates[part]
        into_s = 2 * beyond / (rate + np.sqrt(np.maximum(rate**2 + 2 * self._slopes[part] * beyond, 0.0)))
        return np.asarray(whole * self.period_s + part * self._each_s + into_s)


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
