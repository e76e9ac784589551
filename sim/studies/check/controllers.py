"""The promises of a frequency controller, each tried on the histories of an instance."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, zip_longest
from typing import NamedTuple

from voltana.policies.asked import AskedController
from voltana.sim.plant import Plant, Step
from voltana.sim.serving.spec import bind_truth
from voltana.sim.studies.check.finding import ANSWERS, Broken, Finding, check, time_of
from voltana.sim.studies.check.histories import IDLE_S
from voltana.state import Decision, LoadSnapshot, Phase


class Subject(NamedTuple):
    """A controller of one world: how to make a new one, and what it is shown."""

    make: Callable[[], AskedController]
    snapshots: Sequence[LoadSnapshot]
    plant: Plant
    phase: Phase


class Answer(NamedTuple):
    """What was answered to what."""

    load: LoadSnapshot
    decision: Decision


class _Costs:
    """Tells an oracle what the batch it is asked about would cost."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self.load = subject.snapshots[0]

    def what_if(self, clock_mhz: int) -> Step:
        """The batch at a clock."""
        plant, load = self._subject.plant, self.load
        if self._subject.phase == "decode":
            return plant.decode(load.batch_size, load.batch_tokens, clock_mhz)
        pairs = sum(view.prompt_tokens * (view.prompt_tokens + 1) / 2 for view in load.running)
        return plant.prefill(load.batch_size, load.batch_tokens, pairs, clock_mhz)


class Asking:
    """A new controller that is asked through a history, its own clock told back to it.

    Args:
        subject: the controller and its history.
        shows_all: whether it is shown also what it does not say that it reads.
        skips: whether its promises are taken, so that it is not asked where the answer is known.
    """

    def __init__(self, subject: Subject, *, shows_all: bool = False, skips: bool = False) -> None:
        self._subject = subject
        self._shows_all = shows_all
        self._skips = skips
        self.controller = subject.make()
        self._costs = _Costs(subject)
        bind_truth(self.controller, self._costs)
        self.spent_ns: list[int] = []

    def answers(self) -> Iterator[Answer]:
        """One answer to each snapshot of a batch, and in between to idleness if it asked for that."""
        snapshots = self._subject.snapshots
        last = Answer(snapshots[0], self._ask(snapshots[0], 0))
        yield last
        for before, load, after in zip(snapshots, snapshots[1:], (*snapshots[2:], snapshots[-1]), strict=False):
            if load.batch_size == 0:
                for answer in self._idle(last, load, after.time_s):
                    last = answer
                    yield last
            elif self._skips and _holds(last.decision, before, load):
                yield Answer(load, last.decision)
            else:
                last = Answer(load, self._ask(load, last.decision.clock_mhz))
                yield last

    def _idle(self, last: Answer, load: LoadSnapshot, until_s: float) -> Iterator[Answer]:
        """Ask as often as it wishes while there is nothing to run."""
        began_s, asked_s = load.time_s - IDLE_S, 0.0
        while True:
            idle_s = last.decision.ask_when_idle_s
            if idle_s is None or idle_s <= asked_s or began_s + idle_s >= until_s:
                return
            asked_s = idle_s
            idling = load._replace(time_s=began_s + idle_s, idle_s=idle_s)
            last = Answer(idling, self._ask(idling, last.decision.clock_mhz))
            yield last

    def _ask(self, load: LoadSnapshot, clock_mhz: int) -> Decision:
        self._costs.load = load
        shown = load._replace(clock_mhz=clock_mhz)
        if not (self._shows_all or self.controller.reads_power):
            shown = shown._replace(power_w=None, cluster_power_w=None)
        if not (self._shows_all or self.controller.reads_requests):
            shown = shown._replace(running=(), waiting=())
        started = time.perf_counter_ns()
        decision = self.controller.decide(shown)
        self.spent_ns.append(time.perf_counter_ns() - started)
        return decision


def _holds(decision: Decision, before: LoadSnapshot, load: LoadSnapshot) -> bool:
    """Whether a decision is promised for a state that follows on another."""
    if load.batch_tokens >= decision.holds_below_tokens:
        return False
    return _but_for_its_growth(before) == _but_for_its_growth(load)


def _but_for_its_growth(load: LoadSnapshot) -> LoadSnapshot:
    """What stays while only the tokens of a batch grow."""
    return load._replace(
        time_s=0.0,
        clock_mhz=0,
        batch_tokens=0,
        iterations=0,
        busy_s=0.0,
        power_w=None,
        cluster_power_w=None,
        running=(),
        waiting=(),
    )


def check_controller(part: str, subjects: Sequence[Subject], limit_us: float) -> Iterator[Finding]:
    """Try every promise of one part of a policy; only the first, if it does not answer as it must.

    Args:
        part: its key in the bundle.
        subjects: the same controller in several worlds.
        limit_us: what a decision may take, microseconds, as the median.
    """
    plain: list[list[Answer]] = []
    spent_ns: list[int] = []

    def answers() -> str:
        for subject in subjects:
            asking = Asking(subject)
            plain.append(list(asking.answers()))
            spent_ns.extend(asking.spent_ns)
        return f"{len(spent_ns)} allowed"

    found = check(part, ANSWERS, answers)
    yield found
    if not found.passed:
        return
    controller = subjects[0].make()
    yield check(part, "deterministic", lambda: _deterministic(subjects, plain))
    yield check(part, "undeclared reads", lambda: _reads(controller, subjects, plain))
    if controller.reads_load:
        yield Finding(part, "reads_load", None, "not promised")
    else:
        yield check(part, "reads_load", lambda: _one_answer(plain))
    if subjects[0].phase == "prefill":
        yield Finding(part, "holds_below_tokens", None, "of no use in prefill")
    elif not any(answer.decision.holds_below_tokens for answers in plain for answer in answers):
        yield Finding(part, "holds_below_tokens", None, "not promised")
    else:
        yield check(part, "holds_below_tokens", lambda: _promises(subjects, plain))
    yield check(part, "time", lambda: time_of(spent_ns, limit_us))


def _deterministic(subjects: Sequence[Subject], plain: Sequence[Sequence[Answer]]) -> str:
    """Ask a new one, while another is asked something else: none may know of the other."""
    for number, (subject, before) in enumerate(zip(subjects, plain, strict=True)):
        other = Asking(subjects[number - 1]).answers()
        again = [answer for answer, _ in zip_longest(Asking(subject).answers(), islice(other, len(before)))]
        _same(before, again[: len(before)], "a second controller, asked the same")
    return "alone and beside another"


def _reads(controller: AskedController, subjects: Sequence[Subject], plain: Sequence[Sequence[Answer]]) -> str:
    for subject, before in zip(subjects, plain, strict=True):
        everything = list(Asking(subject, shows_all=True).answers())
        _same(before, everything, "shown power and requests, which it does not declare,")
    declared = [flag for flag in ("reads_power", "reads_requests") if getattr(controller, flag)]
    return "none" + (f" besides {', '.join(declared)}" if declared else "")


def _one_answer(plain: Sequence[Sequence[Answer]]) -> str:
    for answers in plain:
        first = answers[0].decision
        for answer in answers:
            if answer.decision != first:
                raise Broken(f"{_state(answer.load)} it answers {answer.decision}, at first it was {first}")
    return "one answer for ever"


def _promises(subjects: Sequence[Subject], plain: Sequence[Sequence[Answer]]) -> str:
    """Ask only where no promise tells the answer: what follows must be the same."""
    asked = spared = 0
    for subject, before in zip(subjects, plain, strict=True):
        asking = Asking(subject, skips=True)
        again = list(asking.answers())
        _same(before, again, "where its promises are taken")
        asked += len(before)
        spared += len(before) - len(asking.spent_ns)
    return f"kept in {spared} of {asked} states"


def _same(before: Sequence[Answer], again: Sequence[Answer], how: str) -> None:
    """Both must have answered the same to the same."""
    for one, two in zip_longest(before, again):
        if one is None or two is None or _said(one) != _said(two):
            answers = [each.decision if each else "nothing" for each in (one, two)]
            raise Broken(f"{_state((one or two).load)} it answers {answers[0]}, but {how} {answers[1]}")


def _said(answer: Answer) -> tuple[float, Decision]:
    """When it was asked and what followed; that one promised more than the other makes no difference."""
    return answer.load.time_s, answer.decision._replace(holds_below_tokens=0.0)


def _state(load: LoadSnapshot) -> str:
    return f"at {load.time_s:.3f} s ({load.batch_size} requests, {load.batch_tokens} tokens, {load.queued} queued)"
