"""What an emulated server is told: one JSON file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from voltana.errors import UserError
from voltana.sim.plant import EngineSpec, GpuSpec, ModelSpec, Plant
from voltana.state import Phase


class PrefillConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How a prefill batch is formed, as in `conf/serving`."""

    max_tokens: int = 16384
    """Prompt tokens of a batch. A longer prompt runs alone, unless prompts are chunked."""
    max_requests: int = 512
    chunk_tokens: int | None = None


class DecodeConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What bounds a decode batch, as in `conf/serving`."""

    max_requests: int = 1024
    reserve_tokens: int = 8
    """Room kept for every request of the batch when another one joins."""
    kv_tokens: int | None = None
    """KV tokens that fit; None: what GPU memory leaves."""


class LinkConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The path of KV caches between a prefill and a decode server, as in `conf/cluster`."""

    latency_s: float = 0.002
    bytes_per_s: float = 100e9
    streams: int = 4


class ServerConfig(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One emulated server."""

    name: str
    phase: Phase
    gpu: dict[str, Any]
    """The sections `gpu`, `model` and `serving.engine` of the configuration make the plant."""
    model: dict[str, Any]
    engine: dict[str, Any] = {}
    host: str = "127.0.0.1"
    port: int = 0
    """0: the system chooses; see what the process prints."""
    bootstrap_port: int = 0
    """Prefill: where decode servers ask for KV caches."""
    telemetry: str | None = None
    """Endpoint to publish load snapshots on."""
    served_model_name: str = "emulated"
    clock_mhz: int | None = None
    """At the start; None: the highest."""
    settle_s: float = 0.0
    """From a clock command until it is in force."""
    prefill: PrefillConfig = PrefillConfig()
    decode: DecodeConfig = DecodeConfig()
    link: LinkConfig = LinkConfig()
    stream_interval: int = 1
    """Tokens per chunk of a stream, after the first."""
    max_queued: int | None = None
    """Requests that wait; more are refused."""
    pair_timeout_s: float = 300.0
    """A request whose other half does not come fails after this."""


def load_config(path: Path) -> ServerConfig:
    """Read a configuration file.

    Raises:
        UserError: it is missing or malformed, or a key is unknown, missing or out of range.
    """
    try:
        return check(msgspec.json.decode(path.read_bytes(), type=ServerConfig))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except (msgspec.DecodeError, UserError) as error:
        raise UserError(f"{path}: {error}") from error


def check(config: ServerConfig) -> ServerConfig:
    """Return the configuration if all its values are in range.

    Raises:
        UserError: names the key, what was found and what is allowed.
    """
    at_least_one = {
        "stream_interval": config.stream_interval,
        "prefill.max_tokens": config.prefill.max_tokens,
        "prefill.max_requests": config.prefill.max_requests,
        "prefill.chunk_tokens": config.prefill.chunk_tokens,
        "decode.max_requests": config.decode.max_requests,
        "decode.kv_tokens": config.decode.kv_tokens,
        "link.streams": config.link.streams,
        "link.bytes_per_s": config.link.bytes_per_s,
    }
    not_negative = {
        "settle_s": config.settle_s,
        "link.latency_s": config.link.latency_s,
        "decode.reserve_tokens": config.decode.reserve_tokens,
        "max_queued": config.max_queued,
        "pair_timeout_s": config.pair_timeout_s,
    }
    for limit, values in ((1, at_least_one), (0, not_negative)):
        for key, value in values.items():
            if value is not None and not value >= limit:
                raise UserError(f"{key}: found {value}, allowed: {limit} or more")
    return config


def build_plant(config: ServerConfig) -> Plant:
    """The physics of the server's GPUs.

    Raises:
        UserError: a bad key or value in `gpu`, `model` or `engine`, or a clock that the GPU does not have.
    """
    plant = Plant(
        GpuSpec.from_mapping(config.gpu), ModelSpec.from_mapping(config.model), EngineSpec.from_mapping(config.engine)
    )
    clocks = plant.gpu.clocks()
    if config.clock_mhz is not None and config.clock_mhz not in clocks:
        raise UserError(f"clock_mhz: found {config.clock_mhz}, allowed: {clocks[0]} to {clocks[-1]}, those of the GPU")
    room = plant.kv_capacity_tokens
    if config.decode.kv_tokens is not None and config.decode.kv_tokens > room:
        raise UserError(f"decode.kv_tokens: found {config.decode.kv_tokens}, allowed: up to {room}")
    return plant
