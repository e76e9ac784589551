"""The configuration of `voltana-live`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import Field

from voltana import checks
from voltana.app.config import RunConfig
from voltana.app.serving import Part
from voltana.errors import UserError
from voltana.live.router.settings import RouterSettings
from voltana.section import Seconds, Section

TokenId = Annotated[int, Field(ge=0, strict=True)]


class ClientConfig(Section):
    """`client`."""

    token_ids: tuple[TokenId, TokenId]


class LiveConfig(RunConfig):
    """The whole configuration of `voltana-live`."""

    servers: Part
    control: Part
    router: RouterSettings
    client: ClientConfig
    drain_s: Seconds


def check(config: LiveConfig) -> LiveConfig:
    """Return the configuration if it makes sense for a live run.

    Raises:
        UserError: names the key, what was found and what is allowed.
    """
    low, high = config.client.token_ids
    if low >= high:
        raise UserError(f"client.token_ids: found {[low, high]}, allowed: a lower and a higher bound")
    if config.serving.latency_noise:
        found = f"{config.serving.latency_noise:g}"
        raise UserError(f"serving.latency_noise: found {found}, allowed: 0; live servers have noise of their own")
    return config


@contextmanager
def of_section(name: str) -> Iterator[None]:
    """Say in a `UserError` in which section the key is that it names."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{name}.{error}") from error


def gpu_groups(found: Any, names: list[str], tp: int) -> dict[str, list[int]]:
    """The GPUs of each instance.

    Args:
        found: `servers.gpus`: a list of indices per instance, or None for consecutive ones.
        names: of the instances.
        tp: GPUs of an instance.

    Raises:
        UserError: another number of lists, or of GPUs in one, or a GPU that is named twice.
    """
    if found is None:
        return {name: list(range(tp * place, tp * (place + 1))) for place, name in enumerate(names)}
    allowed = f"allowed: a list of {tp} GPU indices for each of the {len(names)} servers, each GPU once"
    lists = found if isinstance(found, list) else []
    indices = [gpu for group in lists if isinstance(group, list) for gpu in group]
    fits = len(lists) == len(names) and all(isinstance(group, list) and len(group) == tp for group in lists)
    if not fits or len(set(indices)) < len(indices):
        raise UserError(f"servers.gpus: found {found}, {allowed}")
    for gpu in indices:
        if not isinstance(gpu, int):
            raise UserError(f"servers.gpus: found {gpu!r}, {allowed}")
        checks.number("servers.gpus", gpu, low=0)
    return dict(zip(names, lists, strict=True))
