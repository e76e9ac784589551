"""Record power, energy and clocks of GPUs to a file that `--replay` and `control=replay` play back.

python -m voltana.live.clocks.record --out gpus.csv --duration-s 60
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from voltana.errors import UserError
from voltana.live.clocks import access
from voltana.live.clocks.client import ClockClient, ClockError
from voltana.live.clocks.trace import TraceWriter


def record(clocks: ClockClient, gpus: Sequence[int], path: Path, duration_s: float, interval_s: float = 0.1) -> int:
    """Read the GPUs every `interval_s` for `duration_s` and write the readings; returns the number of rows.

    An interval below 0.1 s shows no more power readings than the sensor publishes, but more of the energy counter.

    Raises:
        ClockError: the owner refused, or is gone; what was read so far is in the file.
    """
    rows = 0
    with TraceWriter(path, [clocks.gpus[gpu] for gpu in gpus]) as trace:
        next_s = start_s = time.monotonic()
        while next_s - start_s <= duration_s:
            time.sleep(max(0.0, next_s - time.monotonic()))
            for reading in clocks.read(gpus):
                trace.write(reading)
                rows += 1
            next_s = max(next_s + interval_s, time.monotonic())
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m voltana.live.clocks.record", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--socket", type=Path, default=access.standard_socket(), help="of the owner")
    parser.add_argument("--gpus", type=lambda text: [int(gpu) for gpu in text.split(",")], help="default: all it has")
    parser.add_argument("--interval-s", type=float, default=0.1)
    parser.add_argument("--duration-s", type=float, required=True)
    options = parser.parse_args(arguments)
    try:
        with ClockClient(options.socket, "recorder") as clocks:
            gpus = options.gpus or list(clocks.gpus)
            unknown = [gpu for gpu in gpus if gpu not in clocks.gpus]
            if unknown:
                raise UserError(f"--gpus: found {unknown[0]}; allowed: {', '.join(map(str, clocks.gpus))}")
            record(clocks, gpus, options.out, options.duration_s, options.interval_s)
    except (UserError, ClockError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
