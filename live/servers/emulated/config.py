"""What an emulated server is told: one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, model_validator

from voltana import conf
from voltana.app.serving import DecodeServing, Link, PrefillLimits
from voltana.errors import UserError
from voltana.section import Count, Seconds, Section, WholeNumber, parse
from voltana.sim.plant import EngineSpec, GpuSpec, ModelSpec, Plant
from voltana.sim.plant.build import decode_limits
from voltana.state import Phase

Port = Annotated[int, Field(ge=0, le=65535, strict=True)]


def _one_or_more(value: int) -> int:
    if value < 1:
        raise ValueError("1 or more")
    return value


class ServerConfig(Section):
    """One emulated server; `gpu`, `model` and `engine` make its plant.

    What is left out of `prefill`, `decode` and `link` is as in `conf/serving` and `conf/cluster`.
    """

    name: str
    phase: Phase
    gpu: GpuSpec
    model: ModelSpec
    engine: EngineSpec = EngineSpec()
    host: str = "127.0.0.1"
    port: Port = 0
    """0: the system chooses; see what the process prints."""
    bootstrap_port: Port = 0
    """Prefill: where decode servers ask for KV caches."""
    telemetry: str | None = None
    """Endpoint to publish load snapshots on."""
    served_model_name: str = "emulated"
    clock_mhz: Count | None = None
    """At the start; None: the highest."""
    settle_s: Seconds = 0.0
    """From a clock command until it is in force."""
    prefill: PrefillLimits
    decode: DecodeServing
    link: Link
    stream_interval: Annotated[int, Field(strict=True), AfterValidator(_one_or_more)] = 1
    """Tokens per chunk of a stream, after the first."""
    max_queued: WholeNumber | None = None
    """Requests that wait; more are refused."""
    pair_timeout_s: Seconds = 300.0
    """A request whose other half does not come fails after this."""

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        merged = dict(given)
        for key, shipped in _shipped().items():
            part = given.get(key, {})
            merged[key] = {**shipped, **part} if isinstance(part, Mapping) else part
        return merged


@cache
def _shipped() -> dict[str, dict[str, Any]]:
    folder = Path(conf.__path__[0])
    serving, cluster = (
        yaml.safe_load((folder / at).read_text()) for at in ("serving/sglang.yaml", "cluster/2p2d.yaml")
    )
    return {"prefill": serving["prefill"], "decode": serving["decode"], "link": cluster["link"]}


def load_config(path: Path) -> ServerConfig:
    """Read a configuration file.

    Raises:
        UserError: it is missing or malformed, or a key is unknown, missing or out of range.
    """
    try:
        return parse(ServerConfig, json.loads(path.read_bytes()))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (ValueError, UserError) as error:
        raise UserError(f"{path}: {error}") from error


def build_plant(config: ServerConfig) -> Plant:
    """The physics of the server's GPUs.

    Raises:
        UserError: a clock that the GPU does not have, or more KV tokens than fit.
    """
    plant = Plant(config.gpu, config.model, config.engine)
    clocks = plant.gpu.clocks()
    if config.clock_mhz is not None and config.clock_mhz not in clocks:
        raise UserError(f"clock_mhz: found {config.clock_mhz}, allowed: {clocks[0]} to {clocks[-1]}, those of the GPU")
    decode_limits(config.decode, plant, "decode")
    return plant
