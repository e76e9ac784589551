"""The parts of voltana_next, each by the rule that its docstring states."""

import itertools
from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.policies.forecast import Demand, capacity
from voltana.policies.pace import Pace
from voltana.policies.pack import Pack
from voltana.policies.queue import DeadlineQueue, QueueClock
from voltana.policies.triage import LateQueue
from voltana.prediction.ecopred import BIN_ENDS, EcoPred, Line, Plane
from voltana.state import Decision, InstanceLoad, LoadSnapshot, RequestInfo, Slo

CLOCKS = (210, 705, 900, 1155, 1305, 1410)
KNEE = 1155
SPEED = {705: 1.5, 1155: 1.0, 1305: 0.9, 1410: 0.9}
"""Time at each profiled clock, the knee's being 1; above 1305 MHz the power limit throttles."""
SLO = Slo(ttft_s=1.0, itl_s=0.1)
PREDICTOR = EcoPred(
    tuple(SPEED),
    [Line(0.010 * x, 0.0001 * x) for x in SPEED.values()],
    [[Plane(0.010 * x, 0.0002 * x, 0.0)] * len(BIN_ENDS) for x in SPEED.values()],
)
IDLE, BUSY = InstanceLoad(KNEE, 0, 0), InstanceLoad(KNEE, 1, 500)


def queue(**changes: Any) -> DeadlineQueue:
    parameters: dict[str, Any] = {
        "knee_mhz": KNEE,
        "reserve": 0.0,
        "after_prefill_s": 0.0,
        "spare_s": 0.0,
        "batch_tokens": 2000,
        "patience": 0.0,
        "late_share": None,
        "late_wait": 3.0,
        "memory_s": 5.0,
    }
    return DeadlineQueue(SLO, CLOCKS, PREDICTOR, **{**parameters, **changes})


def prompts(*tokens: int, arrival_s: float = 0.0) -> list[RequestInfo]:
    return [RequestInfo(number, arrival_s, each) for number, each in enumerate(tokens)]


def test_an_idle_cluster_takes_a_prompt_at_once_and_at_the_knee() -> None:
    central = queue()
    assert central.schedule(0.0, prompts(300), (IDLE, IDLE)).sends == ((0, 0),)
    assert central.clock_mhz(0) == KNEE


def test_work_is_left_to_a_busy_instance_until_it_would_be_late_there() -> None:
    central = queue(spare_s=0.05)
    central.schedule(0.0, prompts(1900), (IDLE, IDLE))  # runs for 0.2 s
    plan = central.schedule(0.1, [RequestInfo(1, 0.1, 900)], (BUSY, IDLE))  # would end at 0.3 s, is due at 1.1 s
    assert plan.sends == () and plan.ask_at_s == pytest.approx(0.2 + (1.1 - 0.3) - 0.05)
    assert central.schedule(plan.ask_at_s or 0.0, [RequestInfo(1, 0.1, 900)], (BUSY, IDLE)).sends == ((0, 1),)


def test_an_idle_instance_takes_what_the_busy_one_could_not_run_in_time() -> None:
    central = queue(batch_tokens=100_000)
    central.schedule(0.0, prompts(9000), (IDLE, IDLE))  # 0.91 s
    plan = central.schedule(0.05, [RequestInfo(1, 0.05, 2000)], (BUSY, IDLE))  # 0.21 s, due at 1.05 s
    assert plan.sends == ((0, 1),) and plan.ask_at_s is None


def test_a_batch_ends_at_its_limit_or_before_its_first_prompt_would_be_late() -> None:
    assert queue().schedule(0.0, prompts(900, 900, 900), (IDLE,)).sends == ((0, 0), (1, 0))
    tight = queue().schedule(0.85, prompts(900, 900), (IDLE,))  # 0.15 s left, 0.19 s for both
    assert tight.sends == ((0, 0),)
    given_up = queue(late_share=0.3).schedule(0.85, prompts(950, 900), (IDLE,))
    assert given_up.sends == ((1, 0),), "what is given up does not make another late"
    lost = queue().schedule(5.0, prompts(900, 900), (IDLE,))
    assert lost.sends == ((0, 0), (1, 0)), "one that is late anyway does not make batches small"


def test_the_clock_rises_for_a_deadline_in_the_queue_and_no_further_than_it_helps() -> None:
    central = queue(batch_tokens=1000)
    ten = prompts(*[950] * 9)  # 0.945 s at the knee, 0.85 s at 1305 MHz
    central.schedule(0.1, ten, (IDLE,))
    assert central.clock_mhz(0) > KNEE
    slow = queue(batch_tokens=1000)
    slow.schedule(0.0, ten, (IDLE,))
    assert slow.clock_mhz(0) == KNEE
    hopeless = queue(batch_tokens=1000)
    hopeless.schedule(0.9, ten, (IDLE,))
    assert hopeless.clock_mhz(0) == 1305


def test_the_clock_rises_for_a_late_prompt_that_has_waited_long() -> None:
    for waited_s, clock in ((2.9, KNEE), (3.1, 1305)):
        central = queue(late_share=0.3)
        central.schedule(waited_s, prompts(900), (IDLE,))
        assert central.clock_mhz(0) == clock


def test_patience_holds_a_small_batch_back_while_all_idle() -> None:
    central = queue(patience=0.3)
    plan = central.schedule(0.0, prompts(300), (IDLE, IDLE))
    assert plan.sends == () and plan.ask_at_s == pytest.approx(0.3)
    assert central.schedule(0.1, prompts(300, 1700), (IDLE, IDLE)).sends == ((0, 0), (1, 0))
    assert central.schedule(0.3, prompts(300), (IDLE, IDLE)).sends == ((0, 0),)


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=7), st.lists(st.floats(0, 0.4), min_size=7, max_size=7))
def test_triage_keeps_as_many_in_time_as_can_be(tokens: list[int], gaps: list[float]) -> None:
    """One instance, one prompt a batch: Moore and Hodgson's problem, which small cases decide by trying all."""
    arrivals = list(itertools.accumulate(gaps[: len(tokens)]))
    waiting = [
        RequestInfo(number, arrival, each) for number, (arrival, each) in enumerate(zip(arrivals, tokens, strict=True))
    ]
    now_s = arrivals[-1] + 0.2
    central = queue(late_share=1e-9, batch_tokens=1)
    central.schedule(now_s, waiting, (IDLE,))
    assert central._late is not None
    kept = [each for each in waiting if each.request_id not in central._late]

    def all_in_time(chosen: Sequence[RequestInfo]) -> bool:
        ends = itertools.accumulate(PREDICTOR.prefill_s(each.prompt_tokens, KNEE) for each in chosen)
        return all(now_s + end <= each.arrival_s + SLO.ttft_s + 1e-7 for each, end in zip(chosen, ends, strict=True))

    best = max(
        size
        for size in range(len(waiting) + 1)
        if any(all_in_time(chosen) for chosen in itertools.combinations(waiting, size))
    )
    assert all_in_time(kept) and len(kept) == best


class Sized(NamedTuple):
    """A prompt."""

    tokens: int


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=30), st.integers(100, 2000), st.floats(0.1, 0.6))
def test_late_prompts_get_their_share_and_none_waits_for_ever(late: list[int], batch: int, share: float) -> None:
    behind, left, taken = LateQueue(share), [Sized(each) for each in late], 0
    for number in itertools.count(1):
        given = behind.take(left, batch, 0)
        assert given == left[: len(given)]
        left = left[len(given) :]
        taken += sum(each.tokens for each in given)
        earned = number * batch * share / (1 - share)
        assert taken <= earned + 1e-6 and (not left or taken + left[0].tokens > earned - 1e-6)
        if not left:
            break


def test_late_prompts_take_what_nobody_else_wants() -> None:
    behind = LateQueue(0.3)
    assert behind.take([Sized(5000)], 0, 2000) == [Sized(5000)], "alone however large"
    assert behind.take([Sized(400), Sized(400)], 1000, 900) == [Sized(400), Sized(400)]


def test_what_was_given_up_is_remembered_only_while_it_waits() -> None:
    behind = LateQueue(0.3)
    for number in (1, 2):
        behind.add(number)
    behind.forget_all_but([2, 3])
    assert [number in behind for number in (1, 2, 3)] == [False, True, False]


def clock_of(central: object) -> QueueClock:
    return QueueClock(CLOCKS, central, 0, idle_s=1.0, settle_s=0.0)  # type: ignore[arg-type]


def snapshot(batch: int, tokens: int, **changes: Any) -> LoadSnapshot:
    load = LoadSnapshot(1.0, KNEE, batch, tokens, 0, 0, 0.0, 0.0, batch, tokens)
    return load._replace(**changes)


def test_the_queue_sets_the_clock_and_idleness_the_lowest() -> None:
    central = queue()
    clock = clock_of(central)
    assert clock.decide(snapshot(1, 300)) == Decision(KNEE, 1.0)
    assert clock.decide(snapshot(0, 0, idle_s=0.5)) == Decision(KNEE, 1.0)
    assert clock.decide(snapshot(0, 0, idle_s=1.0)) == Decision(210)
    with pytest.raises(UserError, match="scheduler: found a object, allowed: a DeadlineQueue"):
        clock_of(object())


def test_the_queue_learns_what_batches_take() -> None:
    central = queue()
    clock, busy_s = clock_of(central), 0.0
    central.schedule(1.0, prompts(1000, arrival_s=1.0), (IDLE,))
    for number in range(100):
        clock.decide(snapshot(1, 1000, time_s=1.0 + number, iterations=number, busy_s=busy_s))
        busy_s += 1.2 * PREDICTOR.prefill_s(1000, KNEE)
    clock.decide(snapshot(0, 0, time_s=200.0, iterations=100, busy_s=busy_s))
    assert central.predicted_s(1000, KNEE) == pytest.approx(1.2 * PREDICTOR.prefill_s(1000, KNEE), rel=0.02)


def pack(**changes: Any) -> Pack:
    parameters: dict[str, Any] = {"knee_mhz": KNEE, "budget": 0.7, "hysteresis": 0.06, "kv_share": 0.85}
    return Pack(SLO, CLOCKS, PREDICTOR, 100_000, **{**parameters, **changes})


def loads(*requests: int, tokens: int = 10) -> list[InstanceLoad]:
    return [InstanceLoad(KNEE, each, each * tokens) for each in requests]


REQUEST = RequestInfo(0, 0.0, 10)
FULL = 299
"""Requests at which an iteration at the knee just keeps to the budget of 0.07 s."""


def test_decode_fills_one_instance_before_it_opens_the_next() -> None:
    router = pack()
    assert router.route(REQUEST, loads(FULL - 1, 0, 0)) == 0
    assert router.route(REQUEST, loads(FULL, 0, 0)) == 1
    assert router.route(REQUEST, loads(FULL, FULL, 0)) == 2


def test_an_instance_is_given_up_only_with_room_to_spare() -> None:
    router = pack()
    router.route(REQUEST, loads(FULL, 5))
    assert router.route(REQUEST, loads(FULL - 20, 5)) == 1
    assert router.route(REQUEST, loads(FULL - 40, 5)) == 0
    assert router.route(REQUEST, loads(FULL - 20, 5)) == 0


def test_a_full_cache_opens_the_next_too() -> None:
    assert pack().route(REQUEST, loads(84, 0, tokens=1000)) == 0
    assert pack().route(REQUEST, loads(85, 0, tokens=1000)) == 1


@given(st.lists(st.integers(0, 900), min_size=1, max_size=6))
def test_no_more_instances_than_needed_and_the_emptiest_of_them(requests: list[int]) -> None:
    chosen = pack().route(REQUEST, loads(*requests))
    needed = next(
        (k for k in range(1, len(requests)) if 0.010 + 0.0002 * -(-(sum(requests) + 1) // k) <= 0.1 * 0.7),
        len(requests),
    )
    assert chosen < needed and requests[chosen] == min(requests[:needed])


def pace(**changes: Any) -> Pace:
    parameters: dict[str, Any] = {
        "floor_mhz": 705,
        "knee_mhz": KNEE,
        "budget": 0.6,
        "limit": 0.9,
        "forecast": None,
        "rate_memory_s": 10.0,
        "memory_s": 5.0,
        "hold_s": 0.25,
        "settle_s": 0.05,
        "idle_s": 1.0,
    }
    return Pace("decode", SLO, CLOCKS, PREDICTOR, **{**parameters, **changes})


@pytest.mark.parametrize(
    ("batch", "clock"),
    [
        (150, 705),  # 0.06 s at 705 MHz
        (151, 900),
        (250, KNEE),  # 0.06 s at the knee
        (251, KNEE),  # over the budget, but not over the limit
        (400, KNEE),  # 0.09 s
        (401, 1305),
        (900, 1410),  # nothing keeps to the limit
    ],
)
def test_a_tight_budget_up_to_the_knee_and_a_wide_one_above(batch: int, clock: int) -> None:
    assert pace().decide(snapshot(batch, 100 * batch)).clock_mhz == clock


@given(st.floats(1, 2000), st.floats(0.02, 0.2), st.sampled_from(list(SPEED)))
def test_what_decode_can_make_is_that_of_the_largest_batch_within_the_limit(
    tokens: float, limit_s: float, clock: int
) -> None:
    planes = [Plane(0.010 * SPEED[clock], 0.0002 * SPEED[clock], 1e-7)] * len(BIN_ENDS)
    predictor = EcoPred((clock, 2000), [Line(0.01, 1e-4)] * 2, [planes, planes])
    batch = min(BIN_ENDS[-1], (limit_s - planes[0].intercept_s) / (planes[0].per_request_s + 1e-7 * tokens))
    seconds = planes[0].intercept_s + (planes[0].per_request_s + 1e-7 * tokens) * batch
    assert capacity(predictor, clock, tokens, limit_s) == pytest.approx(batch / seconds if batch > 0 else 0.0)


def serve(rate: float, mean: float, controller: Pace | None = None, iterations: int = 12_000) -> tuple[Demand, int]:
    """Poisson arrivals with geometric lengths, an iteration every 20 ms; what is foreseen, and the last clock."""
    random, demand, lefts, arrived, clock = Random(1), Demand(10.0), list[int](), 0, 0
    for number in range(iterations):
        while random.random() < rate * 0.02 / (1 + rate * 0.02):
            lefts.append(1 + int(random.expovariate(1 / mean)))
            arrived += 1
        load = snapshot(
            len(lefts),
            100 * len(lefts),
            time_s=number * 0.02,
            arrived_requests=arrived,
            iterations=number,
            busy_s=number * 0.02,
        )
        demand.see(load)
        if controller is not None and lefts:
            clock = controller.decide(load).clock_mhz
        lefts = [left - 1 for left in lefts if left > 1]
    return demand, clock


@pytest.mark.parametrize(("rate", "mean"), [(5, 50), (20, 200), (2, 700)])
def test_what_is_foreseen_is_the_rate_times_the_length_while_the_batch_still_grows(rate: float, mean: float) -> None:
    """The run is as short as 17 lives of the longest requests, so what has ended is shorter than what runs."""
    demand, _ = serve(rate, mean)
    assert demand.tokens_per_s == pytest.approx(rate * mean, rel=0.3)
    assert Demand(10.0).tokens_per_s == 0.0


@pytest.mark.slow
def test_the_clock_rises_before_the_limit_where_the_knee_cannot_bear_what_is_foreseen() -> None:
    """The knee makes 4444 tokens a second within the limit (400 in 0.09 s), 1305 MHz 5000 (450)."""
    over, within = serve(24, 200)[0].tokens_per_s, serve(12, 200)[0].tokens_per_s
    assert within < 4444 * 1.05 < over < 5000 * 1.05
    for forecast, rate, clock in ((1.05, 24, 1305), (1.05, 12, KNEE), (None, 24, KNEE)):
        controller = pace(forecast=forecast)
        controller._ratio.observe = lambda *_: None  # type: ignore[method-assign]
        serve(rate, 200, controller)
        later = snapshot(
            260, 26_000, time_s=1e4, iterations=20_000, arrived_requests=controller._asked.arrived_requests
        )
        controller._foreseen_s = later.time_s
        assert controller.decide(later).clock_mhz == clock
        calm = later._replace(batch_size=240, batch_tokens=24_000)
        assert controller.decide(calm).clock_mhz == KNEE, "the knee keeps to the budget"


def test_an_idle_instance_goes_to_the_lowest_clock_of_the_gpu() -> None:
    controller = pace()
    assert controller.decide(snapshot(0, 0, idle_s=0.5)) == Decision(KNEE, 1.0)
    assert controller.decide(snapshot(0, 0, idle_s=1.0)) == Decision(210)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pace(budget=0.95), r"budget: found 0.95, allowed: a number > 0 and <= 0.9"),
        (lambda: pace(floor_mhz=700), "floor_mhz: found 700"),
        (lambda: pack(hysteresis=1.0), "hysteresis: found 1.0"),
        (lambda: queue(late_share=1.0), "late_share: found 1.0"),
        (lambda: queue(knee_mhz=1000), "knee_mhz: found 1000"),
        (lambda: queue(batch_tokens=0), "batch_tokens: found 0"),
    ],
)
def test_wrong_parameters_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
