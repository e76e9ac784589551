"""A live run: clocks, policies, record, servers, router, replay; in this order, ended in the reverse one.

What can be refused is refused before servers, which may take minutes to start.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from voltana.app.bundle import Bundle, Offers, build_bundle
from voltana.app.compose import instantiate
from voltana.errors import PolicyError, RunError, UserError
from voltana.live.clocks.control import Control, NvmlControl, ObserveControl, SimulatedControl
from voltana.live.controller import Controller
from voltana.live.gpus import Gpus
from voltana.live.gpus.emulated import EmulatedGpus
from voltana.live.gpus.owned import OwnedGpus
from voltana.live.gpus.several import SeveralGpus
from voltana.live.gpus.visible import Groups
from voltana.live.router.command import tune_gc
from voltana.live.router.fleet import Backend
from voltana.live.router.server import RouterServer
from voltana.live.run.config import LiveConfig
from voltana.live.run.fleet import Fleet, names_of
from voltana.live.run.load import Order
from voltana.live.run.recorder import LiveRecorder
from voltana.live.run.replay import ClientLostError, Replay
from voltana.live.run.starved import starved
from voltana.live.run.view import View
from voltana.live.servers import Endpoint, Servers
from voltana.live.telemetry.message import Telemetry
from voltana.live.telemetry.subscriber import Subscriber
from voltana.prediction.cache import AUTO, load_predictor, predictor_file
from voltana.prediction.ecopred import EcoPred
from voltana.record import RecordWriter, claim
from voltana.record.gpus import about_gpus
from voltana.record.provenance import dependencies, provenance
from voltana.sim.plant.build import build_plant, decode_limits, gpus_per_host
from voltana.sim.serving.profiling import measured
from voltana.state import LoadSnapshot
from voltana.traces.build import build_requests, foreseen

logger = logging.getLogger("voltana.live")

LEAD_S = 1.0
"""From all being ready to second 0: time for the client to come up."""
HEAR_S = 15.0
"""Every server must publish telemetry within so long; idle ones do so every second."""
SHOW_EVERY_S = 0.5
RECORD_EVERY_S = 2.0
"""What the instances did is handed to the writer this often."""


@dataclass
class _Happened:
    """What went wrong meanwhile."""

    ended: dict[str, str] = field(default_factory=dict)
    """Servers that ended by themselves, and how."""
    lost: str = ""
    """Why clocks are not driven any more."""
    wrong: Exception | None = None
    """The first that a policy raised or answered wrongly."""

    def check(self, client_lost: str) -> None:
        """Raise `RunError` if the record does not reach to the end of the requests."""
        if self.lost:
            raise RunError(f"control: {self.lost}; the record ends there")
        if client_lost:
            raise RunError(f"{client_lost} before its requests had ended; the record ends there")


class LiveRun:
    """One run.

    Args:
        config: checked.
        values: the same as plain values, for the record.
        folder: of the record.
        view: shows how it goes.
        overwrite: whether the finished record of another configuration may be replaced.
        sweep: which sweep the run belongs to (`voltana.app.sweeps`).
    """

    def __init__(
        self,
        config: LiveConfig,
        values: Mapping[str, Any],
        folder: Path,
        view: View,
        *,
        overwrite: bool = False,
        sweep: Mapping[str, Any] | None = None,
    ) -> None:
        self._config = config
        self._values = values
        self._folder = folder
        self._view = view
        self._overwrite = overwrite
        self._sweep = sweep
        self._predictor_files: dict[str, Path] = {}
        self._plant = build_plant(config)
        self._names = names_of(config)
        self._fleet: Fleet = instantiate(config.servers)
        self._control: Control = instantiate(config.control)
        self._settings = config.router
        self._requests = build_requests(config)
        self._happened = _Happened()
        self._gpus: Gpus | None = None
        self._controller: Controller | None = None
        self._stop = asyncio.Event()
        self._replaying = False
        self._loads: dict[str, LoadSnapshot] = {}
        self._prefill_heard: Callable[[], None] = lambda: None
        if self._fleet.emulated and not isinstance(self._control, SimulatedControl | ObserveControl):
            raise UserError("control: emulated servers are their own GPUs, allowed: simulated, observe")

    async def run(self) -> dict[str, Any]:
        """Do it all; return the summary.

        Raises:
            UserError: something in the configuration is wrong, or a part could not be started.
            PolicyError: a policy raised or answered what is not allowed; what had happened is in the record.
            RunError: the owner of clocks or the load client was lost; what had happened is in the record.
            KeyboardInterrupt: it was interrupted; what had happened is in the record.
        """
        task = asyncio.current_task()
        assert task is not None
        with self._signals(task):
            try:
                return await self._run()
            except asyncio.CancelledError:
                raise KeyboardInterrupt from None

    @contextmanager
    def _signals(self, task: asyncio.Task[Any]) -> Iterator[None]:
        """SIGINT and SIGTERM end the replay; before and after it, and the second time, whatever goes on."""

        def stop() -> None:
            if self._replaying and not self._stop.is_set():
                self._stop.set()
            else:
                task.cancel()

        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    async def _run(self) -> dict[str, Any]:
        async with AsyncExitStack() as stack:
            self._check_requests()
            check_address(self._settings.host, self._settings.port)
            servers = self._fleet.servers(self._config, self._folder, self._server_ended)
            gpus = self._gpus = self._build_gpus()
            stack.push_async_callback(gpus.close)
            await gpus.open()
            bundle = self._bundle(gpus)
            controllers = [*bundle.prefill_controllers, *bundle.decode_controllers]
            gpus.often = any(getattr(part, "reads_power", False) for part in controllers)
            subscriber = stack.enter_context(Subscriber(self._heard))
            clocks_mhz = list(gpus.clocks_mhz) or list(self._plant.gpu.clocks())
            parts = dict(zip(self._names, controllers, strict=True))
            controller = self._controller = Controller(
                parts,
                gpus,
                subscriber,
                blind_mhz=clocks_mhz[-1],
                power_w=gpus.power_w,
                on_error=self._policy_failed,
            )
            record = stack.enter_context(ExitStack())
            writer = self._writer(record)
            stack.push_async_callback(servers.stop)
            self._view.say("starting servers")
            await servers.start()
            await gpus.attach([*servers.of("prefill"), *servers.of("decode")])
            stack.push_async_callback(gpus.close)
            await self._connect(servers, gpus, controller, subscriber)
            stack.callback(controller.stop)
            summary = await self._measure(stack, servers, gpus, bundle, subscriber, controller, writer)
            record.close()
            return summary

    def _writer(self, stack: ExitStack) -> RecordWriter:
        values, folder = self._values, self._folder
        about = provenance("live", dependencies("live", values, self._predictor_files), self._sweep)
        claimed = stack.enter_context(claim(folder, values, overwrite=self._overwrite))
        return stack.enter_context(RecordWriter(folder, values, provenance=about, claimed=claimed))

    def _check_requests(self) -> None:
        """Read all requests once."""
        foreseen(self._config)

    async def _kill_frozen(self, servers: Servers, subscriber: Subscriber) -> None:
        """Kill servers of ours that are there and say nothing, so that nobody waits for them."""
        silent_s = self._config.frozen_s
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(1.0)
            if time.monotonic() - before_s > 2.0:
                continue  # it was this process that stood still
            for name, endpoint in servers.endpoints.items():
                if endpoint.pid and name not in self._happened.ended and subscriber.age_s(name) > silent_s:
                    self._server_ended(name, f"it said nothing for {silent_s:g} s")
                    servers.kill(name)

    def _server_ended(self, name: str, message: str) -> None:
        if name in self._happened.ended:
            return
        self._happened.ended[name] = message
        if self._gpus is not None:
            self._gpus.ended(name)
        self._view.say(f"{name} ended: {message}")

    def _policy_failed(self, error: Exception) -> None:
        if self._happened.wrong is None:
            self._happened.wrong = error
            self._stop.set()

    def _check_policies(self) -> None:
        if self._happened.wrong is not None:
            with PolicyError.of(f"run {self._folder}"):
                raise self._happened.wrong

    # Parts

    def _build_gpus(self) -> Gpus:
        config, plant = self._config, self._plant
        drives = not isinstance(self._control, ObserveControl)
        if self._fleet.emulated:
            limits = (plant.gpu.power_limit_min_w, plant.gpu.power_limit_w)
            return EmulatedGpus(
                self._names,
                plant.gpu.clocks(),
                limits,
                command_s=config.actuation.block_s * plant.model.tp,
                per_host=max(1, gpus_per_host(config, plant) // plant.model.tp),
                drives=drives,
            )
        groups = self._fleet.gpus(config, real=not isinstance(self._control, SimulatedControl))
        owners = self._fleet.owners
        parts = [
            self._owned(owner, {name: gpus for name, gpus in groups.items() if owners.get(name, "") == owner}, drives)
            for owner in dict.fromkeys(owners.get(name, "") for name in groups)
        ]
        return parts[0] if len(parts) == 1 else SeveralGpus(parts)

    def _owned(self, owner: str, groups: Groups, drives: bool) -> OwnedGpus:
        """GPUs of one owner; of `control` if the path of its socket is empty."""
        if not owner:
            return OwnedGpus(self._control, groups, "voltana-live", drives=drives, on_lost=self._clocks_lost)
        if not isinstance(self._control, NvmlControl | ObserveControl):
            raise UserError(f"servers: found owner {owner} of {min(groups)}, allowed: with control=nvml or observe")

        control = NvmlControl(socket=owner)
        return OwnedGpus(control, groups, "voltana-live", drives=drives, on_lost=self._clocks_lost, where=owner)

    def _clocks_lost(self, message: str) -> None:
        if not self._happened.lost:
            self._happened.lost = message
            self._view.say(message)
            self._stop.set()

    def _bundle(self, gpus: Gpus) -> Bundle:
        config, plant = self._config, self._plant

        def power_limits_w() -> tuple[float, float]:
            if gpus.uncapped:
                raise PolicyError(f"it caps power, but {gpus.uncapped}, allowed: policies that set clocks alone")
            return gpus.power_limits_w or (plant.gpu.power_limit_min_w, plant.gpu.power_limit_w)

        offers = Offers(
            clocks_mhz=lambda: list(gpus.clocks_mhz) or plant.gpu.clocks(),
            power_limits_w=power_limits_w,
            kv_capacity_tokens=lambda: decode_limits(config.serving.decode, plant).kv_tokens,
            predictor=cache(self._predictor),
        )
        return build_bundle(config, offers)

    def _predictor(self) -> EcoPred:
        config, taken = self._config, measured(self._plant, self._config.profile)
        self._predictor_files["predictor"] = file = predictor_file(config.predictor, config, taken)
        if config.predictor == AUTO and not file.is_file():
            self._view.say("predictor=auto: profiling the plant and fitting, once")
        return load_predictor(config.predictor, config, taken)

    async def _connect(self, servers: Servers, gpus: Gpus, controller: Controller, subscriber: Subscriber) -> None:
        """Hear all servers; start the controller where clocks are driven."""
        for endpoint in servers.endpoints.values():
            subscriber.connect(endpoint.telemetry)
        subscriber.attach(asyncio.get_running_loop())
        await self._hear_all(servers, subscriber)
        if gpus.drives:
            controller.start()
            self._check_policies()
        for telemetry in subscriber.latest.values():
            self._heard(telemetry)

    def _heard(self, telemetry: Telemetry) -> None:
        assert self._gpus is not None and self._controller is not None
        self._controller.on_telemetry(telemetry)
        clock_mhz = self._gpus.setpoint(telemetry.instance).clock_mhz
        if not clock_mhz:
            clock_mhz = telemetry.load.clock_mhz or (list(self._gpus.clocks_mhz) or self._plant.gpu.clocks())[-1]
        self._loads[telemetry.instance] = telemetry.load._replace(clock_mhz=clock_mhz)
        self._gpus.heard(telemetry)
        if telemetry.phase == "prefill":
            self._prefill_heard()

    async def _hear_all(self, servers: Servers, subscriber: Subscriber) -> None:
        until_s = time.monotonic() + HEAR_S
        while missing := [name for name in servers.endpoints if name not in subscriber.latest]:
            if time.monotonic() > until_s:
                where = servers.endpoints[missing[0]].telemetry
                raise UserError(f"{missing[0]}: no telemetry at {where} within {HEAR_S:g} s; is the plugin installed?")
            await asyncio.sleep(0.02)

    def _router(self, servers: Servers, bundle: Bundle, recorder: LiveRecorder, start_s: float) -> RouterServer:
        def backend(endpoint: Endpoint) -> Backend:
            return Backend(endpoint.url, endpoint.bootstrap_port or None, lambda: self._loads.get(endpoint.name))

        return RouterServer(
            [backend(each) for each in servers.of("prefill")],
            [backend(each) for each in servers.of("decode")],
            bundle.prefill_router,
            bundle.decode_router,
            self._settings,
            recorder,
            start_s,
            self._policy_failed,
        )

    # The run itself

    async def _measure(
        self,
        stack: AsyncExitStack,
        servers: Servers,
        gpus: Gpus,
        bundle: Bundle,
        subscriber: Subscriber,
        controller: Controller,
        writer: RecordWriter,
    ) -> dict[str, Any]:
        config = self._config
        prefill, decode = ([each.name for each in servers.of(role)] for role in ("prefill", "decode"))
        requests = self._requests
        recorder = LiveRecorder(
            writer,
            config.slo.objectives,
            config.policy.about(),
            prefill,
            decode,
            requests.about,
            about_gpus(self._values),
        )
        start_s = time.monotonic() + LEAD_S
        router = await stack.enter_async_context(self._router(servers, bundle, recorder, start_s))
        self._prefill_heard = router.core.prefill.heard
        order = Order(
            self._settings.host, router.port, start_s, config.slo.objectives.itl_s, config.client.token_ids, config.seed
        )
        replay = await stack.enter_async_context(Replay(order, recorder, self._view.say))
        tune_gc()
        gpus.begin(start_s)
        await asyncio.sleep(max(0.0, start_s - time.monotonic()))
        subscriber.begin()
        self._replaying = True
        client_lost = ""
        try:
            frozen = self._kill_frozen(servers, subscriber)
            async with self._meanwhile(self._show(start_s, recorder, gpus), self._record(recorder, gpus), frozen):
                whole = await replay.run(requests, config.drain_s, self._stop)
        except ClientLostError as error:
            whole, client_lost = False, str(error)
        finally:
            gc.unfreeze()
            self._replaying = False
        now_s = time.monotonic() - start_s
        await gpus.settle()
        changes = {name: controller.changes(name) for name in self._names}
        end_s = recorder.end_s if whole and recorder.completed else now_s
        live = self._about(recorder, controller, subscriber, gpus)
        late = starved(live["client_lag_ms"], live["transport_ms"], live["server_lag_ms"])
        summary = recorder.close(gpus, changes, end_s, now_s, not whole, live, late)
        self._view.end()
        self._check_policies()
        self._happened.check(client_lost)
        if not whole:
            raise KeyboardInterrupt
        return summary

    @asynccontextmanager
    async def _meanwhile(self, *works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
        """Do this besides; what one of them raises ends the replay."""
        tasks = [asyncio.create_task(work) for work in works]
        for task in tasks:
            task.add_done_callback(lambda task: None if task.cancelled() else self._stop.set())
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    @staticmethod
    async def _record(recorder: LiveRecorder, gpus: Gpus) -> None:
        while True:
            await asyncio.sleep(RECORD_EVERY_S)
            recorder.record(gpus, min(recorder.end_s, gpus.known_s))

    async def _show(self, start_s: float, recorder: LiveRecorder, gpus: Gpus) -> None:
        while True:
            meters = {name: (gpus.clock_mhz(name), gpus.power_w(name)) for name in self._names}
            self._view.show(time.monotonic() - start_s, recorder, self._loads, meters)
            await asyncio.sleep(SHOW_EVERY_S)

    def _about(
        self, recorder: LiveRecorder, controller: Controller, subscriber: Subscriber, gpus: Gpus
    ) -> dict[str, Any]:
        return {
            "servers": self._config.servers.get("name"),
            "control": self._config.control.get("name"),
            "client_lag_ms": recorder.lag.summary_ms(),
            "decision_ms": controller.decision_latency.summary_ms(),
            "transport_ms": subscriber.transport_latency.summary_ms(),
            "server_lag_ms": gpus.lags_ms(),
            "decision_errors": controller.errors,
            "telemetry_lost": subscriber.lost,
            "commands_refused": gpus.refused(),
            "power_meters": list(gpus.power_meters),
            "failures": dict(recorder.failures),
            "servers_ended": dict(self._happened.ended),
            "privileged": isinstance(self._control, NvmlControl),
        }


def check_address(host: str, port: int) -> None:
    """Raise `UserError` if the router could not listen there."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        raise UserError(f"router.host, router.port: cannot listen at {host}:{port} ({error.strerror})") from error
