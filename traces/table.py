"""Request lengths drawn from a small table that was fitted to public measurements (see `voltana.traces.fit`).

A table holds two quantile tables, one for inputs and one for outputs, and a copula: the histogram of both
lengths' quantile levels on a grid. A draw picks a grid cell, a point in it, and reads both lengths off the
quantile tables. Both marginals and their dependence are those of the data; no measured row is in the table.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from voltana.checks import optional_integer, positive, refused
from voltana.traces.stream import Block, Floats, Ints, within_context


@dataclass(frozen=True, slots=True)
class LengthTable:
    """A joint distribution of input and output lengths."""

    input_quantiles: Floats
    """Lengths at evenly spaced levels from 0 to 1."""
    output_quantiles: Floats
    copula: Floats
    """Probability of each cell before the context filter; rows are input levels, columns output levels."""
    copula_levels: Floats
    """Borders of the cells, from 0 to 1, the same for rows and columns."""
    max_total_tokens: int | None
    """Context filter of the data: no draw has more input and output tokens together."""

    @staticmethod
    def from_json(document: dict[str, Any]) -> "LengthTable":
        """Read the parsed JSON that `voltana.traces.fit` writes."""
        return LengthTable(
            input_quantiles=np.array(document["input_quantiles"], dtype=float),
            output_quantiles=np.array(document["output_quantiles"], dtype=float),
            copula=np.array(document["copula"], dtype=float),
            copula_levels=np.array(document["copula_levels"], dtype=float),
            max_total_tokens=document["max_total_tokens"],
        )

    def at(self, row: Ints, column: Ints, x: Floats, y: Floats) -> tuple[Ints, Ints]:
        """Look up both lengths at the point (x, y), each in [0, 1), of a copula cell."""
        return (
            _quantile(self.copula_levels, row, x, self.input_quantiles),
            _quantile(self.copula_levels, column, y, self.output_quantiles),
        )

    def draw(self, rng: np.random.Generator, size: int) -> Iterator[Block]:
        """Yield blocks without end; draws outside the context filter are drawn again."""
        return within_context(self._unfiltered(rng, size), self.max_total_tokens)

    def _unfiltered(self, rng: np.random.Generator, size: int) -> Iterator[Block]:
        cumulative = np.cumsum(self.copula)
        cumulative /= cumulative[-1]
        while True:
            which, x, y = rng.random((size, 3)).T
            row, column = np.divmod(np.searchsorted(cumulative, which, side="right"), len(self.copula))
            yield Block(*self.at(row, column, x, y))


def _quantile(levels: Floats, cell: Ints, within: Floats, quantiles: Floats) -> Ints:
    level = levels[cell] + within * np.diff(levels)[cell]
    tokens = np.interp(level * (len(quantiles) - 1), np.arange(len(quantiles)), quantiles)
    return _round(tokens)


def _round(tokens: NDArray[np.floating]) -> Ints:
    rounded: Ints = np.floor(tokens + 0.5).astype(np.int64)
    return rounded


class TableLengths:
    """Lengths from the table `traces/data/<table>.json`.

    `scale` multiplies lengths after the table's own context filter (the ratio of the model's tokenizer to the one the
    data was counted with), `input_scale` and `output_scale` each its own side besides (another sample of the same
    collection), and `max_total_tokens` then filters what results.
    """

    def __init__(
        self,
        *,
        table: str,
        scale: float = 1.0,
        input_scale: float = 1.0,
        output_scale: float = 1.0,
        max_total_tokens: int | None = None,
    ) -> None:
        self.table = LengthTable.from_json(read_document(table))
        self.input_scale = positive("trace.scale", scale) * positive("trace.input_scale", input_scale)
        self.output_scale = scale * positive("trace.output_scale", output_scale)
        self.max_total_tokens = optional_integer("trace.max_total_tokens", max_total_tokens, least=2)

    def blocks(self, rng: np.random.Generator, size: int) -> Iterator[Block]:
        """Yield blocks without end (see `traces.LengthSource`)."""
        scaled = (
            Block(_scaled(block.input_tokens, self.input_scale), _scaled(block.output_tokens, self.output_scale))
            for block in self.table.draw(rng, size)
        )
        return within_context(scaled, self.max_total_tokens)


def _scaled(tokens: Ints, scale: float) -> Ints:
    return np.maximum(1, _round(tokens * scale))


def read_document(table: str) -> dict[str, Any]:
    """Read a shipped table with its provenance and the facts of its data."""
    folder = files("voltana.traces") / "data"
    known = sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))
    if table not in known:
        raise refused("trace.table", table, ", ".join(known))
    document: dict[str, Any] = json.loads((folder / f"{table}.json").read_text(encoding="utf-8"))
    return document
