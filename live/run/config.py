"""The configuration of `voltana-live`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

from pydantic import Field

from voltana.app.config import RunConfig
from voltana.app.serving import Part
from voltana.errors import UserError
from voltana.live.router.settings import RouterSettings
from voltana.section import Positive, Seconds, Section
from voltana.state import PHASES

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
    frozen_s: Positive
    """A server of ours that publishes nothing for so long is killed."""


def check(config: LiveConfig) -> LiveConfig:
    """Return the configuration if it makes sense for a live run.

    Raises:
        UserError: names the key, what was found and what is allowed.
    """
    low, high = config.client.token_ids
    if low >= high:
        raise UserError(f"client.token_ids: found {[low, high]}, allowed: a lower and a higher bound")
    for phase in PHASES:
        if own := {key: value for key, value in config.cluster.side(phase) if value is not None}:
            key, value = next(iter(own.items()))
            raise UserError(f"cluster.{phase}.{key}: found {value}, allowed: null; live servers are all of one kind")
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
