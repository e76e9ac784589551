"""The requests of a run record, again."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from voltana.checks import refused
from voltana.errors import UserError
from voltana.record import REQUESTS, RunRecord
from voltana.traces.stream import Block


class RecordTrace:
    """The lengths, in tokens, and arrival times, in seconds since the start, of all requests of a run record.

    Requests that failed are among them, with the answer that was wanted.

    Args:
        path: `requests.parquet` of a finished record.

    Raises:
        UserError: it is none, or holds no request.
    """

    ends = True

    def __init__(self, *, path: str | None) -> None:
        if not isinstance(path, str) or Path(path).name != REQUESTS:
            raise refused("trace.path", path, f"{REQUESTS} of a run record")
        try:
            rows = RunRecord(Path(path).parent).requests()
        except UserError as error:
            raise UserError(f"trace.path: {error}") from error
        if not len(rows):
            raise UserError(f"{path}: found no requests, allowed: at least one")
        self._input_tokens = rows["input_tokens"].to_numpy(np.int64)
        self._output_tokens = rows["output_tokens"].to_numpy(np.int64)
        self._arrival_s = rows["arrival_s"].to_numpy(np.float64)

    def blocks(self, rng: np.random.Generator, size: int) -> Iterator[Block]:
        """Yield the requests without their times (see `traces.LengthSource`)."""
        for block in self.timed_blocks(rng, size):
            yield block._replace(arrival_s=None)

    def timed_blocks(self, rng: np.random.Generator, size: int) -> Iterator[Block]:
        """Yield the requests with their times (see `traces.LengthSource`)."""
        for first in range(0, len(self._arrival_s), size):
            some = slice(first, first + size)
            yield Block(self._input_tokens[some], self._output_tokens[some], self._arrival_s[some])
