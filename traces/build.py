"""From a checked configuration to the requests of a run."""

from __future__ import annotations

from collections.abc import Iterator

from traces.stream import Request, request_stream
from voltana.compose import instantiate
from voltana.config import RunConfig


def build_requests(config: RunConfig) -> Iterator[Request]:
    """The request stream: the same in every world for the same configuration.

    Raises:
        UserError: a bad value of `trace` or `arrival`, or a bad file.
    """
    return request_stream(
        instantiate(config.trace),
        instantiate(config.arrival),
        duration_s=config.duration_s,
        requests=config.requests,
        seed=config.seed,
    )
