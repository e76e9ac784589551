"""Real GPUs through NVML, by the binding that NVIDIA publishes (`nvidia-ml-py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from voltana.errors import UserError
from voltana.live.clocks.device import DeviceError, Driver, Fault, GpuDevice, GpuInfo, check_clock, check_power_limit

Value = TypeVar("Value")
STEP_MHZ = 15
"""Between two clocks of a GPU that does not list them: that of an A100, H100 or L40S; the driver rounds to its own."""
GA100 = (8, 0)
"""Compute capability up to which `nvmlDeviceGetPowerUsage` is not a mean over a second (NVML's reference)."""
OBSERVE_STILL_WORKS = "only control=observe works without it"


class NoNvmlError(UserError):
    """NVML cannot be used here at all."""


class NvmlDriver(Driver):
    """NVML, initialised for as long as this object is open: the driver keeps clock locks only while somebody uses it.

    Raises:
        NoNvmlError: no binding, no library or no driver.
    """

    def __init__(self) -> None:
        self._nvml = _load()

    def gpus(self) -> tuple[int, ...]:
        """Indices in NVML's order, that of the PCI bus."""
        return tuple(range(_call("GPU count", self._nvml.nvmlDeviceGetCount)))

    def version(self) -> str:
        """Of the driver."""
        return str(_call("driver version", self._nvml.nvmlSystemGetDriverVersion))

    def open(self, gpu: int) -> NvmlGpu:
        """Open one GPU."""
        if gpu not in self.gpus():
            raise DeviceError("missing", f"GPU {gpu}: found no such index; allowed: {_range(self.gpus())}")
        return NvmlGpu(self._nvml, gpu)

    def close(self) -> None:
        """Shut NVML down. Settings stay as they are."""
        self._nvml.nvmlShutdown()


class NvmlGpu(GpuDevice):
    """One GPU, by its NVML index."""

    def __init__(self, nvml: Any, gpu: int) -> None:
        self._nvml = nvml
        self._gpu = gpu
        self._handle = self._ask(nvml.nvmlDeviceGetHandleByIndex, argument=gpu)
        self._instant = self._instant_power_mw() is not None
        limits_mw = self._if_supported(nvml.nvmlDeviceGetPowerManagementLimitConstraints)
        default_mw = self._if_supported(nvml.nvmlDeviceGetPowerManagementDefaultLimit)
        self.info = GpuInfo(
            gpu=gpu,
            uuid=str(self._ask(nvml.nvmlDeviceGetUUID)),
            name=str(self._ask(nvml.nvmlDeviceGetName)),
            clocks_mhz=self._clocks(),
            default_power_limit_w=None if default_mw is None else default_mw / 1e3,
            power_limit_range_w=None if limits_mw is None else (limits_mw[0] / 1e3, limits_mw[1] / 1e3),
            power_meter=self._power_meter(),
        )

    def _clocks(self) -> tuple[int, ...]:
        """Graphics clocks at the highest memory clock, where data-centre GPUs stay; else from lowest to highest."""
        nvml = self._nvml
        memory_mhz = self._if_supported(nvml.nvmlDeviceGetSupportedMemoryClocks)
        listed = memory_mhz and self._if_supported(
            lambda handle: nvml.nvmlDeviceGetSupportedGraphicsClocks(handle, max(memory_mhz))
        )
        if listed:
            return tuple(sorted(listed))
        bounds = self._if_supported(
            lambda handle: nvml.nvmlDeviceGetMinMaxClockOfPState(handle, nvml.NVML_CLOCK_GRAPHICS, nvml.NVML_PSTATE_0)
        )
        if bounds is None or not 0 < bounds[0] <= bounds[1]:
            return ()
        return (*range(bounds[0], bounds[1], STEP_MHZ), bounds[1])

    def _power_meter(self) -> str | None:
        if self._instant:
            return "NVML_FI_DEV_POWER_INSTANT"
        capability = self._if_supported(self._nvml.nvmlDeviceGetCudaComputeCapability)
        if capability is None:
            return "nvmlDeviceGetPowerUsage"
        return f"nvmlDeviceGetPowerUsage, {'instantaneous' if tuple(capability) <= GA100 else 'mean of 1 s'}"

    def _instant_power_mw(self) -> int | None:
        """The field of newer drivers; None where it does not exist."""
        field = self._nvml.NVML_FI_DEV_POWER_INSTANT
        values = self._if_supported(lambda handle: self._nvml.nvmlDeviceGetFieldValues(handle, [field]))
        if values is None or values[0].nvmlReturn != self._nvml.NVML_SUCCESS:
            return None
        return int(values[0].value.uiVal)

    def lock_clock(self, mhz: int) -> None:
        """Lock minimum and maximum to the same clock."""
        check_clock(self.info, mhz)
        self._ask(lambda handle: self._nvml.nvmlDeviceSetGpuLockedClocks(handle, mhz, mhz))

    def reset_clock(self) -> None:
        """Undo the lock."""
        self._ask(self._nvml.nvmlDeviceResetGpuLockedClocks)

    def power_limit_w(self) -> float:
        """The limit that was set, W."""
        return float(self._ask(self._nvml.nvmlDeviceGetPowerManagementLimit)) / 1e3

    def set_power_limit(self, watts: float) -> None:
        """Set the limit, to the milliwatt."""
        check_power_limit(self.info, watts)
        self._ask(lambda handle: self._nvml.nvmlDeviceSetPowerManagementLimit(handle, round(watts * 1e3)))

    def power_w(self) -> float:
        """The power now, or as `nvmlDeviceGetPowerUsage` has it, W: `info.power_meter` says which."""
        if self._instant and (power_mw := self._instant_power_mw()) is not None:
            return power_mw / 1e3
        if self._instant:
            raise DeviceError("driver", f"GPU {self._gpu}: its power is not told")
        return float(self._ask(self._nvml.nvmlDeviceGetPowerUsage)) / 1e3

    def energy_j(self) -> float:
        """`nvmlDeviceGetTotalEnergyConsumption`: since the driver was loaded, to the mJ."""
        return float(self._ask(self._nvml.nvmlDeviceGetTotalEnergyConsumption)) / 1e3

    def clock_mhz(self) -> int:
        """The SM clock in force."""
        return int(self._ask(lambda handle: self._nvml.nvmlDeviceGetClockInfo(handle, self._nvml.NVML_CLOCK_SM)))

    def check_privilege(self) -> None:
        """Set the power limit to what it is, which changes nothing; where that is forbidden or impossible, undo a lock.

        NVML has no question for it. The second changes as much as the first command of a client would.
        """
        try:
            self.set_power_limit(self.power_limit_w())
        except DeviceError as error:
            if error.fault not in ("permission", "unsupported"):
                raise
            self.reset_clock()
            self.info = replace(self.info, power_limit_range_w=None)

    def divided(self) -> bool:
        """Whether MIG is enabled."""
        modes = self._if_supported(self._nvml.nvmlDeviceGetMigMode)
        return modes is not None and modes[0] == self._nvml.NVML_DEVICE_MIG_ENABLE

    def memory_bytes(self) -> tuple[int, int] | None:
        """Free and all of it; None where NVML does not tell."""
        memory = self._if_supported(self._nvml.nvmlDeviceGetMemoryInfo)
        return None if memory is None else (int(memory.free), int(memory.total))

    def persistent(self) -> bool | None:
        """Whether the driver stays loaded while nobody uses it; None where NVML does not tell."""
        mode = self._if_supported(self._nvml.nvmlDeviceGetPersistenceMode)
        return None if mode is None else bool(mode)

    def processes(self) -> tuple[int, ...]:
        """Process ids of whoever computes on it, as the host counts them."""
        found = self._if_supported(self._nvml.nvmlDeviceGetComputeRunningProcesses)
        return tuple(process.pid for process in found or ())

    def _ask(self, function: Callable[..., Value], argument: object = None) -> Value:
        return _call(f"GPU {self._gpu}", function, self._handle if argument is None else argument)

    def _if_supported(self, function: Callable[..., Value]) -> Value | None:
        try:
            return self._ask(function)
        except DeviceError as error:
            if error.fault != "unsupported":
                raise
            return None


def _range(gpus: tuple[int, ...]) -> str:
    return f"0 to {gpus[-1]}" if gpus else "none, this host has no GPU"


def _load() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise NoNvmlError(f"NVML needs nvidia-ml-py ({error}), allowed: after pip install 'voltana[live]'") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        hint = {
            pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "install the NVIDIA driver (libnvidia-ml.so.1 was not found)",
            pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "load the NVIDIA driver (modprobe nvidia)",
            pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "reboot: the driver was updated under the running kernel",
        }.get(error.value, "check that nvidia-smi works")
        raise NoNvmlError(f"NVML: {error}; {hint}; {OBSERVE_STILL_WORKS}") from error
    return pynvml


def _call(what: str, function: Callable[..., Value], *arguments: object) -> Value:
    """Call NVML; its errors become `DeviceError`."""
    import pynvml

    try:
        return function(*arguments)
    except pynvml.NVMLError as error:
        faults: dict[int, Fault] = {
            pynvml.NVML_ERROR_NO_PERMISSION: "permission",
            pynvml.NVML_ERROR_GPU_IS_LOST: "lost",
            pynvml.NVML_ERROR_RESET_REQUIRED: "lost",
            pynvml.NVML_ERROR_NOT_SUPPORTED: "unsupported",
            pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "unsupported",
            pynvml.NVML_ERROR_FREQ_NOT_SUPPORTED: "unsupported",
            pynvml.NVML_ERROR_NOT_FOUND: "missing",
        }
        raise DeviceError(faults.get(error.value, "driver"), f"{what}: {error}") from error
