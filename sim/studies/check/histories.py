"""What a policy is shown: histories of an instance and of a router, from runs whose policies answer at random.

So every state is one that the simulator leads to, and what follows on it follows from it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from voltana.record import RecordWriter
from voltana.section import parse
from voltana.sim.run.build import RunBuilder
from voltana.sim.run.config import SimConfig
from voltana.sim.run.simulate import engine
from voltana.sim.serving.recorder import Recorder
from voltana.state import Decision, InstanceLoad, LoadSnapshot, Phase, RequestInfo

IDLE_S = 1e-6
"""Idle time after which the recording controller is asked, to learn when idleness began."""
WORLDS: tuple[tuple[float, Mapping[str, Any]], ...] = (
    (0.2, {}),
    (1.0, {}),
    (3.0, {}),
    (1.0, {"kv_tokens": 6000, "reserve_tokens": 8}),
)
"""Factors on the request rate, with changes of `serving.decode`: light load, the given one, overload, a full cache."""


class Question(NamedTuple):
    """A request to route."""

    request: RequestInfo
    candidates: tuple[InstanceLoad, ...]


@dataclass
class World:
    """A configuration and what policies are shown in it, whichever they are.

    Snapshots hold everything, also what only some controllers ask for; those with an empty batch tell when idleness
    began, `IDLE_S` before.
    """

    values: Mapping[str, Any]
    snapshots: dict[Phase, list[LoadSnapshot]] = field(default_factory=lambda: {"prefill": [], "decode": []})
    questions: dict[Phase, list[Question]] = field(default_factory=lambda: {"prefill": [], "decode": []})


def record_worlds(values: Mapping[str, Any], requests: int) -> Iterator[World]:
    """Record what the policies of a configuration would be shown, in each of `WORLDS`.

    Args:
        values: the resolved configuration.
        requests: of each run.

    Raises:
        UserError, PolicyError: the configuration is wrong, or its policies cannot be built.
    """
    for number, (rate, limits) in enumerate(WORLDS):
        serving = values["serving"] | {"decode": values["serving"]["decode"] | limits}
        own = {"rps": values["rps"] * rate, "requests": requests, "duration_s": None, "engine": "reference"}
        yield _record({**values, **own, "serving": serving}, number)


def _record(values: Mapping[str, Any], seed: int) -> World:
    config = parse(SimConfig, values)
    builder, world, random = RunBuilder(config), World(values), Random(seed)
    spec = builder.cluster()

    def controllers(phase: Phase, count: int) -> list[_AnyClock]:
        clocks_mhz = builder.plants.of(phase).gpu.clocks()
        lists: Iterator[list[LoadSnapshot]] = iter([world.snapshots[phase]])  # of the first instance alone
        return [_AnyClock(clocks_mhz, random, next(lists, None)) for _ in range(count)]

    spec = replace(
        spec,
        prefill_controllers=controllers("prefill", len(spec.prefill_controllers)),
        decode_controllers=controllers("decode", len(spec.decode_controllers)),
        prefill_router=_Anywhere(random, world.questions["prefill"]),
        decode_router=_Anywhere(random, world.questions["decode"]),
    )
    with tempfile.TemporaryDirectory() as folder, RecordWriter(Path(folder), {}) as writer:
        recorder = Recorder(writer, builder.slo, {})
        engine(config.engine)(spec, builder.requests(), recorder, writer.instance).run()
    return world


class _AnyClock:
    """Answers with any clock, now and then, and keeps what it is shown."""

    reads_power = True
    reads_requests = True

    def __init__(self, clocks_mhz: Sequence[int], random: Random, seen: list[LoadSnapshot] | None) -> None:
        self._clocks_mhz = clocks_mhz
        self._random = random
        self._seen = seen
        self._last = Decision(clocks_mhz[-1], IDLE_S)

    def decide(self, load: LoadSnapshot) -> Decision:
        """Keep the clock nine times in ten."""
        if self._seen is not None:
            self._seen.append(load)
        if self._random.random() < 0.1:
            self._last = Decision(self._random.choice(self._clocks_mhz), IDLE_S)
        return self._last


class _Anywhere:
    """Routes anywhere and keeps what it is shown."""

    def __init__(self, random: Random, seen: list[Question]) -> None:
        self._random = random
        self._seen = seen

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        """Draw one."""
        self._seen.append(Question(request, tuple(candidates)))
        return self._random.randrange(len(candidates))


def drawn_questions(clocks_mhz: Sequence[int], count: int, seed: int) -> list[Question]:
    """Requests with one to eight candidates of any load, as after instances have come and gone."""
    random = Random(seed)

    def candidate() -> InstanceLoad:
        requests = int(math.expm1(random.uniform(0, 7)))
        return InstanceLoad(random.choice(clocks_mhz), requests, requests * random.randint(20, 3000))

    return [
        Question(
            RequestInfo(number, number / 100, random.randint(1, 4000)),
            tuple(candidate() for _ in range(random.randint(1, 8))),
        )
        for number in range(count)
    ]
