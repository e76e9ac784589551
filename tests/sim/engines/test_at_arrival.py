"""A router that chooses decode when a request arrives sees what it sent there, wherever that is on its way."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from voltana.record import RecordWriter, RunRecord
from voltana.section import parse
from voltana.sim.run.build import RunBuilder
from voltana.sim.run.config import SimConfig
from voltana.sim.run.simulate import engine
from voltana.sim.serving.recorder import Recorder
from voltana.state import InstanceLoad, RequestInfo

LOADED = ("policy=static_max", "front_end=none", "rps=40", "requests=120", "cluster.prefill_instances=1")
ONE_TOKEN_ENDS = ("trace=fixed", "trace.output_tokens=3", "trace.geometric=output")


class Alternating:
    """Takes turns and keeps what it was shown."""

    def __init__(self, *, at_arrival: bool) -> None:
        self.at_arrival = at_arrival
        self.shown: list[tuple[RequestInfo, list[InstanceLoad]]] = []

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        self.shown.append((request, list(candidates)))
        return request.request_id % len(candidates)


@pytest.fixture(name="routed", params=["reference", "fast"])
def _routed(
    request: pytest.FixtureRequest, values: Callable[..., dict[str, Any]], tmp_path: Path
) -> Callable[..., RunRecord]:
    """A small run with a router of the test's own to decode."""

    def go(router: Alternating, *overrides: str) -> RunRecord:
        composed = values(*LOADED, *overrides)
        builder = RunBuilder(parse(SimConfig, composed))
        spec = replace(builder.cluster(), decode_router=router)
        with RecordWriter(tmp_path, composed) as writer:
            recorder = Recorder(writer, builder.slo, {})
            cluster = engine(request.param)(spec, builder.requests(), recorder, writer.instance)
            cluster.run()
            recorder.close(cluster.now_s, cluster.meters, 1.0, False)
        return RunRecord(tmp_path)

    return go


@pytest.mark.slow
@pytest.mark.parametrize("trace", [(), ONE_TOKEN_ENDS])
def test_it_counts_all_it_sent_that_has_not_ended(routed: Callable[..., RunRecord], trace: tuple[str, ...]) -> None:
    router = Alternating(at_arrival=True)
    requests = routed(router, *trace).requests()
    assert [info.request_id for info, _ in router.shown] == list(requests.request_id.sort_values())
    for info, candidates in router.shown:
        there = requests[(requests.request_id < info.request_id) & (requests.finish_s > info.arrival_s)]
        sent = [int((there.request_id % 2 == index).sum()) for index in range(2)]
        assert [load.requests for load in candidates] == sent
    assert (requests.first_token_s.max() - requests.arrival_s.iloc[-1]) > 0
    assert (requests.output_tokens == 1).any() == bool(trace)


def test_others_are_asked_when_prefill_is_done(routed: Callable[..., RunRecord]) -> None:
    router = Alternating(at_arrival=False)
    requests = routed(router).requests()
    prefill_end_s, finish_s = (requests.set_index("request_id")[name] for name in ("prefill_end_s", "finish_s"))
    order = [info.request_id for info, _ in router.shown]
    assert prefill_end_s[order].is_monotonic_increasing
    for place, (info, candidates) in enumerate(router.shown):
        there = finish_s[order[:place]] > prefill_end_s[info.request_id]
        assert sum(load.requests for load in candidates) == there.sum()
