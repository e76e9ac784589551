"""From a checked configuration to the requests of a run."""

from __future__ import annotations

from typing import Any

from voltana.app.compose import instantiate
from voltana.app.config import RunConfig
from voltana.record.summary import measured
from voltana.traces.stream import RequestStream, request_stream


def build_requests(config: RunConfig) -> RequestStream:
    """The request stream: the same in every world for the same configuration.

    Raises:
        UserError: a bad value of `trace` or `arrival`, or a bad file.
    """
    arrival = config.arrival
    process = arrival.get("name") or str(arrival.get("_target_")).rpartition(".")[2]
    return request_stream(
        instantiate(config.trace),
        instantiate(arrival),
        duration_s=config.duration_s,
        requests=config.requests,
        seed=config.seed,
        facts={"process": process, "requested_rps": arrival.get("rate")},
    )


def foreseen(config: RunConfig) -> tuple[dict[str, Any], float]:
    """What will arrive in a run, as `arrivals` of its summary tells it, and when the last request does, in seconds.

    Draws or reads all requests of the run.

    Raises:
        UserError: as `build_requests`, or something is wrong further on in the file, or nothing arrives.
    """
    requests = build_requests(config)
    count, last_s = 0, 0.0
    for request in requests:
        count, last_s = count + 1, request.arrival_s
    if not count or requests.first_s is None:
        raise requests.none_arrived()
    return {**requests.about(), **measured(count, requests.first_s, last_s)}, last_s
