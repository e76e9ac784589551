"""KV caches on their way from prefill to decode."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import simpy


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """The path between a prefill and a decode instance."""

    latency_s: float
    bytes_per_s: float
    """Of the path as a whole; its streams share it equally."""
    streams: int
    """Transfers at a time; others wait their turn."""

    def duration_s(self, size_bytes: float) -> float:
        """Time of one transfer once it has a stream."""
        return self.latency_s + size_bytes * self.streams / self.bytes_per_s


class Links:
    """One link per pair of instances, made when first used."""

    def __init__(self, env: simpy.Environment, spec: LinkSpec) -> None:
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
