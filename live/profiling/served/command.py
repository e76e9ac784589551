"""The source `sglang` of voltana-profile: a prefill and a decode server that run, or an emulated pair."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from voltana import checks
from voltana.app.compose import instantiate
from voltana.errors import UserError
from voltana.live.clocks.control import Control, SimulatedControl
from voltana.live.gpus.emulated import EmulatedGpus
from voltana.live.gpus.owned import OwnedGpus
from voltana.live.gpus.visible import told_by_uuid
from voltana.live.profiling.served.run import profile_pair
from voltana.live.profiling.served.settings import ServedSettings
from voltana.live.run.fleet import attached_endpoint
from voltana.live.servers.emulated.cluster import EmulatedCluster
from voltana.section import parse
from voltana.sim.plant import GpuSpec

OWN = ("servers", "control", "gpus")
"""Keys of the section `profile` that say on what to measure, not how."""


def profile_servers(values: Mapping[str, Any], out: Path) -> None:
    """Measure, and write the profile table, a JSON file beside it that says what was measured how, and a journal.

    Args:
        values: the resolved configuration of voltana-profile.
        out: the table to write.

    Raises:
        UserError: a bad setting; servers, owner of clocks or a journal found that refuse.
        KeyboardInterrupt: what was measured is in the table; the same command goes on.
    """
    section = dict(values["profile"])
    servers, control, gpus = (section.pop(key, None) for key in OWN)
    settings = parse(ServedSettings, section, "profile")
    about = {"model": values["model"].get("name")}
    if servers == "emulated":
        asyncio.run(_emulated(values, settings, out, about))
        return
    if not isinstance(servers, Mapping) or set(servers) != {"prefill", "decode"}:
        allowed = "emulated, or a mapping with prefill and decode"
        raise UserError(f"profile.servers: found {servers!r}, allowed: {allowed}")
    prefill = attached_endpoint("prefill", 0, servers["prefill"], "profile.servers.prefill")
    decode = attached_endpoint("decode", 0, servers["decode"], "profile.servers.decode")
    tp = int(checks.number("model.tp", values["model"].get("tp", 1), low=1))
    made: Control = instantiate(control or {})
    groups = told_by_uuid(gpus, [prefill.name, decode.name], tp, real=not isinstance(made, SimulatedControl))
    held = OwnedGpus(made, groups, "voltana-profile", drives=False)
    asyncio.run(profile_pair(prefill, decode, held, settings, out, about))


async def _emulated(values: Mapping[str, Any], settings: ServedSettings, out: Path, about: Mapping[str, Any]) -> None:
    gpu = dict(values["gpu"])
    plant = {"gpu": gpu, "model": values["model"], "engine": values["serving"]["engine"]}
    async with EmulatedCluster(1, 1, plant) as cluster:
        model = f"emulated {gpu.get('name')}"
        gpus = EmulatedGpus(list(cluster.endpoints), parse(GpuSpec, gpu, "gpu").clocks(), model=model)
        await profile_pair(cluster.of("prefill")[0], cluster.of("decode")[0], gpus, settings, out, about)
