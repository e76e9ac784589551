"""The options and the environment with which stock SGLang servers are started.

A flag is an entry of a mapping: its name without dashes, and True for one without a value, a list for several values;
False and None leave it out. Later mappings win, so a configuration can change or remove any of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from voltana.errors import UserError
from voltana.live.servers import Role

BACKEND = "disaggregation-transfer-backend"
RDMA_DEVICES = Path("/sys/class/infiniband")
Device = Literal["cpu", "cuda"]
Transfer = Literal["rdma", "nvlink", "tcp", "nixl"]


class KvPath(NamedTuple):
    """How the KV cache gets from a prefill to a decode server."""

    backend: str
    """SGLang's name of the library."""
    variables: Mapping[str, str]
    """Environment variables that have it take this way."""


FLAGS: dict[Device, dict[str, Any]] = {
    "cpu": {
        "device": "cpu",
        "attention-backend": "torch_native",
        "cuda-graph-backend-decode": "disabled",
        "cuda-graph-backend-prefill": "disabled",
        "mem-fraction-static": 0.5,  # only a bound here: what others take while it starts counts against it
        "max-total-tokens": 60_000,
        "max-running-requests": 64,
        "sleep-on-idle": True,  # else an idle scheduler eats half a core
        "disable-radix-cache": True,
        "enable-metrics": True,
        "load-snapshot-publish-interval": 1,
        "log-level-http": "warning",
    },
    # As in the published system's demo: graphs up to a batch of 2048, long chunks, no prefix cache.
    "cuda": {
        "device": "cuda",
        "page-size": 1,
        "context-length": 16_384,
        "chunked-prefill-size": 16_384,
        "max-prefill-tokens": 16_384,
        "cuda-graph-max-bs-decode": 2048,
        "decode-attention-backend": "triton",
        "disable-radix-cache": True,
        "enable-metrics": True,
        "load-snapshot-publish-interval": 1,
        "log-level-http": "warning",
    },
}
"""Of all servers on a device."""

DISAGGREGATION_FLAGS: dict[Device, dict[str, Any]] = {
    "cpu": {"disaggregation-decode-retraction-backup": "cpu_tensor"},
    "cuda": {},
}
"""Of prefill and decode servers besides."""

_NVLINK = {"SGLANG_MOONCAKE_CUSTOM_MEM_POOL": "INTRA_NODE_NVLINK", "MC_INTRANODE_NVLINK": "1"}
_TCP = {"MC_FORCE_TCP": "1", "MOONCAKE_PROTOCOL": "tcp"}
TRANSFERS: dict[Device, dict[Transfer, KvPath]] = {
    "cpu": {
        "tcp": KvPath("mooncake", _TCP),
        "nixl": KvPath("nixl", {"UCX_TLS": "tcp,self", "VOLTANA_CPU_SHIMS": "nixl"}),
    },
    "cuda": {
        "rdma": KvPath("mooncake", {}),
        "nvlink": KvPath("mooncake", _NVLINK),
        "tcp": KvPath("mooncake", _TCP),
        "nixl": KvPath("nixl", {}),
    },
}
"""Ways of the KV cache from prefill to decode servers on a device, the one that is taken by default first.

Mooncake takes RDMA if there is a device for it, and else TCP without a word (its `MultiTransport` is built so); NVLink
within a host only if told. NIXL leaves the choice to UCX.
"""

_NO_HEALTH_REQUESTS = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "false"}
"""Else every GET /health of an idle server runs a request: it draws power, and telemetry cannot tell it from others."""

ENVIRONMENT: dict[Device, dict[str, str]] = {
    "cpu": {
        **_NO_HEALTH_REQUESTS,
        "SGLANG_USE_CPU_ENGINE": "1",
        "VOLTANA_CPU_SHIMS": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONWARNINGS": "ignore::UserWarning",  # of everything that needs CUDA
    },
    "cuda": _NO_HEALTH_REQUESTS,
}
"""Environment variables of all servers on a device."""


def kv_path(device: Device, transfer: str | None, flags: Mapping[str, Any]) -> KvPath:
    """The way of the KV cache.

    Args:
        device: where servers run.
        transfer: a key of `TRANSFERS[device]`; None: its first.
        flags: changes to the servers' flags; a library that they name is taken as it is.

    Raises:
        UserError: it cannot be taken there.
    """
    if BACKEND in flags:
        return KvPath(str(flags[BACKEND]), {})
    ways = TRANSFERS[device]
    chosen = next(iter(ways)) if transfer is None else transfer
    possible = [way for way in ways if way != "rdma" or has_rdma()]
    if chosen not in possible:
        why = f" ({RDMA_DEVICES} shows no RDMA device)" if chosen == "rdma" and "rdma" in ways else ""
        raise UserError(f"transfer: found {chosen}, allowed: {', '.join(possible)} on device {device}{why}")
    return ways[chosen]


def has_rdma() -> bool:
    """Whether this host has a device for RDMA."""
    return RDMA_DEVICES.is_dir() and any(RDMA_DEVICES.iterdir())


def server_flags(
    role: Role,
    device: Device,
    path: KvPath,
    common: Mapping[str, Any] | None = None,
    own: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The flags of a server.

    Args:
        role: what it does.
        device: where it runs.
        path: of the KV cache, if it is a prefill or decode server.
        common: changes for all servers.
        own: changes for servers of this role.
    """
    flags = dict(FLAGS[device])
    if role != "unified":
        own_way = {BACKEND: path.backend, "disaggregation-mode": role}
        flags |= DISAGGREGATION_FLAGS[device] | own_way
    return flags | dict(common or {}) | dict(own or {})


def data_parallel(flags: Mapping[str, Any]) -> str | None:
    """The first of the flags that asks for more than one data-parallel rank; None if there is none."""
    names = ("dp-size", "data-parallel-size", "attn-dp-size", "attention-data-parallel-size")
    return next((f"{name}={flags[name]}" for name in names if flags.get(name) not in (None, False, 1, "1")), None)


def arguments(flags: Mapping[str, Any]) -> list[str]:
    """Flags as they stand on a command line."""
    words: list[str] = []
    for name, value in flags.items():
        if value is None or value is False:
            continue
        words.append(f"--{name}")
        if value is not True:
            words += [str(each) for each in value] if isinstance(value, list | tuple) else [str(value)]
    return words
