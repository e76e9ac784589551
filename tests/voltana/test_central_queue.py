"""Requests in the queue before prefill are sent once each, whatever the scheduler answers; what is wrong is refused."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.dispatch import CentralQueue, Standing
from voltana.errors import PolicyError
from voltana.policies.asked import AskedScheduler, Who
from voltana.state import InstanceLoad, PrefillPlan, RequestInfo

WHO = Who("mine", "prefill_router", "my.Queue")
IDLE, BUSY = InstanceLoad(1410, 0, 0), InstanceLoad(1410, 2, 300)
WAITING = tuple(RequestInfo(number, 1.0, 100) for number in range(3))


class Answering:
    """Gives one answer after another and keeps what it was shown."""

    def __init__(self, answer: Callable[[Sequence[RequestInfo]], Any]) -> None:
        self._answer = answer
        self.shown: list[tuple[float, Sequence[RequestInfo], Sequence[InstanceLoad]]] = []

    def schedule(self, time_s: float, waiting: Sequence[RequestInfo], instances: Sequence[InstanceLoad]) -> Any:
        self.shown.append((time_s, waiting, instances))
        return self._answer(waiting)


def asked(answer: Any) -> AskedScheduler:
    return AskedScheduler(WHO, Answering(lambda _: answer))


class World:
    """A queue before instances whose telemetry tells what it is given when it is told to."""

    def __init__(self, scheduler: Any, instances: int) -> None:
        self.told = [Standing(1410, 0, 0, 0, 0)] * instances
        self.given: list[tuple[int, int]] = []
        self.wishes: list[float] = []
        self.queue = CentralQueue(
            scheduler, [partial(self.told.__getitem__, each) for each in range(instances)], self.wishes.append
        )

    def put(self, number: int, now_s: float, tokens: int = 100) -> None:
        self.queue.put(
            RequestInfo(number, now_s, tokens), lambda instance: self.given.append((number, instance)), now_s
        )


@pytest.mark.slow
@given(st.data(), st.integers(1, 4), st.integers(1, 30))
def test_every_request_is_sent_once_in_the_order_of_the_plan(data: st.DataObject, instances: int, count: int) -> None:
    planned: list[tuple[int, int]] = []

    def plan(waiting: Sequence[RequestInfo]) -> PrefillPlan:
        places = data.draw(st.lists(st.integers(0, len(waiting) - 1), unique=True))
        sends = [(place, data.draw(st.integers(0, instances - 1))) for place in places]
        planned.extend((waiting[place].request_id, instance) for place, instance in sends)
        return PrefillPlan(sends, 1e9)

    scheduler = Answering(plan)
    world = World(AskedScheduler(WHO, scheduler), instances)
    for number in range(count):
        world.put(number, float(number))
        if data.draw(st.booleans()):
            world.queue.ask(number + 0.5)
        sent = {request for request, _ in world.given}
        assert len(sent) == len(world.given) and len(sent) + len(world.queue) == number + 1
    assert world.given == planned
    for _, waiting, loads in scheduler.shown:
        assert [request.request_id for request in waiting] == sorted(request.request_id for request in waiting)
        assert len(loads) == instances
    scheduler._answer = lambda waiting: PrefillPlan([(place, 0) for place in range(len(waiting))])
    world.queue.ask(1e6)
    assert sorted(request for request, _ in world.given) == list(range(count)) and not len(world.queue)


def test_what_was_sent_counts_until_telemetry_shows_it() -> None:
    scheduler = Answering(lambda waiting: PrefillPlan([(0, 1)]))
    world = World(scheduler, 2)
    world.put(0, 1.0, 70)
    world.put(1, 1.1, 30)
    assert scheduler.shown[1][2] == (InstanceLoad(1410, 0, 0), InstanceLoad(1410, 1, 70))
    world.told[1] = Standing(1410, 0, 0, 2, 100)
    world.put(2, 1.2)
    assert scheduler.shown[2][2] == (InstanceLoad(1410, 0, 0), InstanceLoad(1410, 0, 0))


def test_it_is_asked_again_when_it_wished_unless_it_has_since_wished_otherwise() -> None:
    wishes = iter([2.0, 3.0, 3.0, None])
    scheduler = Answering(lambda waiting: PrefillPlan((), next(wishes)))
    world = World(scheduler, 1)
    world.put(0, 1.0)
    world.put(1, 1.5)
    assert world.wishes == [2.0, 3.0]
    world.queue.due(2.0)
    assert len(scheduler.shown) == 2
    world.put(2, 2.5)
    assert world.wishes == [2.0, 3.0]
    world.queue.due(3.0)
    assert [time_s for time_s, _, _ in scheduler.shown] == [1.0, 1.5, 2.5, 3.0]


def test_it_is_not_asked_while_nothing_waits() -> None:
    scheduler = Answering(lambda waiting: PrefillPlan([(0, 0)]))
    world = World(scheduler, 1)
    world.queue.ask(1.0)
    assert not scheduler.shown
    world.put(0, 2.0)
    world.queue.ask(3.0)
    assert len(scheduler.shown) == 1


def test_what_is_allowed_passes_as_plain_numbers() -> None:
    plan = asked(PrefillPlan([(np.int64(2), 1), (0, np.int64(0))], np.float64(2.5))).schedule(
        1.5, WAITING, (IDLE, BUSY)
    )
    assert plan == PrefillPlan(((2, 1), (0, 0)), 2.5)
    assert {type(number) for pair in plan.sends for number in pair} == {int} and type(plan.ask_at_s) is float
    assert asked(PrefillPlan()).schedule(1.5, WAITING, (IDLE, BUSY)) == PrefillPlan()


@pytest.mark.parametrize(
    ("answer", "allowed"),
    [
        (None, "a voltana.state.PrefillPlan"),
        (((0, 0),), "a voltana.state.PrefillPlan"),
        (PrefillPlan(3), "sends: a sequence of pairs"),  # type: ignore[arg-type]
        (PrefillPlan([0, 1]), "sends: a sequence of pairs"),  # type: ignore[list-item]
        (PrefillPlan([(3, 0)]), "sends: indices in the queue, 0 to 2"),
        (PrefillPlan([(-1, 0)]), "sends: indices in the queue, 0 to 2"),
        (PrefillPlan([(True, 0)]), "sends: indices in the queue, 0 to 2"),
        (PrefillPlan([(1, 0), (1, 1)]), "sends: every request once"),
        (PrefillPlan([(1, 2)]), "sends: indices of instances, 0 to 1"),
        (PrefillPlan([(1, 0.0)]), "sends: indices of instances, 0 to 1"),  # type: ignore[list-item]
        (PrefillPlan((), 1.5), "ask_at_s: None, or a time after 1.500 s"),
        (PrefillPlan((), math.inf), "ask_at_s: None, or a time after 1.500 s"),
        (PrefillPlan((), math.nan), "ask_at_s: None, or a time after 1.500 s"),
        (PrefillPlan((), "soon"), "ask_at_s: None, or a time after 1.500 s"),  # type: ignore[arg-type]
        (PrefillPlan(), "every instance is idle, so nothing else would end the wait"),
    ],
)
def test_what_is_not_allowed_is_refused(answer: object, allowed: str) -> None:
    with pytest.raises(PolicyError) as caught:
        asked(answer).schedule(1.5, WAITING, (IDLE, IDLE))
    assert str(caught.value).startswith("policy mine: prefill_router (my.Queue) at 1.500 s answered ")
    assert allowed in str(caught.value).partition(", allowed: ")[2]


def test_what_it_raises_is_told() -> None:
    def fail(_: object) -> None:
        raise ValueError("no")

    with pytest.raises(PolicyError, match=r"at 1.500 s raised ValueError: no"):
        AskedScheduler(WHO, Answering(fail)).schedule(1.5, WAITING, (IDLE,))
