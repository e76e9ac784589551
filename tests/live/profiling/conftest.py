"""A stand-in for a GPU's clocks and meters, and a profile at a size that a CPU does in a moment."""

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from voltana.live.clocks.device import DeviceError, GpuDevice, GpuInfo


class FakeGpu(GpuDevice):
    """A GPU of constant power whose energy counter moves in steps."""

    TICK_S = 0.004

    def __init__(self, power_w: float = 200.0, privileged: bool = True, counter: bool = True) -> None:
        self.info = GpuInfo(0, f"GPU-{os.getpid()}", "NVIDIA Stand-in", tuple(range(210, 1411, 15)))
        self.drawn_w = power_w
        self.privileged = privileged
        self.counter = counter
        self.locked_mhz: int | None = None
        self.calls: list[str] = []

    def lock_clock(self, mhz: int) -> None:
        if not self.privileged:
            raise DeviceError("permission", "Insufficient Permissions")
        self.calls.append(f"lock {mhz}")
        self.locked_mhz = mhz

    def reset_clock(self) -> None:
        self.calls.append("reset")
        self.locked_mhz = None

    def power_limit_w(self) -> float:
        return 400.0

    def set_power_limit(self, watts: float) -> None:
        raise AssertionError("a profile sets no power limit")

    def power_w(self) -> float:
        return self.drawn_w

    def energy_j(self) -> float:
        if not self.counter:
            raise DeviceError("unsupported", "Not Supported")
        return time.monotonic() // self.TICK_S * self.TICK_S * self.drawn_w

    def clock_mhz(self) -> int:
        return self.locked_mhz or 1395


TINY_MODEL = {
    "name": "tiny",
    "layers": 3,
    "hidden": 32,
    "ffn": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "vocab": 96,
    "tp": 1,
    "slo": {"ttft_ms": 600, "itl_ms": 60},
    "token_scale": 1.0,
}
TINY_PROFILE = {
    "_target_": "voltana.live.profiling.torch.run.profile_gpu",
    "source": "torch",
    "device": "cpu",
    "clocks_mhz": [],
    "prefill": {"tokens": [8, 64], "prompt_tokens": 8, "samples": 4},
    "decode": {"max_batch": 6, "tokens_per_request": [4, 32], "samples": 5},
    "attention": "flash",
    "layers": "all",
    "window_s": 0.005,
    "windows": [2, 3],
    "tolerance": 0.05,
    "budget_s": 0.5,
    "seed": 1,
}


@pytest.fixture(name="fake_gpu")
def _fake_gpu() -> type[FakeGpu]:
    return FakeGpu


@pytest.fixture(name="configuration")
def _configuration() -> Callable[..., dict[str, Any]]:
    """A tiny profile; its model and settings can be changed."""

    def make(model: Mapping[str, Any] | None = None, **profile: Any) -> dict[str, Any]:
        return {
            "model": {**TINY_MODEL, **(model or {})},
            "gpu": {"name": "auto"},
            "serving": {"engine": {"mem_fraction": 0.9, "graph_batches": [1, 2, 4, 8]}},
            "profile": {**TINY_PROFILE, **profile},
        }

    return make
