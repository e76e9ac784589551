"""Owners, clients and GPUs for the tests of clocks."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from tests.live.owner import PATIENCE_S, LocalOwner
from voltana.live.clocks import access
from voltana.live.clocks.client import ClockClient
from voltana.live.clocks.limits import Limits
from voltana.live.clocks.protocol import Event
from voltana.live.clocks.simulated import SimulatedGpu
from voltana.sim.plant import Plant
from voltana.sim.plant.build import plant_of

HERE = Path(__file__).parent


def wait_until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Wait for something that another thread or process does."""
    until_s = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > until_s:
            pytest.fail(f"{what} did not come true within {PATIENCE_S:g} s")
        time.sleep(0.005)


def compose_parts(*overrides: str) -> dict[str, Any]:
    """The sections of the configuration that make a plant."""
    with initialize_config_module("voltana.conf", version_base="1.3"):
        config = compose(overrides=["+gpu=a100_sxm4_80g", "+serving=sglang", *overrides])
    values = OmegaConf.to_container(config, resolve=False)
    assert isinstance(values, dict)
    return {"gpu": values["gpu"], "model": values["model"], "engine": values["serving"]["engine"]}


def build_plant(model: str) -> Plant:
    parts = compose_parts(f"+model={model}")
    return plant_of(parts["gpu"], parts["model"], parts["engine"])


@pytest.fixture(scope="session")
def parts() -> dict[str, Any]:
    return compose_parts("+model=llama31_8b")


@pytest.fixture(scope="session")
def plant() -> Plant:
    return build_plant("llama31_8b")


@pytest.fixture(scope="session")
def plant_tp2() -> Plant:
    return build_plant("qwen3_32b")


@pytest.fixture(name="wait_until", scope="session")
def _wait_until() -> Callable[..., None]:
    return wait_until


class ProbedGpu(SimulatedGpu):
    """A simulated GPU that notes every change made to it, and can be told to be slow, to fail, or not to obey."""

    def __init__(self, gpu: int, plant: Plant, calls: list[tuple[int, str, float | None]], **options: Any) -> None:
        super().__init__(gpu, plant, block_s=0.0, settle_s=0.0, **options)
        self.calls = calls
        self.errors: list[Exception] = []
        self.obeys = True
        self.go = threading.Event()
        self.go.set()

    def _note(self, call: str, value: float | None) -> None:
        self.calls.append((self.info.gpu, call, value))
        assert self.go.wait(PATIENCE_S)
        if self.errors:
            raise self.errors.pop(0)

    def lock_clock(self, mhz: int) -> None:
        self._note("lock", mhz)
        if self.obeys:
            super().lock_clock(mhz)

    def reset_clock(self) -> None:
        self._note("reset", None)
        super().reset_clock()

    def set_power_limit(self, watts: float) -> None:
        self._note("cap", watts)
        super().set_power_limit(watts)


class ProbedOwner(LocalOwner):
    """An owner in a thread of this process, with four probed GPUs."""

    def __init__(self, folder: Path, plant: Plant, limits: Limits, observe: bool) -> None:
        self.calls: list[tuple[int, str, float | None]] = []
        self.gpus = [ProbedGpu(gpu, plant, self.calls) for gpu in range(4)]
        super().__init__(folder, self.gpus, limits, observe)


class Connected(ClockClient):
    """A client that keeps what it is told."""

    def __init__(self, path: Path, name: str = "test") -> None:
        self.events: list[Event] = []
        super().__init__(path, name, self.events.append)

    def wait_for(self, kind: type[Event], number: int | None = None) -> Any:
        """The first event of a kind, about a command if its number is given."""

        def found() -> list[Event]:
            return [event for event in self.events if isinstance(event, kind) and number in (None, event.id)]

        wait_until(found, f"{kind.__name__} for {number}")
        return found()[0]


@pytest.fixture(scope="session")
def make_owner() -> Callable[..., ProbedOwner]:
    return lambda folder, plant: ProbedOwner(folder, plant, Limits(), observe=False)


@pytest.fixture
def settings_file(tmp_path: Path, parts: dict[str, Any]) -> Path:
    """What `--simulate` reads."""
    path = tmp_path / "simulated.json"
    path.write_text(json.dumps({**parts, "gpus": 4, "block_s": 0.0, "settle_s": 0.0}))
    return path


@pytest.fixture
def start(tmp_path: Path, plant: Plant) -> Iterator[Callable[..., ProbedOwner]]:
    """Start an owner in this process: `start(observe=..., changes_per_s=...)`."""
    with ExitStack() as stack:

        def go(*, observe: bool = False, **limits: Any) -> ProbedOwner:
            owner = ProbedOwner(tmp_path, plant, Limits(**limits), observe)
            stack.callback(owner.stop)
            return owner

        yield go


@pytest.fixture
def connect() -> Iterator[Callable[..., Connected]]:
    """Connect to an owner: `connect(owner.socket)`."""
    with ExitStack() as stack:
        yield lambda path, name="test": stack.enter_context(Connected(path, name))  # type: ignore[misc]


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that does not outlive the test."""
    processes: list[subprocess.Popen[str]] = []

    def go(arguments: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, *arguments], **{**pipes, **options}))
        return processes[-1]

    yield go
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for NVIDIA's library, freshly compiled; the folder it lies in."""
    return compile_standin(tmp_path_factory.mktemp("nvml"))


def compile_standin(folder: Path) -> Path:
    """Compile the stand-in for NVIDIA's library into a folder; returns that."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    target = folder / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(target), str(HERE / "nvml_standin.c")],
        check=True,
    )
    return folder


AS_NEW = {"limit_mw": 400_000, "capability": 80, "persistence": 1}


class StandIn:
    """What the GPUs of the stand-in are like, to be read and disturbed while another process uses them."""

    HEADER, GPU = "4I", "19I"
    FIELDS = (
        *("locked_mhz", "limit_mw", "locks", "resets", "delay_ms"),
        *("fault_all", "fault_change", "fault_energy", "fault_reset", "overlaps"),
        *("fault_limit", "fault_list", "fault_pstate", "mig", "processes", "instant_mw", "capability", "persistence"),
        "used_mib",
    )

    def __init__(self, path: Path, library: Path) -> None:
        header = struct.pack(self.HEADER, 0, 4, 0, 0)
        path.write_bytes(header + struct.pack(self.GPU, *map(AS_NEW.get, self.FIELDS, repeat(0))) * 4)
        self._host = path.stat().st_ino & 0xFFFFFFFF
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 0)
        self.environment = {**os.environ, "LD_LIBRARY_PATH": str(library), "NVML_STANDIN_STATE": str(path)}

    def _offset(self, gpu: int, field: str) -> int:
        return struct.calcsize(self.HEADER) + gpu * struct.calcsize(self.GPU) + 4 * self.FIELDS.index(field)

    def get(self, gpu: int, field: str) -> int:
        return int(struct.unpack_from("I", self._bytes, self._offset(gpu, field))[0])

    def set(self, gpu: int, field: str, value: int) -> None:
        struct.pack_into("I", self._bytes, self._offset(gpu, field), value)

    def fail_to_start(self, code: int) -> None:
        struct.pack_into("I", self._bytes, 0, code)

    def uuid(self, gpu: int) -> str:
        return f"GPU-{self._host:08x}-0000-0000-0000-{gpu:012d}"

    def locked(self) -> list[int]:
        return [self.get(gpu, "locked_mhz") for gpu in range(4)]


@pytest.fixture
def standin(tmp_path: Path, library: Path) -> StandIn:
    return StandIn(tmp_path / "gpus", library)


@pytest.fixture
def own(
    spawn: Callable[..., subprocess.Popen[str]], standin: StandIn, tmp_path: Path
) -> Callable[..., subprocess.Popen[str]]:
    """Start an owner of the stand-in's GPUs and wait until it listens."""

    def go(*options: str, gpus: str = "0,1,2") -> subprocess.Popen[str]:
        (tmp_path / access.SOCKET_NAME).unlink(missing_ok=True)  # of one that was killed
        arguments = ["-m", "voltana.live.clocks.command", "--gpus", gpus, "--folder", str(tmp_path), *options]
        process = spawn(arguments, env=standin.environment)
        wait_until(lambda: (tmp_path / access.SOCKET_NAME).exists() or process.poll() is not None, "the socket")
        return process

    return go


@pytest.fixture
def refused(spawn: Callable[..., subprocess.Popen[str]]) -> Callable[..., str]:
    """Start an owner that is to refuse; returns its words, which are one line."""

    def go(*options: str, **popen: Any) -> str:
        process = spawn(["-m", "voltana.live.clocks.command", *options], **popen)
        _, text = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 2, text
        assert "Traceback" not in text
        lines = [line for line in text.splitlines() if "error: " in line]
        assert len(lines) == 1, text
        return lines[0]

    return go
