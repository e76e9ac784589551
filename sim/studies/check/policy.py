"""All checks of a policy."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from voltana.app.bundle import Bundle, build_bundle
from voltana.policies.asked import AskedController, AskedRouter, AskedScheduler
from voltana.prediction.ecopred import EcoPred
from voltana.section import parse
from voltana.sim.run.build import RunBuilder
from voltana.sim.run.config import SimConfig
from voltana.sim.studies.check.config import CheckConfig
from voltana.sim.studies.check.controllers import Subject, check_controller
from voltana.sim.studies.check.engines import same_records
from voltana.sim.studies.check.finding import ANSWERS, Broken, Finding, check
from voltana.sim.studies.check.histories import Question, World, drawn_questions, record_worlds
from voltana.sim.studies.check.routers import RouterSubject, check_router
from voltana.sim.studies.check.schedulers import check_scheduler
from voltana.state import PHASES, Phase

ENGINES = "both engines agree"


def check_policy(values: Mapping[str, Any], worlds: Sequence[World] | None = None) -> list[Finding]:
    """Check all parts of a policy on recorded histories, then the whole on a short trace.

    Args:
        values: the resolved configuration (`conf/check.yaml`).
        worlds: what was recorded for another policy with the same configuration; None: record it now.

    Raises:
        UserError, PolicyError: the configuration is wrong, or the policy cannot be built.
    """
    settings = parse(CheckConfig, values).check
    run = {key: value for key, value in values.items() if key != "check"}
    worlds = worlds or list(record_worlds(run, settings.requests))
    places = [_Place(world, run["policy"]) for world in worlds]
    findings: list[Finding] = []
    for phase in PHASES:
        controllers = [place.controller(phase) for place in places]
        findings += check_controller(f"{phase}_controller", controllers, settings.decision_us)
    for phase in PHASES:
        if phase == "prefill" and isinstance(places[0].scheduler(), AskedScheduler):
            top_mhz, requests = places[0].clocks_mhz(phase)[-1], settings.requests
            findings += check_scheduler(f"{phase}_router", places[0].scheduler, requests, top_mhz, settings.decision_us)
            continue
        routers = [place.router(phase, place.world.questions[phase]) for place in places]
        drawn = drawn_questions(places[0].clocks_mhz(phase), settings.questions, run["seed"])
        routers.append(places[0].router(phase, drawn))
        findings += check_router(f"{phase}_router", routers, settings.decision_us)
    findings.append(check("all", "no mutation", lambda: _untouched(places)))
    if any(finding.check == ANSWERS and not finding.passed for finding in findings):
        return [*findings, Finding("all", ENGINES, None, "not run, since not all answers are allowed")]
    with tempfile.TemporaryDirectory() as folder:
        trace = {**run, "requests": settings.requests, "duration_s": None}
        return [*findings, check("all", ENGINES, lambda: same_records(trace, Path(folder)))]


class _Place:
    """One world with the policy built for it, as often as wanted, each time from the same offers."""

    def __init__(self, world: World, policy: Mapping[str, Any]) -> None:
        self.world = world
        self._config = parse(SimConfig, {**world.values, "policy": policy})
        self._builder = RunBuilder(self._config)
        self._given: dict[Phase, tuple[EcoPred, str]] = {}
        self._offers = [
            replace(self._builder.offers(phase), predictor=partial(self._predictor, phase)) for phase in PHASES
        ]

    def clocks_mhz(self, phase: Phase) -> Sequence[int]:
        """Clocks of a phase's GPU."""
        return self._builder.plants.of(phase).gpu.clocks()

    def _predictor(self, phase: Phase) -> EcoPred:
        if phase not in self._given:
            predictor = self._builder.offers(phase).predictor()
            self._given[phase] = predictor, predictor.as_json()
        return self._given[phase][0]

    @property
    def untouched(self) -> bool:
        """Whether the predictors that were given still say what they said."""
        return all(predictor.as_json() == said for predictor, said in self._given.values())

    def _bundle(self) -> Bundle:
        return build_bundle(self._config, *self._offers)

    def controller(self, phase: Phase) -> Subject:
        """The controller of the first instance of a phase."""

        def make() -> AskedController:
            bundle = self._bundle()
            controllers = bundle.prefill_controllers if phase == "prefill" else bundle.decode_controllers
            return cast(AskedController, controllers[0])

        return Subject(make, self.world.snapshots[phase], self._builder.plants.of(phase), phase)

    def scheduler(self) -> AskedScheduler:
        """What stands before prefill, if that is a scheduler."""
        return cast(AskedScheduler, self._bundle().prefill_router)

    def router(self, phase: Phase, questions: list[Question]) -> RouterSubject:
        """The router of a phase."""

        def make() -> AskedRouter:
            bundle = self._bundle()
            return cast(AskedRouter, bundle.prefill_router if phase == "prefill" else bundle.decode_router)

        return RouterSubject(make, questions)


def _untouched(places: list[_Place]) -> str:
    if not all(place.untouched for place in places):
        raise Broken("it changed the predictor, which all instances share")
    return "the predictor is as it was"
