"""Messages reach the subscriber whole and in order, and what is lost is known to be."""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.live.telemetry.message import VERSION, Clock, Message, Telemetry, WrongMessageError, decode, encode
from voltana.live.telemetry.publisher import HIGH_WATER_MARK, Publisher
from voltana.live.telemetry.subscriber import Source, Subscriber

counts = st.integers(0, 2**40)
seconds = st.floats(0, 1e9)


def message(sequence: int, arrived: int = 0, iterations: int = 0, busy_s: float = 0.0) -> Message:
    return Message(
        VERSION,
        "decode-0",
        "decode",
        sequence,
        1.0,
        2.0,
        10,
        arrived_requests=arrived,
        arrived_tokens=10 * arrived,
        iterations=iterations,
        busy_s=busy_s,
    )


def publish(publisher: Publisher, batch_size: int = 3) -> None:
    publisher.publish(batch_size, 300, 2, 200, 0.25, 0.0, 9, 900, 4, 0.08)


def wait(condition: Callable[[], object], timeout_s: float = 5.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "timed out"
        time.sleep(0.002)


@pytest.fixture
def endpoint(tmp_path: Path) -> str:
    return f"ipc://{tmp_path / 't.sock'}"


@pytest.fixture
def seen() -> list[Telemetry]:
    """What the callback of the pair's subscriber was told."""
    return []


@pytest.fixture
def pair(endpoint: str, seen: list[Telemetry]) -> Iterator[tuple[Publisher, Subscriber]]:
    """A publisher that has a subscriber."""
    publisher = Publisher(endpoint, "decode-0", "decode", 1000)
    with Subscriber(seen.append) as subscriber:
        subscriber.connect(endpoint)

        def heard() -> bool:
            publish(publisher)
            return subscriber.receive() > 0

        wait(heard)
        yield publisher, subscriber
    publisher.close()


@given(counts, counts, st.floats(0, math.inf), st.sampled_from(["prefill", "decode"]), st.text(max_size=20))
def test_messages_survive_the_wire(first: int, second: int, idle_s: float, phase: str, name: str) -> None:
    sent = Message(VERSION, name, phase, first, 1.5, 2.5, second, idle_s=idle_s, queued=second)  # type: ignore[arg-type]
    assert decode(encode(sent)) == sent


@given(st.binary(max_size=60))
def test_bytes_that_are_no_message_are_refused(payload: bytes) -> None:
    try:
        decode(payload)
    except WrongMessageError:
        return
    pytest.fail("random bytes were taken for a message")


def test_another_version_is_refused_with_a_reason() -> None:
    fields = [VERSION + 1, *msgspec.to_builtins(message(0))[1:]]
    for payload in (msgspec.msgpack.encode(fields), msgspec.msgpack.encode([VERSION + 1, {"new": "layout"}])):
        with pytest.raises(WrongMessageError, match=f"version {VERSION + 1}.*{VERSION}"):
            decode(payload)


def test_a_later_minor_message_with_more_fields_is_understood() -> None:
    fields = [*msgspec.to_builtins(message(7)), "new"]
    assert decode(msgspec.msgpack.encode(fields)).sequence == 7


def test_snapshot_arrives(pair: tuple[Publisher, Subscriber], seen: list[Telemetry]) -> None:
    publisher, subscriber = pair
    subscriber.begin()
    publish(publisher, batch_size=17)
    wait(lambda: subscriber.receive() and seen and seen[-1].load.batch_size == 17)
    load = seen[-1].load
    assert (load.batch_size, load.batch_tokens, load.queued, load.queued_tokens) == (17, 300, 2, 200)
    assert load.longest_wait_s == 0.25
    assert 0 <= load.time_s < 5 and 0 <= seen[-1].transport_s < 5
    assert (load.arrived_requests, load.iterations, load.busy_s) == (0, 0, 0), "counted from the beginning of the run"
    assert subscriber.latest["decode-0"] == seen[-1]
    assert subscriber.age_s("decode-0") < 5
    assert seen[-1].max_kv_tokens == 1000


def test_a_subscriber_that_sleeps_loses_messages_and_knows(pair: tuple[Publisher, Subscriber]) -> None:
    publisher, subscriber = pair
    begun_s = time.monotonic()
    for _ in range(50 * HIGH_WATER_MARK):
        publish(publisher)
    assert time.monotonic() - begun_s < 5, "publishing waited for the subscriber"
    deadline = time.monotonic() + 5
    source = subscriber.sources["decode-0"]
    while source.messages + source.lost < publisher.sent - 50 and time.monotonic() < deadline:
        publish(publisher)
        subscriber.receive()
    assert subscriber.lost > 0
    before = source.messages + source.lost
    assert before <= publisher.sent


def test_reading_in_an_event_loop(endpoint: str) -> None:
    async def listen() -> int:
        publisher = Publisher(endpoint, "decode-0", "decode")
        done = asyncio.Event()
        with Subscriber(lambda telemetry: done.set() if telemetry.load.batch_size == 9 else None) as subscriber:
            subscriber.connect(endpoint)
            subscriber.attach(asyncio.get_running_loop())
            async with asyncio.timeout(5):
                while not done.is_set():
                    publish(publisher, 9)
                    await asyncio.sleep(0.005)
            publisher.close()
            return len(subscriber.latest)

    assert asyncio.run(listen()) == 1


def test_messages_of_a_stranger_are_counted_and_ignored(pair: tuple[Publisher, Subscriber]) -> None:
    publisher, subscriber = pair
    publisher._socket.send(b"hello")
    wait(lambda: subscriber.receive() and subscriber.rejected)
    assert subscriber.rejected == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_counters_never_fall_when_servers_restart(steps: list[tuple[int, bool]]) -> None:
    source, sequence, arrived, total = Source(), -1, 0, 0
    for new, restart in steps:
        if restart and sequence >= 0:
            sequence, arrived = -1, 0
        sequence, arrived, total = sequence + 1, arrived + new, total + new
        counters = source.take(message(sequence, arrived, iterations=arrived, busy_s=float(arrived)))
        assert (counters.requests, counters.tokens, counters.iterations) == (total, 10 * total, total)
        assert counters.busy_s == total
    assert source.lost == 0


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20))
def test_gaps_are_counted(steps: list[int]) -> None:
    source, sequence = Source(), 0
    source.take(message(0))
    for step in steps:
        sequence += step
        source.take(message(sequence))
    assert source.lost == sum(steps) - len(steps)
    assert source.messages + source.lost == sequence + 1


@given(seconds, seconds, st.floats(0, 1e4))
def test_time_between_clocks(monotonic_s: float, offset_s: float, later_s: float) -> None:
    here = Clock(monotonic_s, monotonic_s + offset_s)
    same_host = Clock(monotonic_s + later_s, monotonic_s + offset_s + later_s + 0.01)
    assert here.seconds_to(same_host) == pytest.approx(later_s, abs=1e-5)
    elsewhere = Clock(monotonic_s + 5000.0, monotonic_s + offset_s + later_s)
    if abs(later_s - 5000.0) > 1:
        assert here.seconds_to(elsewhere) == pytest.approx(later_s, abs=1e-5)
