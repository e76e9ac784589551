"""Building policies from configuration.

A policy asks for what it needs by the names of its constructor's positional parameters. A world offers

    phase                "prefill" or "decode"; of the instance (controllers)
    slo                  the latency objectives
    clocks_mhz           clocks the GPU supports, ascending
    predictor            the fitted EcoPred
    kv_capacity_tokens   KV tokens that a decode instance holds
    power_limits_w       lowest and highest power cap that a GPU takes
    seed                 an integer of its own
    instance             index of the instance within its phase (controllers)
    scheduler            what stands in the place of prefill's router, if that is a scheduler (prefill controllers)

and nothing else, so a policy cannot come to depend on a world. Only oracles ask for `truth`, what the batch about to
run would really cost; the simulator offers it, a live world cannot. A policy's other parameters are keyword-only and
come from its YAML file, which has their defaults: constructors of the shipped policies have none.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from voltana import conf
from voltana.clock_words import in_mhz
from voltana.errors import PolicyError, UserError, told
from voltana.files import parse_yaml


def build_policy(key: str, config: Mapping[str, Any], offers: Mapping[str, Callable[[], Any]]) -> Any:
    """Build the policy that a configuration names by `_target_`.

    Args:
        key: where the configuration stands, for messages.
        config: `_target_` and the keyword parameters.
        offers: a maker for every name that may be asked for; called only if it is.

    Raises:
        PolicyError: no such class, an unknown parameter, a bad value, or the policy's code raised.
        UserError: what was asked for cannot be offered, for the reason it says.
    """
    path = config.get("_target_")
    target = _locate(f"{key}._target_", path)
    parameters = {name: value for name, value in config.items() if name != "_target_"}
    asked, allowed = _parameters(key, target)
    strange = [name for name in asked if name not in offers]
    if strange:
        raise PolicyError(f"{key}: {target.__name__} asks for {', '.join(strange)}, offered: {', '.join(offers)}")
    _check_names(key, target, allowed, parameters)
    offered = [offers[name]() for name in asked]
    try:
        return target(*offered, **parameters)
    except UserError as error:
        raise PolicyError(f"{key}.{error}" if str(error).split(":")[0] in allowed else f"{key}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        message = (
            f"{key}: the constructor of {path} raised {told(error, __name__)}, allowed: one that takes {parameters}"
        )
        raise PolicyError.raised(message, error, __name__) from error


def shipped(choice: str, **changes: Any) -> dict[str, Any]:
    """The parameters of a shipped policy, by default and with changes; clocks are those of the published GPU.

    Args:
        choice: its file below `conf/`, such as `frequency/ecofreq`.
        changes: other values, by parameter.
    """
    values: dict[str, Any] = in_mhz(_shipped(choice), _shipped("gpu/a100_sxm4_80g"))
    values.pop("_target_", None)
    return values | changes


def _shipped(choice: str) -> dict[str, Any]:
    """A file below `conf/` with its bases."""
    group, _, name = choice.partition("/")
    values = parse_yaml((Path(conf.__path__[0]) / group / f"{name}.yaml").read_text())
    bases = [_shipped(f"{group}/{base}") for base in values.pop("defaults", []) if base != "_self_"]
    return {key: value for each in (*bases, values) for key, value in each.items()}


def _locate(key: str, path: object) -> Callable[..., Any]:
    allowed = "allowed: the dotted path of a class"
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")) or "." not in path:
        raise PolicyError(f"{key}: found {path!r}, {allowed}")
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = f"found {path!r}, {allowed} ({told(error, __name__)})"
        if _is_not_there(error, module):
            raise PolicyError(f"{key}: {reason}") from error
        raise PolicyError.raised(f"{key}: {reason}", error, __name__) from error
    if not isinstance(found, type):
        raise PolicyError(f"{key}: found {path!r}, {allowed} (it is a {type(found).__name__})")
    return found


def _is_not_there(error: BaseException, module: str) -> bool:
    """Whether there is no such module, or no such name in it; else it was there and its code raised."""
    if isinstance(error, ModuleNotFoundError):
        return error.name is not None and f"{module}.".startswith(f"{error.name}.")
    return isinstance(error, AttributeError) and getattr(error.obj, "__name__", None) == module


def _parameters(key: str, target: Callable[..., Any]) -> tuple[list[str], dict[str, bool]]:
    """What a constructor asks of the world, and its own parameters with whether they must be given."""
    try:
        signature = inspect.signature(target).parameters.values()
    except (TypeError, ValueError) as error:
        raise PolicyError(f"{key}: found {target.__name__}, allowed: a class whose parameters are known") from error
    asked = [p.name for p in signature if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    return asked, {p.name: p.default is p.empty for p in signature if p.kind is p.KEYWORD_ONLY}


def _check_names(key: str, target: Callable[..., Any], allowed: Mapping[str, bool], given: Mapping[str, Any]) -> None:
    unknown = [name for name in given if name not in allowed]
    if unknown:
        choice = ", ".join(allowed) or "no parameters"
        raise PolicyError(f"{key}.{unknown[0]}: unknown to {target.__name__}, allowed: {choice}")
    missing = [name for name, required in allowed.items() if required and name not in given]
    if missing:
        raise PolicyError(f"{key}.{missing[0]}: missing; {target.__name__} has no default for it")
