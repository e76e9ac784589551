"""`voltana-profile source=sglang`: profile servers that run, by their telemetry, over clocks and loads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from voltana import checks
from voltana.errors import UserError
from voltana.live.gpus import Gpus
from voltana.live.profiling.cells import Cell, Group, decode_groups, prefill_group, spread_order
from voltana.live.profiling.journal import Journal
from voltana.live.profiling.search import Search
from voltana.live.profiling.served.iterations import Iterations
from voltana.live.profiling.served.measure import NotReachedError, Served, Stage
from voltana.live.profiling.served.pair import Pair
from voltana.live.profiling.served.settings import ServedSettings
from voltana.live.profiling.show import Show
from voltana.live.servers import Endpoint
from voltana.live.telemetry.subscriber import Subscriber
from voltana.prediction.profile import write_profile

FORMAT = "voltana-served-profile-1"
NO_CLOCK_MHZ = 1000
"""What stands for the clock in the table of a machine that has none, or does not tell it."""
EVERY = 8
"""Further cells between two times that the table is written."""


class ServedProfile:
    """One profile of one pair of servers.

    Args:
        pair: the servers.
        iterations: what their telemetry tells; both have been heard of.
        gpus: their clocks and meters.
        settings: what and how long.
        out: the table; the journal and the report lie beside it.
        show: where progress goes.
        about: what else all cells have in common, and a journal is checked for.
    """

    def __init__(
        self,
        pair: Pair,
        iterations: Iterations,
        gpus: Gpus,
        settings: ServedSettings,
        out: Path,
        show: Show,
        about: Mapping[str, Any],
    ) -> None:
        self._pair, self._iterations, self._gpus = pair, iterations, gpus
        self._settings, self._out, self._show = settings, out, show
        self._stage = Stage(pair, iterations, gpus, settings)
        self._notes: list[str] = []
        self._about = {"format": FORMAT, **about, "gpus": gpus.models, "settings": self._lasting()}
        self._journal = Journal(out.with_suffix(".cells.jsonl"), self._about, Served)

    async def run(self) -> None:
        """Measure until the fit is good, all is measured or time is up."""
        clocks, settable = await self._clocks()
        search = Search(
            self._groups(), self._journal.cells, self._settings.budget_s, clocks, self._settings.good_misfit
        )
        while (cell := search.next_cell()) is not None:
            try:
                await self._measure(cell, search, settable)
            except NotReachedError as error:
                self._note(f"skipped: {cell.phase} of {cell.batch_size} x {cell.length} tokens: {error}")
                search.skip(cell)
        spent = "" if search.spent_s < self._settings.budget_s else ", as the time was up"
        self._show.line(f"measured for {search.spent_s:.0f} s{spent}")
        if len(clocks) < 2:
            self._note("one clock: voltana-fit needs two or more")

    def write(self) -> None:
        """Write the table and what is known of it; called after an interruption too."""
        cells = self._journal.cells
        if not cells:
            return
        write_profile(self._out, [measured.sample() for measured in cells])
        self._show.line(f"{len(cells)} rows written to {self._out}")
        if self._iterations.missed:
            self._note(f"{self._iterations.missed} iterations could not be told apart and were left out")
        if all(measured.energy_j is None for measured in cells):
            self._note("no energy counter: energy is empty")
        for line in self._notes:
            self._show.line(f"note: {line}")
        report = {**self._about, "table": self._out.name, "notes": self._notes, "cells": [asdict(m) for m in cells]}
        self._out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")

    def _lasting(self) -> dict[str, Any]:
        """Settings that change a row, as opposed to those that say how many there are."""
        keys = ("iterations", "window_s", "tolerance")
        return {key: list(v) if isinstance(v := getattr(self._settings, key), Sequence) else v for key in keys}

    def _note(self, line: str) -> None:
        if line not in self._notes:
            self._notes.append(line)

    async def _clocks(self) -> tuple[list[int], bool]:
        """Clocks to measure at, and whether they are set."""
        wanted = sorted(set(self._settings.clocks_mhz))
        if self._gpus.settable:
            every = wanted or self._gpus.clocks_mhz[-1:]
            return list(checks.levels("profile.clocks_mhz", every, self._gpus.clocks_mhz)), bool(wanted)
        if len(wanted) > 1:
            raise UserError(
                f"profile.clocks_mhz: found {wanted}, allowed where no clock can be set: [], or the one in force"
            )
        in_force = (await self._gpus.read(self._pair.decode.name)).clock_mhz
        if not wanted and in_force is None:
            self._note(f"the clock is not told: {NO_CLOCK_MHZ} MHz in the table stands for it")
        return (wanted or [in_force or NO_CLOCK_MHZ]), False

    def _groups(self) -> list[Group]:
        settings = self._settings
        capacity, reserve = self._iterations.kv_tokens(self._pair.decode.name) or 2**31, settings.decode.reserve_tokens
        groups = [prefill_group(settings.prefill), *decode_groups(settings.decode, capacity, reserve)]
        if len(groups) == 1:
            least = settings.decode.tokens_per_request[0]
            raise UserError(
                f"profile.decode.tokens_per_request: found {least} (and {reserve} reserve_tokens), allowed: up to the "
                f"{capacity} KV tokens of the server"
            )
        return spread_order(groups)

    async def _measure(self, cell: Cell, search: Search, settable: bool) -> None:
        clocks = search.missing_clocks(cell)
        async for measured in self._stage.measure(cell, clocks, settable):
            self._journal.add(measured)
            search.add(measured)
            self._show.progress(search.spent_s)
            self._show.line(describe(measured))
        if len(self._journal.cells) % EVERY < len(clocks):
            write_profile(self._out, [each.sample() for each in self._journal.cells])


def describe(measured: Served) -> str:
    """One line: clock, load as it was, latency and its interval, power."""
    energy, latency = measured.energy_j, measured.latency_s
    power = "       -" if energy is None else f"{energy / latency:6.1f} W"
    return (
        f"{measured.clock_mhz:5} MHz {measured.phase:7} {measured.batch_size:5} requests {measured.tokens:8} tokens "
        f"{latency * 1e3:10.3f} ms +-{100 * measured.latency_interval:4.1f} %  {power}  "
        f"{measured.iterations} iterations, {measured.spent_s:.1f} s"
    )


async def profile_pair(
    prefill: Endpoint,
    decode: Endpoint,
    gpus: Gpus,
    settings: ServedSettings,
    out: Path,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Profile a pair of servers that run, and write the table, even if interrupted.

    Args:
        prefill, decode: the servers.
        gpus: their clocks and meters; opened here and closed at the end.
        settings: what and how long.
        out: the table to write.
        about: what else all cells have in common.

    Raises:
        UserError: a server, the GPUs or a journal found refuse.
    """
    iterations = Iterations()
    endpoints = (prefill, decode)
    with Subscriber(iterations.take) as subscriber, Show(settings.budget_s) as show:
        for endpoint in endpoints:
            subscriber.connect(endpoint.telemetry)
        subscriber.attach(asyncio.get_running_loop())
        await iterations.heard_of(prefill.name, decode.name)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(gpus.close)
            await gpus.open()
            await gpus.attach(endpoints)
            pair = Pair(prefill, decode, settings.seed)
            about = {**(about or {}), "servers": await pair.about()}
            iterations.listeners.append(gpus.heard)
            profile = ServedProfile(pair, iterations, gpus, settings, out, show, about)
            try:
                await profile.run()
            finally:
                profile.write()
