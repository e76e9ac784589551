"""KV caches on their way from prefill to decode."""

from __future__ import annotations

from collections.abc import Generator

import simpy


class Links:
    """One link per pair of instances, made when first used."""

    def __init__(self, env: simpy.Environment, streams: int) -> None:
        self._env = env
        self._places = streams
        self._streams: dict[tuple[int, int], simpy.Resource] = {}

    def send(self, source: int, target: int, duration_s: float) -> Generator[simpy.Event, object, None]:
        """Move a cache, which takes so long once it has a stream; ends when it has arrived."""
        pair = (source, target)
        if pair not in self._streams:
            self._streams[pair] = simpy.Resource(self._env, self._places)
        with self._streams[pair].request() as turn:
            yield turn
            yield self._env.timeout(duration_s)
