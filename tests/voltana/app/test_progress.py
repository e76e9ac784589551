"""How far long work is: lines where nobody watches, with the time left; a bar on a terminal."""

import io

import pytest
from rich.console import Console

from voltana.app import progress
from voltana.app.progress import Progress, in_words


class Clock:
    now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture(name="clock")
def _clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def plain() -> Console:
    return Console(file=io.StringIO(), width=100, highlight=False)


def said(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_named_steps_are_lines_with_the_time_left(clock: Clock) -> None:
    console = plain()
    with Progress("runs", 4, console) as shown:
        for name, after_s in (("a", 12), ("b", 48), ("c", 120), ("d", 0)):
            clock.now_s += after_s
            shown.step(name)
    assert said(console) == ["[1/4] a", "[2/4] b, about 60 s left", "[3/4] c, about 60 s left", "[4/4] d"]


def test_nameless_steps_are_told_now_and_then(clock: Clock) -> None:
    console = plain()
    with Progress("simulating", 100, console, unit="s of arrivals") as shown:
        for second in range(1, 11):
            clock.now_s += 6
            shown.reach(4 * second)
    assert said(console) == [
        "simulating: 20 of 100 s of arrivals, about 2 min left",
        "simulating: 40 of 100 s of arrivals, about 2 min left",
    ]


def test_short_work_says_nothing(clock: Clock) -> None:
    console = plain()
    with Progress("simulating", 10, console) as shown:
        for _ in range(10):
            clock.now_s += 1
            shown.step()
    assert said(console) == []


def test_work_of_unknown_size_tells_no_time(clock: Clock) -> None:
    console = plain()
    with Progress("runs", None, console) as shown:
        clock.now_s += 60
        shown.step("first")
        clock.now_s += 60
        shown.step()
    assert said(console) == ["[1] first", "runs: 2"]


def test_the_next_part_begins_anew(clock: Clock) -> None:
    console = plain()
    with Progress("prefill", 20, console, unit="s") as shown:
        clock.now_s += 60
        shown.reach(10)
        shown.begin("decode")
        clock.now_s += 30
        shown.reach(5)
    assert said(console) == ["prefill: 10 of 20 s, about 60 s left", "decode: 5 of 20 s, about 2 min left"]


def test_a_terminal_has_a_bar_and_no_lines() -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with Progress("runs", 2, console) as shown:
        shown.step("a")
        shown.line("beside it")
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "1 of 2" in text and "beside it" in text and "[1/2]" not in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "about 1 s"), (45, "about 45 s"), (600, "about 10 min"), (9000, "about 2.5 h")]
)
def test_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
