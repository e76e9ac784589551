"""The device that is profiled: a CUDA GPU, or the CPU, where the same code runs at tiny size."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from voltana.app.extras import require
from voltana.errors import UserError

if TYPE_CHECKING:
    import torch

Step = Callable[[], object]
"""One iteration; its result does not matter."""

WARM_UP_STEPS = 3
"""Before a capture: libraries pick kernels and allocate workspaces, which a capture must not."""
GIB = 2**30


class Facts(NamedTuple):
    """What a device says of itself."""

    name: str
    memory_bytes: int
    processors: int
    """SMs; cores of a CPU."""
    cache_bytes: int
    """Second-level cache; reads from it are no reads from memory."""
    uuid: str
    """As NVML knows it; empty where there is none."""
    software: dict[str, str]
    """Versions."""


class Device(Protocol):
    """What profiling needs of a device."""

    torch_device: torch.device
    facts: Facts

    def free_bytes(self) -> int:
        """Memory that can be allocated now."""
        ...

    def repeatable(self, step: Step, graph: bool) -> Step:
        """The step, warmed up and, if asked for and the device has such a thing, captured into a graph."""
        ...

    def timed(self, step: Step, times: int) -> float:
        """Seconds the device takes for so many steps in a row."""
        ...

    def attention(self, name: str) -> AbstractContextManager[Any]:
        """A context in which attention uses this kernel."""
        ...

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether an error is that; if so what can be freed is freed."""
        ...


class Cuda:
    """A CUDA GPU, timed by events on the device."""

    def __init__(self, index: int) -> None:
        import torch

        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(self.torch_device)
        self._stream = torch.cuda.Stream()
        found = torch.cuda.get_device_properties(index)
        self.facts = Facts(
            name=found.name,
            memory_bytes=found.total_memory,
            processors=found.multi_processor_count,
            cache_bytes=int(getattr(found, "L2_cache_size", 0)) or 64 * 2**20,
            uuid=_nvml_uuid(getattr(found, "uuid", "")),
            software={"torch": torch.__version__, "cuda": str(torch.version.cuda), "cudnn": _cudnn()},
        )

    def free_bytes(self) -> int:
        """Memory that can be allocated now."""
        import torch

        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.torch_device)[0])

    def repeatable(self, step: Step, graph: bool) -> Step:
        """The step warmed up; with `graph`, the replay of its capture.

        Warm-up and capture use one side stream, so that workspaces made by the one serve the other. Nothing in a step
        waits for the device, and all it reads was allocated before, as a capture demands.
        """
        import torch

        if not graph:
            step()
            torch.cuda.synchronize()
            return step
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UP_STEPS):
                step()
        torch.cuda.current_stream().wait_stream(self._stream)
        torch.cuda.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, stream=self._stream):
            step()
        replay: Step = captured.replay  # bound: keeps the graph and its memory
        return replay

    def timed(self, step: Step, times: int) -> float:
        """Seconds between two events around the steps."""
        import torch

        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(times):
            step()
        stop.record()
        stop.synchronize()
        return float(start.elapsed_time(stop)) / 1e3

    def attention(self, name: str) -> AbstractContextManager[Any]:
        """Allow this kernel alone, so that no slower one steps in unseen."""
        from torch.nn.attention import SDPBackend, sdpa_kernel

        kernels = {
            "flash": SDPBackend.FLASH_ATTENTION,
            "cudnn": SDPBackend.CUDNN_ATTENTION,
            "math": SDPBackend.MATH,
        }
        context: AbstractContextManager[Any] = sdpa_kernel(kernels[name])
        return context

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether the GPU's memory was too small."""
        import torch

        if not isinstance(error, torch.cuda.OutOfMemoryError):
            return False
        torch.cuda.empty_cache()
        return True


class Cpu:
    """The host's processor: no graphs, no choice of attention kernels, time from the host's clock."""

    def __init__(self) -> None:
        import torch

        self.torch_device = torch.device("cpu")
        self.facts = Facts(
            name=platform.processor() or platform.machine(),
            memory_bytes=self.free_bytes(),
            processors=torch.get_num_threads(),
            cache_bytes=256 * 2**20,
            uuid="",
            software={"torch": torch.__version__},
        )

    def free_bytes(self) -> int:
        """Half of what is free, the rest for others."""
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2

    def repeatable(self, step: Step, graph: bool) -> Step:
        """The step, warmed up."""
        step()
        return step

    def timed(self, step: Step, times: int) -> float:
        """Seconds on the host's clock."""
        start = time.perf_counter()
        for _ in range(times):
            step()
        return time.perf_counter() - start

    def attention(self, name: str) -> AbstractContextManager[Any]:
        """Torch's own choice."""
        return nullcontext()

    def out_of_memory(self, error: BaseException) -> bool:
        """Whether the host's memory was too small."""
        return isinstance(error, MemoryError)


def open_device(name: str) -> Device:
    """The device of that name: `cuda`, `cuda:1`, ..., `cpu`.

    Raises:
        UserError: torch is missing, or sees no such device.
    """
    require("profile.source=torch", "profile")
    import torch

    if name == "cpu":
        return Cpu()
    kind, _, number = name.partition(":")
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(number) if number.isdigit() else 0
    if kind != "cuda" or (number and not number.isdigit()) or index >= seen:
        raise UserError(f"profile.device: found {name}, but torch sees {seen} CUDA GPUs; allowed: one of them, or cpu")
    return Cuda(index)


def _nvml_uuid(uuid: object) -> str:
    text = str(uuid)
    return text if not text or text.startswith(("GPU-", "MIG-")) else f"GPU-{text}"


def _cudnn() -> str:
    import torch

    return str(torch.backends.cudnn.version())
