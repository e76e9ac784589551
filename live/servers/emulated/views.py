"""What an emulated server tells of itself, and its clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sized
from functools import partial
from http import HTTPStatus
from typing import Any, Protocol

import msgspec

from voltana.live.servers.emulated.config import ServerConfig
from voltana.live.servers.emulated.driver import Driver, RowHistory
from voltana.live.servers.emulated.http import Reply, Request
from voltana.sim.plant import Plant

VERSION = "0.5.23"
"""Of SGLang, whose protocol this is."""

Handler = Callable[[Request, Reply], None]


class ClockCommand(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The body of a clock command."""

    mhz: int
    power_cap_w: float | None = None


class Shown(Protocol):
    """What is looked at of a server; see `voltana.live.servers.emulated.server.Server`."""

    config: ServerConfig
    plant: Plant
    port: int
    bootstrap_port: int

    rows: RowHistory

    @property
    def driver(self) -> Driver:
        """What drives the instance."""
        ...

    @property
    def halves(self) -> Sized:
        """Requests that are not complete."""
        ...

    @property
    def totals(self) -> Mapping[str, int]:
        """Counters."""
        ...

    @property
    def kv_tokens(self) -> int:
        """KV tokens that fit."""
        ...

    @property
    def queued(self) -> int:
        """Requests that wait here, for the GPU or for their other half."""
        ...


class Views:
    """The endpoints that ask for nothing to be computed.

    Args:
        server: whose they are.
    """

    def __init__(self, server: Shown) -> None:
        self._server = server

    def routes(self) -> dict[tuple[str, str], Handler]:
        """Handlers by method and path."""
        get: dict[str, Handler] = {
            "/health": self._healthy,
            "/health_generate": self._healthy,
            "/server_info": self._server_info,
            "/get_server_info": self._server_info,
            "/model_info": self._model_info,
            "/get_model_info": self._model_info,
            "/v1/models": self._models,
            "/v1/loads": self._loads,
            "/metrics": self._metrics,
            "/flush_cache": self._flush,
            "/emulated/energy": self._energy,
            "/emulated/rows": self._rows,
        }
        post: dict[str, Handler] = {"/flush_cache": self._flush, "/emulated/clock": self._set_clock}
        routes = {("GET", path): handler for path, handler in get.items()}
        return routes | {("POST", path): handler for path, handler in post.items()}

    def _healthy(self, _: Request, reply: Reply) -> None:
        reply.send(HTTPStatus.OK, b"", "text/plain")

    def _server_info(self, _: Request, reply: Reply) -> None:
        config = self._server.config
        values = {
            "version": VERSION,
            "frontend": "emulated",
            "model_path": config.served_model_name,
            "served_model_name": config.served_model_name,
            "disaggregation_mode": config.phase,
            "disaggregation_bootstrap_port": self._server.bootstrap_port,
            "host": config.host,
            "port": self._server.port,
            "tp_size": self._server.plant.model.tp,
            "dp_size": 1,
            "stream_interval": config.stream_interval,
            "max_running_requests": self._max_requests(),
            "max_total_num_tokens": self._server.kv_tokens,
            "internal_states": [self._load_values()],
        }
        reply.json(HTTPStatus.OK, values)

    def _max_requests(self) -> int:
        config = self._server.config
        return (config.prefill if config.phase == "prefill" else config.decode).max_requests

    def _model_info(self, _: Request, reply: Reply) -> None:
        name = self._server.config.served_model_name
        values = {
            "model_path": name,
            "served_model_name": name,
            "tokenizer_path": name,
            "is_generation": True,
            "disaggregation_mode": self._server.config.phase,
            "weight_version": "default",
        }
        reply.json(HTTPStatus.OK, values)

    def _models(self, _: Request, reply: Reply) -> None:
        name = self._server.config.served_model_name
        card = {"id": name, "object": "model", "created": 0, "owned_by": "voltana", "root": name}
        card |= {"parent": None, "max_model_len": self._server.kv_tokens}
        reply.json(HTTPStatus.OK, {"object": "list", "data": [card]})

    def _load_values(self) -> dict[str, Any]:
        load, room, decode = self._server.driver.load(), self._server.kv_tokens, self._server.config.phase == "decode"
        waiting = self._server.queued
        used = load.batch_tokens + (load.queued_tokens if decode else 0)
        return {
            "dp_rank": 0,
            "num_running_reqs": load.batch_size,
            "num_waiting_reqs": waiting,
            "num_total_reqs": load.batch_size + waiting,
            "num_waiting_uncached_tokens": load.queued_tokens,
            "num_used_tokens": used,
            "num_total_tokens": load.batch_tokens + load.queued_tokens,
            "num_active_tokens": load.batch_tokens,
            "max_total_num_tokens": room,
            "token_usage": round(used / room, 4),
            "disaggregation": {"mode": self._server.config.phase, **self._pair_values(waiting - load.queued)},
            "queues": {"waiting": load.queued},
        }

    def _pair_values(self, unpaired: int) -> dict[str, int]:
        key = "prefill_bootstrap_queue_reqs" if self._server.config.phase == "prefill" else "decode_transfer_queue_reqs"
        return {key: unpaired}

    def _loads(self, _: Request, reply: Reply) -> None:
        reply.json(HTTPStatus.OK, {"timestamp": time.time(), "version": VERSION, "loads": [self._load_values()]})

    def _metrics(self, _: Request, reply: Reply) -> None:
        values, driver = self._load_values(), self._server.driver
        gauges = {
            "sglang:num_running_reqs": values["num_running_reqs"],
            "sglang:num_queue_reqs": values["num_waiting_reqs"],
            "sglang:num_used_tokens": values["num_used_tokens"],
            "sglang:token_usage": values["token_usage"],
            "voltana_emulated_clock_mhz": driver.instance.setting.clock_mhz,
            "voltana_emulated_power_watts": round(driver.instance.power_w, 3),
        }
        counters = {
            "sglang:num_requests_total": self._server.totals["requests"],
            "sglang:num_aborted_requests_total": self._server.totals["aborted"],
            "sglang:prompt_tokens_total": self._server.totals["prompt_tokens"],
            "sglang:generation_tokens_total": self._server.totals["generation_tokens"],
            "voltana_emulated_energy_joules_total": round(driver.instance.energy_j(driver.now_s), 3),
        }
        label = f'{{model_name="{self._server.config.served_model_name}"}}'
        lines = [
            f"# TYPE {name} {kind}\n{name}{label} {value}\n"
            for kind, metrics in (("gauge", gauges), ("counter", counters))
            for name, value in metrics.items()
        ]
        reply.send(HTTPStatus.OK, "".join(lines).encode(), "text/plain; version=0.0.4; charset=utf-8")

    def _flush(self, _: Request, reply: Reply) -> None:
        if self._server.halves:
            text = f"Flush cache failed: {len(self._server.halves)} requests are running or waiting.\n"
            reply.send(HTTPStatus.BAD_REQUEST, text.encode(), "text/plain")
        else:
            reply.send(HTTPStatus.OK, b"Cache flushed.\n", "text/plain")

    def _energy(self, _: Request, reply: Reply) -> None:
        """Everything the meter knows, at this instant."""
        driver, instance = self._server.driver, self._server.driver.instance
        values = {
            "instance": self._server.config.name,
            "time_s": driver.now_s,
            "energy_j": instance.energy_j(driver.now_s),
            "power_w": instance.power_w,
            "clock_mhz": instance.setting.clock_mhz,
            "clock_in_force_mhz": instance.shown_clock_mhz,
            "power_cap_w": instance.setting.power_cap_w,
            "iterations": instance.iterations,
            "busy_s": instance.busy_s,
            "lag_ms": driver.lag.summary_ms(),
        }
        reply.json(HTTPStatus.OK, values)

    def _rows(self, request: Request, reply: Reply) -> None:
        """The rows from number `first` on, the open one closed now."""
        first = request.query.get("first", "0")
        if not first.isdecimal():
            reply.json(HTTPStatus.BAD_REQUEST, {"error": {"message": f"first: found {first!r}, allowed: a number"}})
            return
        driver = self._server.driver
        driver.instance.flush(driver.now_s)
        columns = ["time_s", "clock_mhz", "batch_size", "kv_tokens", "queued", "power_w"]
        number, rows = self._server.rows.since(int(first))
        values = {
            "instance": self._server.config.name,
            "phase": self._server.config.phase,
            "columns": columns,
            "first": number,
            "rows": [(row.time_s, *row[3:]) for row in rows],
            "end_s": driver.now_s,
            "lag_ms": driver.lag.summary_ms(),
        }
        reply.json(HTTPStatus.OK, values)

    def _set_clock(self, request: Request, reply: Reply) -> None:
        """A clock command, ``{"mhz": 1005}``, perhaps with a power limit per GPU, ``"power_cap_w"``."""
        try:
            command = msgspec.json.decode(request.body, type=ClockCommand)
        except msgspec.DecodeError as error:
            reply.json(HTTPStatus.BAD_REQUEST, {"error": {"message": str(error)}})
            return
        gpu, cap = self._server.plant.gpu, command.power_cap_w
        if command.mhz not in gpu.clocks() or not (cap is None or 0 < cap <= gpu.power_limit_w):
            clocks = f"{gpu.clock_min_mhz} to {gpu.clock_max_mhz} MHz by {gpu.clock_step_mhz}"
            message = f"{command}; allowed: {clocks}, a limit up to {gpu.power_limit_w:g} W"
            reply.json(HTTPStatus.BAD_REQUEST, {"error": {"message": message}})
            return
        driver = self._server.driver
        apply = partial(driver.set_clock, command.mhz, cap)
        driver.at(driver.now_s + self._server.config.settle_s, apply)
        driver.advance(driver.now_s)
        reply.json(HTTPStatus.OK, {"mhz": driver.instance.setting.clock_mhz})
