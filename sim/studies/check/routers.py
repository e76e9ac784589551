"""The promises of a router, each tried on the questions of runs and on drawn ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

from voltana.policies.asked import AskedRouter
from voltana.sim.studies.check.finding import ANSWERS, Broken, Finding, check, time_of
from voltana.sim.studies.check.histories import Question
from voltana.state import InstanceLoad

UNREAD = InstanceLoad(0, 0, 0)


class RouterSubject(NamedTuple):
    """A router of one world: how to make a new one, and what it is asked."""

    make: Callable[[], AskedRouter]
    questions: Sequence[Question]


def check_router(part: str, subjects: Sequence[RouterSubject], limit_us: float) -> Iterator[Finding]:
    """Try every promise of one part of a policy; only the first, if it does not answer as it must.

    Args:
        part: its key in the bundle.
        subjects: the same router in several worlds.
        limit_us: what an answer may take, microseconds, as the median.
    """
    plain: list[list[int]] = []
    spent_ns: list[int] = []

    def answers() -> str:
        for make, questions in subjects:
            plain.append(list(_answers(make(), questions, spent_ns)))
        return f"{len(spent_ns)} allowed"

    found = check(part, ANSWERS, answers)
    yield found
    if not found.passed:
        return
    yield check(part, "deterministic", lambda: _deterministic(subjects, plain))
    if subjects[0].make().reads_load:
        yield Finding(part, "reads_load", None, "not promised")
    else:
        yield check(part, "reads_load", lambda: _blind(subjects, plain))
    yield check(part, "time", lambda: time_of(spent_ns, limit_us))


def _answers(router: AskedRouter, questions: Sequence[Question], spent_ns: list[int]) -> Iterator[int]:
    for request, candidates in questions:
        started = time.perf_counter_ns()
        chosen = router.route(request, candidates)
        spent_ns.append(time.perf_counter_ns() - started)
        yield chosen


def _deterministic(subjects: Sequence[RouterSubject], plain: Sequence[Sequence[int]]) -> str:
    """Ask a new one, while another is asked something else: none may know of the other."""
    for number, ((make, questions), before) in enumerate(zip(subjects, plain, strict=True)):
        make_other, others = subjects[number - 1]
        both = zip_longest(_answers(make(), questions, []), _answers(make_other(), others[: len(questions)], []))
        _same(questions, before, [one for one, _ in both], "a second router, asked the same, answers")
    return "alone and beside another"


def _blind(subjects: Sequence[RouterSubject], plain: Sequence[Sequence[int]]) -> str:
    for (make, questions), before in zip(subjects, plain, strict=True):
        hidden = [Question(request, (UNREAD,) * len(candidates)) for request, candidates in questions]
        _same(questions, before, list(_answers(make(), hidden, [])), "with all loads hidden")
    return "loads do not matter"


def _same(questions: Sequence[Question], before: Sequence[int], again: Sequence[int], how: str) -> None:
    for (request, candidates), one, two in zip(questions, before, again, strict=True):
        if one != two:
            which = f"request {request.request_id} with {len(candidates)} candidates"
            raise Broken(f"for {which} it answers {one}, but {how} {two}")
