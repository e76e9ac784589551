"""KV caches on their way from prefill to decode."""

from __future__ import annotations

from collections.abc import Generator

import simpy

from voltana.app.serving import Link


class Links:
    """One link per pair of instances, made when first used."""

    def __init__(self, env: simpy.Environment, spec: Link) -> None:
        self._env = env
        self._spec = spec
        self._streams: dict[tuple[int, int], simpy.Resource] = {}

    def send(self, source: int, target: int, size_bytes: float) -> Generator[simpy.Event, object, None]:
        """Move a cache; ends when it has arrived."""
        pair = (source, target)
        if pair not in self._streams:
            self._streams[pair] = simpy.Resource(self._env, self._spec.streams)
        with self._streams[pair].request() as turn:
            yield turn
            yield self._env.timeout(self._spec.duration_s(size_bytes))
