"""A recording of power, energy and clocks: one CSV file, written by `TraceWriter`, read by `read_trace`.

    # gpu {"gpu": 0, "uuid": "GPU-...", "name": "NVIDIA A100-SXM4-80GB", "clocks_mhz": [210, ...], ...}
    time_s,gpu,power_w,energy_j,clock_mhz
    0.000,0,83.1,1204.552,1410

One comment line per GPU with what does not change about it (`GpuInfo`), a header, then a row per reading. Times are
seconds since the first row and never fall; an empty cell is a meter that could not be read.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self, TextIO

import msgspec

from voltana.errors import UserError
from voltana.live.clocks.device import GpuInfo, Reading

COLUMNS = ("time_s", "gpu", "power_w", "energy_j", "clock_mhz")
GPU_LINE = "# gpu "


class TraceWriter:
    """Writes a recording as it happens, so that an interrupted one can be read too. Use it in a `with` statement.

    Args:
        path: the file; its folder exists.
        gpus: the GPUs that will be recorded.
    """

    def __init__(self, path: Path, gpus: Sequence[GpuInfo]) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8", newline="")
        for info in gpus:
            self._file.write(GPU_LINE + msgspec.json.encode(info).decode() + "\n")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(COLUMNS)
        self._start_s: float | None = None

    def write(self, reading: Reading) -> None:
        """Add a row."""
        self._start_s = reading.time_s if self._start_s is None else self._start_s
        meters = (reading.power_w, reading.energy_j, reading.clock_mhz)
        cells = ("" if meter is None else f"{meter:.12g}" for meter in meters)
        self._rows.writerow((f"{reading.time_s - self._start_s:.6f}", reading.gpu, *cells))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_trace(path: Path) -> dict[int, tuple[GpuInfo, list[Reading]]]:
    """Every GPU of a recording with its readings in order, times since the first row.

    Raises:
        UserError: no such file, or a line that does not fit; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); allowed: a recording of GPU power") from error
    gpus = {info.gpu: info for info in _gpu_lines(path, lines)}
    if not gpus:
        raise UserError(f"{path}:1: found no line '{GPU_LINE}{{...}}'; allowed: a recording of GPU power")
    readings: dict[int, list[Reading]] = {gpu: [] for gpu in gpus}
    last_s = 0.0
    for place, reading in _rows(path, lines):
        if reading.gpu not in gpus:
            raise UserError(f"{place}: found gpu {reading.gpu}; allowed: {', '.join(map(str, gpus))}")
        if not last_s <= reading.time_s < math.inf:
            raise UserError(
                f"{place}: found time_s {reading.time_s:g} after {last_s:g}; allowed: times that never fall"
            )
        last_s = reading.time_s
        readings[reading.gpu].append(reading)
    silent = [gpu for gpu, rows in readings.items() if not rows]
    if silent:
        raise UserError(f"{path}: found no row of gpu {silent[0]}; allowed: at least one row per GPU")
    return {gpu: (gpus[gpu], readings[gpu]) for gpu in gpus}


def _gpu_lines(path: Path, lines: Sequence[str]) -> Iterator[GpuInfo]:
    for number, line in enumerate(lines, 1):
        if line.startswith(GPU_LINE):
            try:
                yield msgspec.json.decode(line.removeprefix(GPU_LINE), type=GpuInfo)
            except msgspec.MsgspecError as error:
                raise UserError(f"{path}:{number}: bad description of a GPU ({error})") from error


def _rows(path: Path, lines: Sequence[str]) -> Iterator[tuple[str, Reading]]:
    header = False
    for number, line in enumerate(lines, 1):
        place, cells = f"{path}:{number}", line.split(",")
        if line.startswith("#") or not line.strip():
            continue
        if not header:
            if tuple(cells) != COLUMNS:
                raise UserError(f"{place}: found columns {line!r}; allowed: {','.join(COLUMNS)}")
            header = True
            continue
        try:
            time_s, gpu, power_w, energy_j, clock_mhz = cells
            clock = _meter(clock_mhz)
            meters = _meter(power_w), _meter(energy_j), None if clock is None else round(clock)
            yield place, Reading(int(gpu), float(time_s), *meters)
        except (ValueError, OverflowError) as error:
            raise UserError(f"{place}: found {line!r}; allowed: numbers for {','.join(COLUMNS)}") from error


def _meter(cell: str) -> float | None:
    if not cell:
        return None
    value = float(cell)
    if not 0.0 <= value < math.inf:
        raise ValueError(cell)
    return value
