"""A policy gets what it asks for by name, its parameters from YAML, and every mistake is one line with its key."""

import importlib
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from voltana import checks, conf
from voltana.app.resolve import resolve
from voltana.errors import PolicyError, UserError
from voltana.policies.build import build_policy, shipped
from voltana.prediction.ecopred import EcoPred
from voltana.state import Decision, InstanceLoad, LoadSnapshot, PrefillScheduler, RequestInfo, Slo

CONF = Path(next(iter(conf.__path__)))
IDLE = LoadSnapshot(0.0, 1410, 0, 0, 0, 0, 0.0, 9.0, 0, 0)

Offers = dict[str, Callable[[], Any]]
SHIPPED = [path for group in ("frequency", "router") for path in sorted((CONF / group).glob("*.yaml"))]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


class Plain:
    """Asks for nothing."""


class Curious:
    """Asks for two of the things offered and has a parameter of its own."""

    def __init__(self, seed: int, phase: str, *, gain: float = 1.0) -> None:
        self.got = (seed, phase, checks.number("gain", gain, above=0))


class Demanding:
    """Has a parameter without a default."""

    def __init__(self, *, target_w: float) -> None:
        self.target_w = target_w


class Cheating:
    """Asks for the truth."""

    def __init__(self, slo: Slo, plant: object, requests: object) -> None:
        raise AssertionError("must not be built")


class Broken:
    """Has a bug."""

    def __init__(self) -> None:
        raise ZeroDivisionError("our bug")


def target(policy: type) -> str:
    return f"{__name__}.{policy.__name__}"


def nothing() -> Any:
    raise AssertionError("must not be asked for")


OFFERED = ("phase", "slo", "clocks_mhz", "predictor", "kv_capacity_tokens", "power_limits_w", "seed", "truth")
NOTHING: Offers = dict.fromkeys(OFFERED, nothing)


@pytest.fixture
def offers(slo: Slo, clocks: tuple[int, ...], predictor: EcoPred) -> Offers:
    return {
        "phase": lambda: "decode",
        "slo": lambda: slo,
        "clocks_mhz": lambda: clocks,
        "predictor": lambda: predictor,
        "kv_capacity_tokens": lambda: 400_000,
        "power_limits_w": lambda: (100.0, 400.0),
        "seed": lambda: 7,
        "truth": object,
    }


def test_injects_by_name_whatever_the_order(offers: Offers) -> None:
    built = build_policy("policy.x", {"_target_": target(Curious), "gain": 2}, offers)
    assert built.got == (7, "decode", 2)


def test_nothing_is_made_that_was_not_asked_for() -> None:
    assert isinstance(build_policy("policy.x", {"_target_": target(Plain)}, NOTHING), Plain)
    made = NOTHING | {"seed": lambda: 3, "phase": lambda: "prefill"}
    assert build_policy("policy.x", {"_target_": target(Curious)}, made).got == (3, "prefill", 1.0)


def test_nothing_is_made_for_a_policy_that_is_refused() -> None:
    with pytest.raises(UserError):
        build_policy("policy.x", {"_target_": target(Curious), "gian": 2}, NOTHING)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"gain": 1}, "policy.x._target_: found None, allowed: the dotted path of a class"),
        ({"_target_": 5}, "policy.x._target_: found 5, allowed: the dotted path of a class"),
        (
            {"_target_": "nowhere.Policy"},
            "policy.x._target_: found 'nowhere.Policy', allowed: the dotted path of a class (",
        ),
        (
            {"_target_": "voltana.policies.ecofreq.Nope"},
            "policy.x._target_: found 'voltana.policies.ecofreq.Nope', allowed: ",
        ),
        (
            {"_target_": "voltana.policies.build.build_policy"},
            "policy.x._target_: found 'voltana.policies.build.build_policy', allowed: ",
        ),
        ({"_target_": target(Curious), "gian": 2}, "policy.x.gian: unknown to Curious, allowed: gain"),
        ({"_target_": target(Curious), "seed": 2}, "policy.x.seed: unknown to Curious, allowed: gain"),
        ({"_target_": target(Plain), "gain": 2}, "policy.x.gain: unknown to Plain, allowed: no parameters"),
        ({"_target_": target(Demanding)}, "policy.x.target_w: missing; Demanding has no default for it"),
        ({"_target_": target(Cheating)}, f"policy.x: Cheating asks for plant, requests, offered: {', '.join(OFFERED)}"),
        ({"_target_": target(Curious), "gain": -1}, "policy.x.gain: found -1, allowed: a number > 0"),
    ],
)
def test_a_mistake_is_named_with_its_key(offers: Offers, config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_policy("policy.x", config, offers)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_bad_input_of_an_offer_keeps_its_own_name() -> None:
    def missing_file() -> Any:
        raise UserError("ecopred.json: cannot be read")

    config = {"_target_": "voltana.policies.ecoroute.EcoRoute", **shipped("router/ecoroute")}
    offers = NOTHING | {"slo": lambda: Slo(1, 1), "clocks_mhz": lambda: (1005, 1410), "predictor": missing_file}
    with pytest.raises(UserError, match=r"^ecopred\.json: cannot be read$"):
        build_policy("policy.x", config, offers)


def test_what_a_constructor_raises_is_told_with_its_traceback() -> None:
    with pytest.raises(PolicyError, match="Broken raised ZeroDivisionError: our bug") as caught:
        build_policy("policy.x", {"_target_": target(Broken)}, NOTHING)
    assert (
        "in __init__" in caught.value.traceback_text and "voltana/policies/build.py" not in caught.value.traceback_text
    )


# What we ship.


@pytest.fixture
def hydra() -> Iterator[None]:
    with initialize_config_module("voltana.conf", version_base="1.3"):
        yield
    GlobalHydra.instance().clear()


@cache
def _composed(*overrides: str) -> dict[str, Any]:
    policy: dict[str, Any] = resolve(compose("sim", ["hydra/launcher=basic", *overrides]))["policy"]
    return policy


def composed(*overrides: str) -> dict[str, Any]:
    """The policy part of `conf/sim.yaml`, without the launcher of sweeps."""
    return deepcopy(_composed(*overrides))


def in_both_phases(group: str, part: str, name: str) -> list[str]:
    """A part in either phase, so that one composition serves the tests of both."""
    return ["policy=static_max", *(f"{group}@policy.{phase}_{part}={name}" for phase in ("prefill", "decode"))]


def assert_decides(controller: Any, clocks: tuple[int, ...]) -> None:
    decision = controller.decide(IDLE)
    assert isinstance(decision, Decision)
    assert decision.clock_mhz in clocks


def assert_routes(router: Any) -> None:
    request = RequestInfo(0, 0.0, 100)
    if isinstance(router, PrefillScheduler):
        assert router.schedule(0.0, [request], [InstanceLoad(1410, 0, 0)] * 2).sends in (((0, 0),), ((0, 1),))
    else:
        assert router.route(request, [InstanceLoad(1410, 200, 9000)] * 2) in (0, 1)


def scheduler(offers: Offers) -> Any:
    return build_policy("policy.x", composed("policy=voltana_next")["prefill_router"], offers)


@pytest.mark.slow
@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize("name", options("frequency"))
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_every_controller_we_ship_builds(offers: Offers, clocks: tuple[int, ...], name: str, phase: str) -> None:
    config = composed(*in_both_phases("frequency", "controller", name))[f"{phase}_controller"]
    given = offers | {"phase": lambda: phase, "scheduler": lambda: scheduler(offers), "instance": lambda: 0}
    controller = build_policy("policy.x", config, given)
    assert_decides(controller, clocks)


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize("name", options("router"))
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_every_router_we_ship_builds(offers: Offers, name: str, phase: str) -> None:
    config = composed(*in_both_phases("router", "router", name))[f"{phase}_router"]
    assert_routes(build_policy("policy.x", config, offers | {"phase": lambda: phase}))


@pytest.mark.slow
@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize("name", options("policy"))
def test_every_bundle_we_ship_composes_and_builds(offers: Offers, clocks: tuple[int, ...], name: str) -> None:
    policy = composed(f"policy={name}")
    parts = {f"{phase}_{part}" for phase in ("prefill", "decode") for part in ("controller", "router")}
    assert set(policy) == {"name", *parts}
    assert policy["name"] == name
    for phase in ("prefill", "decode"):
        mine = offers | {"phase": lambda phase=phase: phase, "instance": lambda: 0}
        if phase == "prefill":
            before = build_policy("policy.x", policy["prefill_router"], mine)
            mine["scheduler"] = lambda before=before: before
        assert_decides(build_policy("policy.x", policy[f"{phase}_controller"], mine), clocks)
        assert_routes(build_policy("policy.x", policy[f"{phase}_router"], mine))


@pytest.mark.usefixtures("hydra")
def test_the_released_controller_differs_from_the_published_in_what_it_controls_to_alone() -> None:
    published, released = (composed(f"policy={name}")["decode_controller"] for name in ("voltana", "voltana_released"))
    assert [(each["margin"], each["objective_ms"]) for each in (published, released)] == [(0.25, None), (-0.35, 50)]
    changed = {"margin": None, "objective_ms": None}
    assert published | changed == released | changed


@pytest.mark.usefixtures("hydra")
@pytest.mark.parametrize("itl_s", [0.02, 0.06, 0.09])
def test_the_released_bundle_has_its_own_budgets_whatever_the_objectives(offers: Offers, itl_s: float) -> None:
    policy = composed("policy=voltana_released")
    given = offers | {"slo": lambda: Slo(10 * itl_s, itl_s)}
    for phase, budget_s in (("prefill", 1.08), ("decode", 0.0675)):
        mine = given | {"phase": lambda phase=phase: phase}
        assert build_policy("policy.x", policy[f"{phase}_controller"], mine)._objective_s == pytest.approx(budget_s)
    router = build_policy("policy.decode_router", policy["decode_router"], given)
    assert router._space._budget_s == pytest.approx(0.05)
    assert router.at_arrival


@pytest.mark.parametrize("group", ["frequency", "router", "scheduler"])
def test_every_part_we_ship_says_what_it_is(group: str) -> None:
    for name in options(group):
        text = (CONF / group / f"{name}.yaml").read_text()
        assert text.startswith("# ")
        assert {"_target_", "defaults"} & set(yaml.safe_load(text))


def test_every_rival_says_what_is_fitted_by_us() -> None:
    targets = {str(yaml.safe_load(path.read_text()).get("_target_")) for path in (CONF / "frequency").glob("*.yaml")}
    ours = ("ecofreq", "ecofreq_online", "pace", "queue", "static", "oracle")
    rivals = sorted(target for target in targets if target.startswith("voltana.") and target.split(".")[2] not in ours)
    assert len(rivals) >= 10
    for target in rivals:
        module, _, name = target.rpartition(".")
        assert "**Fitted by us**" in str(getattr(importlib.import_module(module), name).__doc__), target


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_parameter_of_a_shipped_policy_has_one_default_its_files(path: Path) -> None:
    """A constructor has none; the file has all of them and no other."""
    parameters = shipped(f"{path.parent.name}/{path.stem}")
    (target,) = set(re.findall(r"^_target_: (.*)$", "".join(f.read_text() for f in family(path)), re.MULTILINE))
    module, _, name = target.rpartition(".")
    own = [
        p
        for p in signature(getattr(importlib.import_module(module), name)).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    ]
    assert set(parameters) == {p.name for p in own}
    assert [p.name for p in own if p.default is not p.empty] == []


def family(path: Path) -> list[Path]:
    """A file of `conf/` and those that it derives from."""
    bases = [base for base in yaml.safe_load(path.read_text()).get("defaults", []) if base != "_self_"]
    return [path, *(each for base in bases for each in family(path.with_name(f"{base}.yaml")))]
