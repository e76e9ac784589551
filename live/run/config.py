"""The configuration of `voltana-live`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
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


def gpu_groups(found: Any, names: list[str], tp: int, owners: Mapping[str, str] | None = None) -> dict[str, list[int]]:
    """The GPUs of each instance.

    Args:
        found: `servers.gpus`: a list of indices per instance, or None for consecutive ones on each host.
        names: of the instances.
        tp: GPUs of an instance.
        owners: who owns the clocks of an instance's GPUs, which stands for its host; those not named are on this one.

    Raises:
        UserError: another number of lists, or of GPUs in one, or a GPU of a host that is named twice.
    """
    owner_of = {name: (owners or {}).get(name, "") for name in names}
    if found is None:
        next_gpu = Counter[str]()
        groups = {}
        for name in names:
            first = next_gpu[owner_of[name]]
            groups[name] = list(range(first, first + tp))
            next_gpu[owner_of[name]] += tp
        return groups
    allowed = f"allowed: a list of {tp} GPU indices for each of the {len(names)} servers, each GPU of a host once"
    lists = found if isinstance(found, list) else []
    if len(lists) != len(names) or not all(isinstance(group, list) and len(group) == tp for group in lists):
        raise UserError(f"servers.gpus: found {found}, {allowed}")
    for gpu in (gpu for group in lists for gpu in group):
        if isinstance(gpu, bool) or not isinstance(gpu, int):
            raise UserError(f"servers.gpus: found {gpu!r}, {allowed}")
        checks.number("servers.gpus", gpu, low=0)
    places = [(owner_of[name], gpu) for name, group in zip(names, lists, strict=True) for gpu in group]
    if len(set(places)) < len(places):
        raise UserError(f"servers.gpus: found {found}, {allowed}")
    return dict(zip(names, lists, strict=True))
