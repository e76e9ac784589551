"""`voltana-live --dry-run`: whether this machine can make a run, looked at before anything starts.

Nothing is started, set or locked. An owner of clocks, if there is one, is asked for the GPUs and gives them back, which
changes none; NVML has no question for the privilege to lock clocks (`nvmlDeviceGetAPIRestriction` tells of application
clocks), so that where no owner runs the table says what it takes to start one.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from voltana.app.bundle import Offers, build_bundle
from voltana.app.compose import instantiate
from voltana.errors import PolicyError, UserError
from voltana.live.clocks.access import PROGRAM
from voltana.live.clocks.client import ClockClient, ClockError
from voltana.live.clocks.control import Control, NvmlControl, ObserveControl
from voltana.live.clocks.device import DeviceError, GpuInfo
from voltana.live.clocks.hold import holder
from voltana.live.clocks.nvml import NoNvmlError, NvmlDriver, NvmlGpu
from voltana.live.controller import check_needs
from voltana.live.gpus.visible import VARIABLE, Groups
from voltana.live.http import is_healthy
from voltana.live.router.descriptors import fit
from voltana.live.run.config import LiveConfig
from voltana.live.run.fleet import AttachedFleet, Fleet, SglangFleet
from voltana.live.run.session import check_address
from voltana.live.servers.sglang.launch import PORTS_PER_SERVER, SglangServers, free_ports
from voltana.prediction.cache import load_predictor
from voltana.sim.plant.build import build_plant, decode_limits
from voltana.sim.serving.profiling import measured
from voltana.traces.build import foreseen

State = Literal["ready", "note", "to do"]
ANSWER_S = 5.0
"""Time for the owner of clocks to answer."""
IMPORT_S = 120.0
"""Time for a Python to import torch or a transfer backend for the first time."""
SPARE = 1.15
"""Free memory that a server needs, as a multiple of the model's weights: some KV cache and CUDA graphs besides."""
BACKENDS = {
    "mooncake": ("import mooncake.engine", "mooncake-transfer-engine-cuda13 (without -cuda13 for CUDA 12)"),
    "nixl": ("import nixl._api", "nixl"),
}
"""What a server imports for a KV transfer, and the package that it is in."""
CUDA = "import torch; assert torch.cuda.device_count(), 'torch sees no GPU'"


class Row(NamedTuple):
    """A line of the table."""

    what: str
    state: State
    found: str
    todo: str = ""


class Readiness:
    """Looks at everything that a run needs.

    Args:
        config: of the run.
        folder: of its record.
    """

    def __init__(self, config: LiveConfig, folder: Path) -> None:
        self._config = config
        self._folder = folder
        self._fleet: Fleet | None = None
        self._control: Control | None = None
        self._wrong: list[Row] = []
        try:
            self._fleet = instantiate(config.servers)
        except Exception as error:
            self._wrong.append(_refused("servers", error))
        try:
            self._control = instantiate(config.control)
        except Exception as error:
            self._wrong.append(_refused("control", error))
        self._groups: Groups = {}
        self._index: dict[int | str, int] = {}
        """Of GPUs by UUID."""
        self._listed: Sequence[GpuInfo] = ()

    @property
    def _cuda(self) -> bool:
        return isinstance(self._fleet, SglangFleet) and self._fleet.device == "cuda"

    @property
    def _needs_gpus(self) -> bool:
        return self._cuda or isinstance(self._control, NvmlControl)

    def rows(self) -> Iterator[Row]:
        """Look; each line as soon as it is known."""
        yield from self._wrong
        yield from self._machine()
        yield from self._driver()
        yield from self._clocks()
        yield from self._servers()
        yield _attempt("router", self._router)
        yield _attempt("requests", lambda: f"{foreseen(self._config)[0]['count']} of {self._config.trace['name']}")
        yield _attempt("policy", self._policy)

    # This machine

    def _machine(self) -> Iterator[Row]:
        cores = len(os.sched_getaffinity(0))
        cluster = self._config.cluster
        busy = cluster.prefill_instances + cluster.decode_instances + 3  # the harness, its client, the owner of clocks
        few = cores < busy
        why = f"{busy} processes share them: expect times of the machine, not of the policy (`starved`)" if few else ""
        yield Row("processor", "note" if few else "ready", f"{cores} cores", why)
        there = next(path for path in (self._folder, *self._folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        row = Row("record", "ready", f"{free / 1e9:.0f} GB free for {self._folder}")
        if not os.access(there, os.W_OK):
            row = Row("record", "to do", f"{there} is not writable", "choose another hydra.run.dir")
        elif free < 1e9:
            row = row._replace(state="note", todo="a record takes some 100 MB per hour")
        yield row

    # GPUs

    def _driver(self) -> Iterator[Row]:
        try:
            driver = NvmlDriver()
        except NoNvmlError as error:
            found, _, todo = str(error).partition("; ")
            if self._needs_gpus:
                yield Row("NVIDIA driver", "to do", found, todo)
            elif isinstance(self._control, ObserveControl):
                yield Row("NVIDIA driver", "note", f"{found}: no GPU here", "power, energy and clocks will be null")
            else:
                yield Row("NVIDIA driver", "note", f"{found}: no GPU here", "none is needed for this configuration")
            yield from self._choose()
            return
        try:
            yield Row("NVIDIA driver", "ready", f"{driver.version()}, {len(driver.gpus())} GPUs{_inherited()}")
            gpus = [driver.open(gpu) for gpu in driver.gpus()]
            self._index = {gpu.info.uuid: gpu.info.gpu for gpu in gpus}
            yield from self._choose()
            taken = {gpu for group in self._groups.values() for gpu in group}
            for gpu in gpus:
                yield from self._gpu(gpu, used=gpu.info.uuid in taken or gpu.info.gpu in taken)
        except DeviceError as error:
            yield Row("GPUs", "to do" if self._needs_gpus else "note", str(error), "see nvidia-smi, dmesg")
        finally:
            driver.close()

    def _choose(self) -> Iterator[Row]:
        """Which instance gets which GPUs."""
        if self._fleet is None or not self._needs_gpus:
            return
        try:
            self._groups = self._fleet.gpus(self._config, real=True)
        except NoNvmlError:
            return  # that has its own line
        except UserError as error:
            yield _refused("GPUs", error)

    def _gpu(self, gpu: NvmlGpu, used: bool) -> Iterator[Row]:
        info, memory = gpu.info, gpu.memory_bytes()
        clocks = f"{len(info.clocks_mhz)} clocks, {info.clocks_mhz[0]} to {info.clocks_mhz[-1]} MHz"
        about = [
            info.name,
            *([f"{memory[0] / 2**30:.0f} of {memory[1] / 2**30:.0f} GiB free"] if memory else []),
            clocks if info.clocks_mhz else "no clocks",
            f"caps {info.power_limit_range_w[0]:.0f} to {info.power_limit_range_w[1]:.0f} W"
            if info.power_limit_range_w
            else "no power caps",
            f"power by {info.power_meter}",
        ]
        whose = [name for name, group in self._groups.items() if info.uuid in group or info.gpu in group]
        name = f"GPU {info.gpu}{f', {whose[0]}' if whose else ''}"
        yield Row(name, "ready", ", ".join(about))
        wrong: State = "to do" if used else "note"
        if gpu.divided():
            todo = f"sudo nvidia-smi -i {info.gpu} -mig 0, or choose other servers.gpus"
            yield Row(name, wrong, "it is divided (MIG)", todo)
        if not info.clocks_mhz and isinstance(self._control, NvmlControl):
            yield Row(name, wrong, "NVML lists no clocks that it supports", "control=observe")
        yield from self._use(name, gpu, wrong, memory)
        if gpu.persistent() is False:
            why = "without it the driver is loaded anew by every program, which is slow and forgets clock locks"
            yield Row(name, "note", "persistence mode is off", f"sudo nvidia-smi -i {info.gpu} -pm 1: {why}")

    def _use(self, name: str, gpu: NvmlGpu, wrong: State, memory: tuple[int, int] | None) -> Iterator[Row]:
        """Who computes on a GPU, and whether there is room for a server of ours."""
        if not self._cuda or wrong != "to do" or not isinstance(self._fleet, SglangFleet):
            return
        pids = ", ".join(map(str, gpu.processes()))
        if pids and not self._fleet.shared_gpus:
            todo = "stop it, choose other servers.gpus, or servers.shared_gpus=true"
            yield Row(name, wrong, f"process {pids} computes on it", todo)
        model = build_plant(self._config).model
        needed = SPARE * model.parameters() * model.dtype_bytes / model.tp
        if memory is not None and memory[0] < needed:
            found = f"{memory[0] / 2**30:.0f} GiB free, {needed / 2**30:.0f} GiB needed by {self._config.model['name']}"
            yield Row(name, wrong, found, "stop what holds it, or raise model.tp")

    # Clocks

    def _clocks(self) -> Iterator[Row]:
        if isinstance(self._control, ObserveControl):
            yield Row("clocks", "ready", "only observed (control=observe): nothing is set, no privilege is needed")
        elif not isinstance(self._control, NvmlControl):
            yield Row("clocks", "ready", "simulated (control=simulated): no GPU, no privilege")
        else:
            yield from self._owner(self._control.path)

    def _owner(self, path: Path) -> Iterator[Row]:
        gpus = [gpu for group in self._groups.values() for gpu in group]
        try:
            with ClockClient(path, "voltana-live --dry-run", timeout_s=ANSWER_S) as client:
                yield from self._ask(client, gpus)
        except (UserError, ClockError) as error:
            yield Row("owner of clocks", "to do", str(error).partition("; start ")[0], self._start(gpus))
            for gpu in (each for each in gpus if isinstance(each, str)):
                who = holder(gpu)
                if who is not None:
                    found = f"{gpu} is held by {who}"
                    yield Row("clocks", "to do", found, "connect to that owner (control.socket), or stop it")

    def _ask(self, client: ClockClient, gpus: Sequence[int | str]) -> Iterator[Row]:
        """Whether the owner would give us the GPUs; it restores what it gets back, which nothing has changed."""
        self._listed = [client.gpus[gpu] for gpu in client.indices(gpus)]
        if client.observe:
            yield Row("owner of clocks", "to do", f"process {client.owner_pid} only observes", self._start(gpus))
            return
        for name, group in self._groups.items():
            client.own(name, client.indices(group))
            client.release(name)
        listed = ", ".join(map(str, client.gpus))
        found = f"process {client.owner_pid} at {client.path}, GPU {listed}, free for a run"
        yield Row("owner of clocks", "ready", found)
        fixed = [str(info.gpu) for info in self._listed if info.power_limit_range_w is None]
        if fixed:
            found = f"GPU {', '.join(fixed)}: this host forbids to set them"
            yield Row("power caps", "note", found, "policies that set clocks run")

    def _start(self, gpus: Sequence[int | str]) -> str:
        listed = ",".join(str(self._index.get(gpu, gpu)) for gpu in gpus) or "0,1,2,3"
        group, me = ("GROUP", "; this user is not root") if os.geteuid() else ("root", "")
        return f"sudo $(which {PROGRAM}) --gpus {listed} --group {group} (docs/clocks.md{me})"

    # Servers

    def _servers(self) -> Iterator[Row]:
        if self._fleet is None:
            return
        with tempfile.TemporaryDirectory() as logs:
            try:
                servers = self._fleet.servers(self._config, Path(logs), lambda name, how: None, look=True)
            except Exception as error:
                yield _refused("servers", error)
                return
        if isinstance(self._fleet, SglangFleet):
            assert isinstance(servers, SglangServers)
            yield from self._sglang(servers)
        elif isinstance(self._fleet, AttachedFleet):
            yield from self._attached({each.name: each.url for each in servers.endpoints.values()})
        else:
            yield Row("servers", "ready", "emulated, started with the run: no SGLang")

    def _attached(self, urls: Mapping[str, str]) -> Iterator[Row]:
        async def look() -> list[bool]:
            return await asyncio.gather(*map(is_healthy, urls.values()))

        for (name, url), healthy in zip(urls.items(), asyncio.run(look()), strict=True):
            if healthy:
                yield Row(name, "ready", f"{url} is healthy")
            else:
                yield Row(name, "to do", f"{url} does not answer GET /health", "start it (docs/live.md, Attaching)")

    def _sglang(self, servers: SglangServers) -> Iterator[Row]:
        yield Row("SGLang", "ready", f"{servers.version}, with voltana's plugin, in {servers.python}")
        cluster = self._config.cluster
        wanted = PORTS_PER_SERVER * (cluster.prefill_instances + cluster.decode_instances)
        yield _attempt("ports", lambda: f"{len(free_ports('127.0.0.1', wanted))} are free for the servers")
        backend = servers.transfer_backend
        if backend in BACKENDS:
            words, package = BACKENDS[backend]
            yield _imports(servers, f"KV by {backend}", words, f"{servers.python} -m pip install {package}")
        else:
            yield Row("KV transfer", "note", f"by {backend}, which is not looked at here")
        if self._cuda:
            yield _imports(servers, "CUDA", CUDA, "install a torch for the CUDA version that nvidia-smi shows")
        yield _model(servers.model)

    # The rest

    def _router(self) -> str:
        settings = self._config.router
        check_address(settings.host, settings.port)
        fitting = fit(settings)
        port = settings.port or "any free port"
        return f"{settings.host}, {port}; descriptors for {fitting.max_in_flight} requests at a time"

    def _policy(self) -> str:
        config, plant = self._config, build_plant(self._config)
        shared = set.intersection(*(set(info.clocks_mhz) for info in self._listed)) if self._listed else set()

        def power_limits_w() -> tuple[float, float]:
            if any(info.power_limit_range_w is None for info in self._listed):
                raise PolicyError("it caps power, which this host forbids, allowed: policies that set clocks alone")
            return plant.gpu.power_limit_min_w, plant.gpu.power_limit_w

        bundle = build_bundle(
            config,
            Offers(
                clocks_mhz=lambda: sorted(shared) or plant.gpu.clocks(),
                power_limits_w=power_limits_w,
                kv_capacity_tokens=lambda: decode_limits(config.serving.decode, plant).kv_tokens,
                predictor=lambda: load_predictor(config.predictor, config, measured(plant, config.profile)),
            ),
        )
        for key, controller in zip(
            ("prefill", "decode"), (bundle.prefill_controllers[0], bundle.decode_controllers[0]), strict=True
        ):
            check_needs(f"policy.{key}_controller", controller, power=True)
        return f"{config.policy.name}, predictor={config.predictor}"


def _imports(servers: SglangServers, what: str, words: str, todo: str) -> Row:
    """Whether the servers' Python can do that."""
    try:
        done = subprocess.run(
            [str(servers.python), "-c", words],
            env=servers.variables(),
            capture_output=True,
            text=True,
            timeout=IMPORT_S,
            check=False,
            cwd="/",
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Row(what, "to do", f"{servers.python} does not answer ({error})")
    if done.returncode == 0:
        return Row(what, "ready", f"{words.partition(';')[0].removeprefix('import ')} can be imported")
    return Row(what, "to do", (done.stderr.strip().splitlines() or ["it failed without a word"])[-1], todo)


def _model(name: str) -> Row:
    if Path(name).is_dir():
        return Row("model", "ready", name)
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface")) / "hub"
    if (cache / f"models--{name.replace('/', '--')}").is_dir():
        return Row("model", "ready", f"{name}, in {cache}")
    return Row("model", "note", f"{name} is not in {cache}", "it is downloaded at the start; some want a token")


def _inherited() -> str:
    return f", {VARIABLE}={os.environ[VARIABLE]}" if VARIABLE in os.environ else ""


def _attempt(what: str, work: Callable[[], str]) -> Row:
    try:
        return Row(what, "ready", work())
    except Exception as error:
        return _refused(what, error)


def _refused(what: str, error: Exception) -> Row:
    """The line for what was refused: found, and what is allowed."""
    from voltana.app.cli import explain_job_error

    message = explain_job_error(error)
    if message is None:
        raise error
    found, comma, allowed = message.partition(", allowed: ")
    return Row(what, "to do", found, f"allowed: {allowed}" if comma else "")


def show(rows: Iterator[Row], console: Any) -> bool:
    """Print the table, each line as it comes; returns whether all is ready."""
    counts = {"ready": 0, "note": 0, "to do": 0}
    for row in rows:
        counts[row.state] += 1
        console.print(f"{row.state:<6} {row.what:<17} {row.found}", soft_wrap=True)
        if row.todo:
            console.print(f"{'':<24} -> {row.todo}", soft_wrap=True)
    done = counts["to do"] == 0
    notes = f", {counts['note']} to know" if counts["note"] else ""
    verdict = "ready: the same command without --dry-run starts" if done else f"not ready: {counts['to do']} to do"
    console.print(f"\n{verdict}{notes}", soft_wrap=True)
    return done
