"""Building policies from configuration.

A policy asks for what it needs by the names of its constructor's positional parameters. A world offers

    phase                "prefill" or "decode"; of the instance (controllers)
    slo                  the latency objectives
    clocks_mhz           clocks the GPU supports, ascending
    predictor            the fitted EcoPred
    kv_capacity_tokens   KV tokens that a decode instance holds
    power_limits_w       lowest and highest power cap that a GPU takes
    seed                 an integer of its own

and nothing else, so a policy cannot come to depend on a world. Only oracles ask for `truth`, what the batch about to
run would really cost; the simulator offers it, a live world cannot. A policy's other parameters are keyword-only and
come from its YAML file.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from voltana.errors import UserError


def build_policy(key: str, config: Mapping[str, Any], offers: Mapping[str, Callable[[], Any]]) -> Any:
    """Build the policy that a configuration names by `_target_`.

    Args:
        key: where the configuration stands, for messages.
        config: `_target_` and the keyword parameters.
        offers: a maker for every name that may be asked for; called only if it is.

    Raises:
        UserError: no such class, an unknown parameter or a bad value.
    """
    target = _locate(key, config.get("_target_"))
    parameters = {name: value for name, value in config.items() if name != "_target_"}
    signature = inspect.signature(target).parameters.values()
    asked = [p.name for p in signature if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    allowed = {p.name: p.default is p.empty for p in signature if p.kind is p.KEYWORD_ONLY}
    strange = [name for name in asked if name not in offers]
    if strange:
        raise UserError(f"{key}: {target.__name__} asks for {', '.join(strange)}, offered: {', '.join(offers)}")
    _check_names(key, target, allowed, parameters)
    try:
        return target(*(offers[name]() for name in asked), **parameters)
    except UserError as error:
        raise UserError(f"{key}.{error}" if str(error).split(":")[0] in allowed else str(error)) from error


def _locate(key: str, path: object) -> Callable[..., Any]:
    allowed = "allowed: the dotted path of a class"
    if not isinstance(path, str) or "." not in path:
        raise UserError(f"{key}._target_: found {path!r}, {allowed}")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{key}._target_: found {path!r}, {allowed} ({reason})") from error
    if not isinstance(found, type):
        raise UserError(f"{key}._target_: found {path!r}, {allowed} (it is a {type(found).__name__})")
    return found


def _check_names(key: str, target: Callable[..., Any], allowed: Mapping[str, bool], given: Mapping[str, Any]) -> None:
    unknown = [name for name in given if name not in allowed]
    if unknown:
        choice = ", ".join(allowed) or "no parameters"
        raise UserError(f"{key}.{unknown[0]}: unknown to {target.__name__}, allowed: {choice}")
    missing = [name for name, required in allowed.items() if required and name not in given]
    if missing:
        raise UserError(f"{key}.{missing[0]}: missing; {target.__name__} has no default for it")
