"""An SGLang plugin that lets prefill and decode servers run without a GPU.

Stock SGLang serves on a CPU, but its P/D path takes CUDA for granted in two places: it records CUDA events, and it
copies KV indices through pinned memory. SGLang finds this by the entry point `voltana_cpu_shims` of the group
`sglang.srt.plugins`; it does nothing unless VOLTANA_CPU_SHIMS=1, which `voltana.live.servers.sglang.launch` sets for
device `cpu`.
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
    if os.environ.get("VOLTANA_CPU_SHIMS") != "1":
        return
    import torch
    from sglang.srt.disaggregation.mooncake.conn import MooncakeKVSender  # type: ignore[import-not-found]

    for module in (torch.cuda, torch.cpu):
        _replace_event(module)
    MooncakeKVSender.supports_host_tensor_indices = False


def _replace_event(module: Any) -> None:
    module.Event = HostEvent
