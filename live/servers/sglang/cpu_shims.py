"""An SGLang plugin that lets prefill and decode servers run without a GPU.

Stock SGLang serves on a CPU, but its P/D path takes CUDA for granted in three places: it records CUDA events, it
copies KV indices through pinned memory, and it tells NIXL that the KV cache is in a GPU's memory. SGLang finds this by
the entry point `voltana_cpu_shims` of the group `sglang.srt.plugins`; it does nothing unless VOLTANA_CPU_SHIMS is 1, or
`nixl` for NIXL besides, which `voltana.live.servers.sglang.launch` sets for device `cpu`.
"""

from __future__ import annotations

import os
import time
from typing import Any

USES: dict[str, tuple[str, ...]] = {
    "sglang.srt.disaggregation.mooncake.conn.MooncakeKVSender": ("supports_host_tensor_indices",),
}
"""Classes of SGLang and their attributes that are changed here."""


class HostEvent:
    """Stands in for `torch.cuda.Event` and `torch.cpu.Event`: on a CPU an event is over as soon as it is recorded."""

    def __init__(self, *_: object, **__: object) -> None:
        self._recorded_s = 0.0

    def record(self, stream: object = None) -> None:
        """Note the time."""
        self._recorded_s = time.perf_counter()

    def query(self) -> bool:
        """Whether it is over."""
        return True

    def elapsed_time(self, later: HostEvent) -> float:
        """Time from this event to a later one, ms."""
        return (later._recorded_s - self._recorded_s) * 1e3

    def wait(self, stream: object = None) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


def activate() -> None:
    """What SGLang calls in each of its processes."""
    asked = os.environ.get("VOLTANA_CPU_SHIMS")
    if asked not in ("1", "nixl"):
        return
    import torch
    from sglang.srt.disaggregation.mooncake.conn import MooncakeKVSender  # type: ignore[import-not-found]

    for module in (torch.cuda, torch.cpu):
        _replace_event(module)
    MooncakeKVSender.supports_host_tensor_indices = False
    if asked == "nixl":
        from nixl._api import nixl_agent  # type: ignore[import-not-found]

        _take_gpu_memory_for_the_hosts(nixl_agent)


def _take_gpu_memory_for_the_hosts(agent: Any) -> None:
    """Have NIXL's agents take memory that is said to be a GPU's for the host's, which it is here."""
    original = agent.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        self.nixl_mems = {**self.nixl_mems, "VRAM": self.nixl_mems["DRAM"]}

    agent.__init__ = init


def _replace_event(module: Any) -> None:
    module.Event = HostEvent
