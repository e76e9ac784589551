"""EcoPred: interpretable latency prediction per clock (VoltanaLLM, arXiv 2509.04827).

    prefill latency = c_tokens * batched_tokens + c_0                               one line per clock
    decode latency  = c_batch * batch_size + c_kv * kv_tokens + c_0                 one plane per clock and batch bin

The bins carry the staircase that CUDA-graph padding and GEMM tiles cut into decode latency. Between profiled clocks
the coefficients are interpolated linearly, outside they are extrapolated from the two nearest. All coefficients but
the intercept are non-negative. `voltana.prediction.fit` learns them from a profile.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from voltana.errors import UserError
from voltana.files import write_whole
from voltana.state import Phase

FORMAT = "voltana-ecopred-1"

BIN_ENDS: tuple[int, ...] = (4, *range(8, 129, 8), *range(256, 2049, 128))
"""Last batch size of each decode bin: 1-4, 5-8, then 8 wide to 128, then 128 wide to 2048. The last bin is open."""


_BIN_OF = tuple(bisect_left(BIN_ENDS, size) for size in range(BIN_ENDS[-1] + 1))


def decode_bin(batch_size: int) -> int:
    """Index of the bin a decode batch falls in."""
    return _BIN_OF[batch_size] if batch_size < len(_BIN_OF) else len(BIN_ENDS) - 1


class Line(NamedTuple):
    """Prefill latency in seconds: `intercept_s + per_token_s * tokens`."""

    intercept_s: float
    per_token_s: float


class Plane(NamedTuple):
    """Decode latency in seconds: `intercept_s + per_request_s * batch_size + per_token_s * kv_tokens`."""

    intercept_s: float
    per_request_s: float
    per_token_s: float


class LevelTable(NamedTuple):
    """Coefficients of a predictor at a list of clocks, ready to be looked up by batch size."""

    by_bin: tuple[tuple[tuple[float, float, float], ...], ...]
    """Per decode bin, per clock: seconds, seconds per request, seconds per token."""

    def at(self, batch_size: int) -> tuple[tuple[float, float, float], ...]:
        """The coefficients of each clock for a batch size."""
        return self.by_bin[decode_bin(batch_size)]


class EcoPred:
    """A fitted predictor.

    Args:
        clocks_mhz: profiled clocks, ascending, at least two.
        prefill: a line per clock.
        decode: per clock a plane per bin of `BIN_ENDS`.
        about: where it came from and its held-out error; informative only.
    """

    def __init__(
        self,
        clocks_mhz: Sequence[int],
        prefill: Sequence[Line],
        decode: Sequence[Sequence[Plane]],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.clocks_mhz = tuple(clocks_mhz)
        self.about = dict(about or {})
        self._lines = dict(zip(self.clocks_mhz, prefill, strict=True))
        self._planes = {clock: tuple(bins) for clock, bins in zip(self.clocks_mhz, decode, strict=True)}

    def prefill_line(self, clock_mhz: int) -> Line:
        """The prefill line at any clock, remembered once interpolated."""
        if clock_mhz not in self._lines:
            low, high, share = self._between(clock_mhz)
            self._lines[clock_mhz] = Line(*_blend(self._lines[low], self._lines[high], share))
        return self._lines[clock_mhz]

    def decode_planes(self, clock_mhz: int) -> tuple[Plane, ...]:
        """The decode planes of all bins at any clock, remembered once interpolated."""
        if clock_mhz not in self._planes:
            low, high, share = self._between(clock_mhz)
            pairs = zip(self._planes[low], self._planes[high], strict=True)
            self._planes[clock_mhz] = tuple(Plane(*_blend(a, b, share)) for a, b in pairs)
        return self._planes[clock_mhz]

    def prefill_s(self, tokens: float, clock_mhz: int) -> float:
        """Predicted latency of a prefill batch of `tokens` prompt tokens, in seconds."""
        intercept, per_token = self.prefill_line(clock_mhz)
        return max(0.0, intercept + per_token * tokens)

    def decode_s(self, batch_size: int, kv_tokens: float, clock_mhz: int) -> float:
        """Predicted latency of one decode iteration over `kv_tokens` cached tokens, in seconds."""
        intercept, per_request, per_token = self.decode_planes(clock_mhz)[decode_bin(batch_size)]
        return max(0.0, intercept + per_request * batch_size + per_token * kv_tokens)

    def levels(self, phase: Phase, clocks_mhz: Sequence[int]) -> LevelTable:
        """The coefficients of several clocks, for those who ask for the same ones again and again."""
        if phase == "prefill":
            lines = [self.prefill_line(clock) for clock in clocks_mhz]
            return LevelTable((tuple((a, 0.0, b) for a, b in lines),) * len(BIN_ENDS))
        by_clock = [self.decode_planes(clock) for clock in clocks_mhz]
        return LevelTable(tuple(zip(*by_clock, strict=True)))

    def _between(self, clock_mhz: int) -> tuple[int, int, float]:
        """The two profiled clocks to blend for a clock, and the share of the higher (outside 0..1: extrapolated)."""
        index = min(max(bisect_right(self.clocks_mhz, clock_mhz), 1), len(self.clocks_mhz) - 1)
        low, high = self.clocks_mhz[index - 1], self.clocks_mhz[index]
        return low, high, (clock_mhz - low) / (high - low)

    def as_json(self) -> str:
        """The predictor as JSON that a person can read: latencies in milliseconds."""
        document = {
            "format": FORMAT,
            "about": self.about,
            "decode_bin_ends": list(BIN_ENDS),
            "clocks": [
                {
                    "clock_mhz": clock,
                    "prefill_ms": [1e3 * c for c in self._lines[clock]],
                    "decode_ms": [[1e3 * c for c in plane] for plane in self._planes[clock]],
                }
                for clock in self.clocks_mhz
            ],
        }
        return json.dumps(document, indent=1) + "\n"

    def save(self, path: Path) -> None:
        """Write `as_json`.

        Raises:
            UserError: it cannot be written.
        """
        write_whole(path, self.as_json())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a predictor written by `save`.

        Raises:
            UserError: the file is missing or is not such a file.
        """
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT or tuple(document["decode_bin_ends"]) != BIN_ENDS:
                raise UserError(f"{path}: found format {document['format']!r}, allowed: {FORMAT!r} with its bins")
            rows = document["clocks"]
            clocks = [row["clock_mhz"] for row in rows]
            lines = [Line(*_seconds(row["prefill_ms"])) for row in rows]
            planes = [[Plane(*_seconds(plane)) for plane in row["decode_ms"]] for row in rows]
            _check_shape(clocks, planes)
            return cls(clocks, lines, planes, document["about"])
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); allowed: a file from voltana-fit") from error
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(f"{path}: not a predictor written by voltana-fit ({error})") from error


def _seconds(milliseconds: Iterable[float]) -> list[float]:
    seconds = [c / 1e3 for c in milliseconds]
    if not all(map(math.isfinite, seconds)):
        raise ValueError(f"coefficients {milliseconds} are not all finite")
    return seconds


def _check_shape(clocks: Sequence[object], planes: Sequence[Sequence[Plane]]) -> None:
    numbers = [clock for clock in clocks if isinstance(clock, int)]
    if len(numbers) < max(2, len(clocks)) or numbers != sorted(set(numbers)):
        raise ValueError(f"clocks {clocks} are not two or more whole numbers, ascending")
    if any(len(bins) != len(BIN_ENDS) for bins in planes):
        raise ValueError(f"found {[len(bins) for bins in planes]} decode planes, allowed: {len(BIN_ENDS)} per clock")


def _blend(low: Sequence[float], high: Sequence[float], share: float) -> tuple[float, ...]:
    return tuple(a + (b - a) * share for a, b in zip(low, high, strict=True))
