"""A policy gets numbers that a live system can know: nothing it is given leads to the plant or to the future."""

import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import voltana.policies.build
from voltana.record import RunRecord

WORLD = ("voltana.sim", "voltana.traces", "voltana.live", "simpy", "numpy.random")
FUTURE = ("output_tokens", "output", "finish_s")


def _reachable(root: object) -> Iterator[object]:
    """Everything an object leads to by attributes, items and closures."""
    seen: set[int] = set()
    todo = [root]
    while todo:
        thing = todo.pop()
        if id(thing) in seen or isinstance(thing, type | types.ModuleType | str | int | float | None):
            continue
        seen.add(id(thing))
        yield thing
        todo += _parts(thing)


def _parts(thing: Any) -> list[object]:
    parts = [getattr(thing, name, None) for name in _slots(type(thing))] + list(getattr(thing, "__dict__", {}).values())
    if isinstance(thing, dict):
        parts += [*thing.keys(), *thing.values()]
    elif isinstance(thing, list | tuple | set | frozenset):
        parts += list(thing)
    parts += [cell.cell_contents for cell in getattr(thing, "__closure__", None) or ()]
    parts += [
        getattr(thing, name, None) for name in ("__self__", "__wrapped__", "func", "args", "keywords", "gi_frame")
    ]
    return parts


def _slots(kind: type) -> list[str]:
    return [name for base in kind.__mro__ for name in getattr(base, "__slots__", ())]


def _offences(thing: object) -> Iterator[str]:
    for part in _reachable(thing):
        module = type(part).__module__ or ""
        if f"{module}.".startswith(tuple(f"{world}." for world in WORLD)):
            yield f"reaches a {module}.{type(part).__name__}"
        named = [*_slots(type(part)), *getattr(part, "__dict__", {}), *(part if isinstance(part, dict) else ())]
        yield from (f"reads {name} of a {type(part).__name__}" for name in named if name in FUTURE)


def _spied(method: Callable[..., object], given: list[object]) -> Callable[..., object]:
    """A method of a policy whose arguments are all kept."""

    def ask(*arguments: object) -> object:
        given.extend(arguments)
        return method(*arguments)

    return ask


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["static_1005", "voltana", "voltana_released", "voltana_next"])
def test_no_way_leads_to_the_plant_or_the_future(
    run: Callable[..., RunRecord], policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[object] = []
    policies: list[object] = []
    build = voltana.policies.build.build_policy

    def spy(key: str, config: Any, offers: Any) -> Any:
        made = build(key, config, {name: _note(offer, given) for name, offer in offers.items()})
        policies.append(made)
        for method in ("decide", "route", "schedule"):
            if hasattr(made, method):
                setattr(made, method, _spied(getattr(made, method), given))
        return made

    monkeypatch.setattr("voltana.app.bundle.build_policy", spy)
    run(f"policy={policy}", "requests=30")
    assert len(policies) == 6 and len(given) > 100
    offences = {offence for thing in [*given, *policies] for offence in _offences(thing)}
    assert not offences


def _note(offer: Callable[[], object], given: list[object]) -> Callable[[], object]:
    def make() -> object:
        thing = offer()
        given.append(thing)
        return thing

    return make


def test_the_inspection_finds_what_it_should() -> None:
    """The test above can fail."""
    from voltana.sim.serving.job import Job
    from voltana.traces import Request

    job = Job(Request(0, 0.0, 5, 7))
    for hidden in ({"deep": [job]}, lambda: job, job.row):
        assert set(_offences(hidden))
