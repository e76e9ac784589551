"""Synthetic request lengths: log-normal, and constant or geometric for checks against queueing theory."""

import math
from collections.abc import Iterator
from typing import Literal

import numpy as np

from voltana.checks import integer, non_negative, optional_integer, positive, refused
from voltana.traces.stream import Block, Floats, Ints, within_context


class LogNormal:
    """Independent log-normal lengths: exp(mu + sigma N), rounded, clipped to [min, max].

    mu = ln(mean) - sigma^2 / 2, so that `mean` is the mean before clipping. Clipping lowers it a little.
    """

    def __init__(
        self,
        *,
        input_mean: float,
        input_sigma: float,
        input_min: int,
        input_max: int,
        output_mean: float,
        output_sigma: float,
        output_min: int,
        output_max: int,
        max_total_tokens: int | None = None,
    ) -> None:
        self._input = _LogNormal("trace.input", input_mean, input_sigma, input_min, input_max)
        self._output = _LogNormal("trace.output", output_mean, output_sigma, output_min, output_max)
        self.max_total_tokens = optional_integer("trace.max_total_tokens", max_total_tokens, least=2)

    def blocks(self, rng: np.random.Generator, size: int) -> Iterator[Block]:
        """Yield blocks without end (see `traces.LengthSource`)."""
        return within_context(self._draw(rng, size), self.max_total_tokens)

    def _draw(self, rng: np.random.Generator, size: int) -> Iterator[Block]:
        while True:
            normal = rng.standard_normal((size, 2))
            yield Block(self._input.tokens(normal[:, 0]), self._output.tokens(normal[:, 1]))


class _LogNormal:
    def __init__(self, key: str, mean: float, sigma: float, least: int, most: int) -> None:
        self.sigma = non_negative(f"{key}_sigma", sigma)
        self.mu = math.log(positive(f"{key}_mean", mean)) - self.sigma**2 / 2
        self.least = integer(f"{key}_min", least, least=1)
        self.most = integer(f"{key}_max", most, least=self.least)

    def tokens(self, normal: Floats) -> Ints:
        lengths = np.exp(np.minimum(self.mu + self.sigma * normal, math.log(self.most)))
        return np.clip(np.rint(lengths), self.least, self.most).astype(np.int64)


class Fixed:
    """Every request alike, or lengths that are geometric on 1, 2, ... (the discrete exponential) with the same mean."""

    def __init__(
        self, *, input_tokens: int, output_tokens: int, geometric: Literal["input", "output", "both"] | None = None
    ) -> None:
        if geometric not in (None, "input", "output", "both"):
            raise refused("trace.geometric", geometric, "null, input, output or both")
        self._inputs = (integer("trace.input_tokens", input_tokens, least=1), geometric in ("input", "both"))
        self._outputs = (integer("trace.output_tokens", output_tokens, least=1), geometric in ("output", "both"))

    def blocks(self, rng: np.random.Generator, size: int) -> Iterator[Block]:
        """Yield blocks without end (see `traces.LengthSource`)."""
        while True:
            uniform = rng.random((size, 2))
            yield Block(
                _constant_or_geometric(*self._inputs, uniform[:, 0]),
                _constant_or_geometric(*self._outputs, uniform[:, 1]),
            )


def _constant_or_geometric(mean: int, geometric: bool, uniform: Floats) -> Ints:
    """Invert P(length <= k) = 1 - (1 - 1/mean)^k."""
    if not geometric or mean == 1:
        return np.full(len(uniform), mean, dtype=np.int64)
    return np.ceil(np.log1p(-uniform) / math.log1p(-1 / mean)).clip(1).astype(np.int64)
