"""The accounts of a router: what it sent is counted once, from the moment it is sent until it is seen to end."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.dispatch import Dispatcher, Standing, standing_of
from voltana.policies.balancers import RandomRouter, RoundRobin
from voltana.state import InstanceLoad, LoadSnapshot, RequestInfo, Router


def request(prompt_tokens: int) -> RequestInfo:
    return RequestInfo(0, 0.0, prompt_tokens)


def telemetry(batch: tuple[int, int], queue: tuple[int, int], arrived: tuple[int, int]) -> LoadSnapshot:
    """From (requests, tokens) of the batch, the queue and all that ever arrived."""
    return LoadSnapshot(1.0, 1005, *batch, *queue, 0.0, 0.0, *arrived)


class Recording:
    """Sends everything to one instance and keeps what it was shown."""

    def __init__(self, choice: int, *, counts_tokens_sent: bool = True) -> None:
        self.choice = choice
        self.counts_tokens_sent = counts_tokens_sent
        self.shown: list[Sequence[InstanceLoad]] = []

    def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
        self.shown.append(list(candidates))
        return self.choice


NEW = telemetry((0, 0), (0, 0), (0, 0))


class Board:
    """The last telemetry of every instance, as a world publishes it."""

    def __init__(self, instances: int) -> None:
        self.last = [NEW] * instances

    def sources(self) -> list[Callable[[], Standing]]:
        return [lambda index=index: standing_of(self.last[index]) for index in range(len(self.last))]


def test_before_it_shows_in_telemetry_a_candidate_has_what_it_was_sent() -> None:
    router = Recording(1)
    dispatcher = Dispatcher(router, Board(2).sources())
    for tokens in (100, 50):
        dispatcher.dispatch(request(tokens))
    nothing = InstanceLoad(1005, 0, 0)
    assert router.shown == [[nothing, nothing], [nothing, InstanceLoad(1005, 1, 100)]]
    assert dispatcher.loads() == [nothing, InstanceLoad(1005, 2, 150)]


def test_what_telemetry_shows_is_not_counted_again() -> None:
    board = Board(1)
    dispatcher = Dispatcher(RoundRobin(), board.sources())
    for tokens in (100, 50, 30):
        dispatcher.dispatch(request(tokens))
    board.last = [telemetry(batch=(1, 100), queue=(0, 0), arrived=(1, 100))]
    assert dispatcher.loads() == [InstanceLoad(1005, 3, 180)]
    board.last = [telemetry(batch=(1, 100), queue=(2, 80), arrived=(3, 180))]
    assert dispatcher.loads() == [InstanceLoad(1005, 3, 180)]
    board.last = [telemetry(batch=(1, 31), queue=(0, 0), arrived=(3, 180))]
    assert dispatcher.loads() == [InstanceLoad(1005, 1, 31)]


def test_telemetry_of_one_instance_says_nothing_of_another() -> None:
    board = Board(2)
    board.last[1] = telemetry(batch=(5, 500), queue=(0, 0), arrived=(0, 0))
    assert Dispatcher(RoundRobin(), board.sources()).loads() == [InstanceLoad(1005, 0, 0), InstanceLoad(1005, 5, 500)]


def test_a_router_may_see_tokens_as_telemetry_has_them() -> None:
    router, board = Recording(0, counts_tokens_sent=False), Board(1)
    board.last = [telemetry(batch=(1, 100), queue=(2, 80), arrived=(0, 0))]
    dispatcher = Dispatcher(router, board.sources())
    for tokens in (1000, 2000):
        dispatcher.dispatch(request(tokens))
    assert router.shown == [[InstanceLoad(1005, 3, 180)], [InstanceLoad(1005, 4, 180)]]


@pytest.mark.parametrize("router", [RoundRobin(), RandomRouter(1)])
def test_telemetry_is_not_read_for_a_router_that_ignores_it(router: Router) -> None:
    def unread() -> Standing:
        raise AssertionError("must not be read")

    assert Dispatcher(router, [unread] * 3).dispatch(request(1)) in range(3)


def test_what_a_router_is_shown_it_cannot_change() -> None:
    class Greedy(Recording):
        def route(self, request: RequestInfo, candidates: Sequence[InstanceLoad]) -> int:
            candidates[0] = InstanceLoad(0, 0, 0)  # type: ignore[index]
            return 0

    board = Board(1)
    board.last[0] = telemetry(batch=(5, 500), queue=(0, 0), arrived=(0, 0))
    dispatcher = Dispatcher(Greedy(0), board.sources())
    with pytest.raises(TypeError):
        dispatcher.dispatch(request(1))
    assert dispatcher.loads() == [InstanceLoad(1005, 5, 500)], "and nothing is counted as sent"


@dataclass
class Server:
    """An instance as a set of prompts: on their way, queued, running, finished."""

    coming: list[int] = field(default_factory=list)
    queue: list[int] = field(default_factory=list)
    batch: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    finished_when_seen: list[int] = field(default_factory=list)

    def step(self, action: str) -> None:
        source, target = {
            "arrive": (self.coming, self.queue),
            "start": (self.queue, self.batch),
            "finish": (self.batch, self.finished),
        }[action]
        if source:
            target.append(source.pop(0))

    def publish(self) -> LoadSnapshot:
        self.finished_when_seen = list(self.finished)
        arrived = self.queue + self.batch + self.finished
        batch, queue, ever = ((len(prompts), sum(prompts)) for prompts in (self.batch, self.queue, arrived))
        return telemetry(batch, queue, ever)


actions = st.sampled_from(["send", "arrive", "start", "finish", "publish"])


@given(st.lists(st.tuples(actions, st.integers(0, 2), st.integers(1, 1000)), max_size=80))
def test_the_router_sees_what_was_sent_less_what_it_saw_end(steps: list[tuple[str, int, int]]) -> None:
    board = Board(3)
    dispatcher = Dispatcher(RandomRouter(1), board.sources())
    servers = [Server() for _ in range(3)]
    for action, index, tokens in steps:
        if action == "send":
            servers[dispatcher.dispatch(request(tokens))].coming.append(tokens)
        elif action == "publish":
            board.last[index] = servers[index].publish()
        else:
            servers[index].step(action)
        for server, seen in zip(servers, dispatcher.loads(), strict=True):
            sent = server.coming + server.queue + server.batch + server.finished
            assert seen.requests == len(sent) - len(server.finished_when_seen)
            assert seen.tokens == sum(sent) - sum(server.finished_when_seen)
