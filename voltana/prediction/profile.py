"""The profile table: measured latency and energy of iterations over clock and load, whatever they were measured on.

A CSV with the columns of `Sample`. Prefill rows give the prompts and prompt tokens of the batch, decode rows the batch
size and the KV tokens it holds. `energy_j` is empty where it could not be measured.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from voltana.errors import UserError
from voltana.files import write_whole
from voltana.state import Phase


class Sample(NamedTuple):
    """One measured iteration of an instance (all GPUs of its TP group together)."""

    phase: Phase
    clock_mhz: int
    batch_size: int
    tokens: int
    latency_s: float
    energy_j: float | None


def write_profile(path: Path, samples: Iterable[Sample]) -> None:
    """Write a profile table.

    Raises:
        UserError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Sample._fields)
    for sample in samples:
        energy = "" if sample.energy_j is None else f"{sample.energy_j:.9g}"
        writer.writerow((*sample[:4], f"{sample.latency_s:.9g}", energy))
    write_whole(path, text.getvalue())


def read_profile(path: Path) -> list[Sample]:
    """Read a profile table.

    Raises:
        UserError: the file is missing, or a line is malformed (named by file and line).
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            header = tuple(next(rows, ()))
            if header != Sample._fields:
                raise UserError(f"{path}:1: found columns {','.join(header)}, allowed: {','.join(Sample._fields)}")
            try:
                return [_sample(row, f"{path}:{rows.line_num}") for row in rows]
            except csv.Error as error:
                raise UserError(f"{path}:{rows.line_num}: {error}; allowed: {','.join(Sample._fields)}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); allowed: a profile table (CSV)") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: found bytes that are not text; allowed: a profile table (CSV)") from error


def _sample(row: list[str], where: str) -> Sample:
    try:
        phase, clock, batch, tokens, latency, energy = row
        sample = Sample(
            _phase(phase), int(clock), int(batch), int(tokens), float(latency), float(energy) if energy else None
        )
    except ValueError as error:
        raise UserError(f"{where}: found {','.join(row)!r}, allowed: {','.join(Sample._fields)} ({error})") from error
    numbers = [value for value in sample[1:] if value is not None]
    if not all(0 < value < math.inf for value in numbers):
        raise UserError(f"{where}: found {','.join(row)!r}, allowed: finite numbers > 0")
    return sample


def _phase(text: str) -> Phase:
    if text == "prefill" or text == "decode":
        return "prefill" if text == "prefill" else "decode"
    raise ValueError(f"phase {text!r} is not prefill or decode")
