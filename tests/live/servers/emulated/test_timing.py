"""Time, energy and telemetry of running servers, and their end."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from voltana.errors import UserError
from voltana.live.gpus.emulated import EmulatedGpus
from voltana.live.servers.emulated.cluster import EmulatedCluster
from voltana.live.servers.emulated.config import build_plant, load_config
from voltana.live.telemetry.message import Telemetry
from voltana.live.telemetry.subscriber import Subscriber
from voltana.section import parse
from voltana.sim.plant import EngineSpec, GpuSpec, ModelSpec, Plant

pytestmark = pytest.mark.slow

Run = Callable[..., None]


@pytest.fixture
def plant(sections: dict[str, Any]) -> Plant:
    gpu, model = parse(GpuSpec, sections["gpu"], "gpu"), parse(ModelSpec, sections["model"], "model")
    return Plant(gpu, model, parse(EngineSpec, sections["engine"], "engine"))


async def stamps(client: Any, cluster: EmulatedCluster, prompt: int, output: int) -> list[float]:
    """Times at which the tokens of a stream come."""
    prefill, decode = cluster.endpoints.values()
    body = client.paired(cluster, {"prompt": [1] * prompt, "max_tokens": output, "stream": True})
    reader, writer = await asyncio.open_connection(decode.host, decode.port)
    writer.write(client.packed("POST", "/v1/completions", body))
    other = asyncio.create_task(client.ask(prefill, "POST", "/v1/completions", body))
    times = []
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            times.append(time.monotonic())
    await other
    writer.close()
    return times


def test_the_gaps_between_tokens_are_the_plants(run: Run, client: Any, plant: Plant) -> None:
    batch, prompt, output = 6, 200, 60

    async def check(cluster: EmulatedCluster) -> None:
        gpus = EmulatedGpus(list(cluster.endpoints), ())
        await gpus.attach(list(cluster.endpoints.values()))
        for clock in (1410, 705):
            gpus.set_clock("decode-0", clock)
            streams = await asyncio.gather(*(stamps(client, cluster, prompt, output) for _ in range(batch)))
            # All are in the batch between the first token of the last and the last of the first.
            gaps = [(times[-2] - times[9]) / (output - 11) for times in streams]
            expected = plant.decode(batch, batch * (prompt + output // 2), clock).duration_s
            assert sum(gaps) / batch == pytest.approx(expected, rel=0.05)
            assert all(len(times) == output for times in streams)
        await gpus.close()

    run(check)


def test_energy_is_the_integral_of_the_rows(run: Run, client: Any, plant: Plant) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        prefill, decode = cluster.endpoints.values()
        changed = await client.ask(decode, "POST", "/emulated/clock", {"mhz": 1005})
        assert changed.json == {"mhz": 1005}
        body = {"input_ids": [1] * 3000, "sampling_params": {"max_new_tokens": 20}}
        await asyncio.gather(*(client.both(cluster, "/generate", body) for _ in range(4)))
        for server in (prefill, decode):
            shown = (await client.ask(server, "GET", "/emulated/rows")).json
            energy = (await client.ask(server, "GET", "/emulated/energy")).json
            rows = [dict(zip(shown["columns"], row, strict=True)) for row in shown["rows"]]
            ends = [row["time_s"] for row in rows[1:]] + [shown["end_s"]]
            total = sum(row["power_w"] * (end - row["time_s"]) for row, end in zip(rows, ends, strict=True))
            assert total + energy["power_w"] * (energy["time_s"] - shown["end_s"]) == pytest.approx(energy["energy_j"])
            assert all(first["time_s"] < second["time_s"] for first, second in pairwise(rows))
            assert max(row["batch_size"] for row in rows) >= 1
            assert rows[0]["power_w"] == pytest.approx(plant.idle_power_w(1410))
            clock = 1410 if server.role == "prefill" else 1005
            assert energy["power_w"] == pytest.approx(plant.idle_power_w(clock))
            later = (await client.ask(server, "GET", f"/emulated/rows?first={len(rows)}")).json["rows"]
            assert len(later) >= 1 and later[0][0] == shown["end_s"]
        assert (await client.ask(decode, "GET", "/emulated/rows?first=x")).status == 400

    run(check)


def test_clock_commands_are_checked(run: Run, client: Any) -> None:
    async def check(cluster: EmulatedCluster) -> None:
        decode = cluster.endpoints["decode-0"]
        for body in ({"mhz": 1001}, {"mhz": 1410, "power_cap_w": 4000}, {"mhz": "fast"}, {"clock": 1410}):
            assert (await client.ask(decode, "POST", "/emulated/clock", body)).status == 400
        got = await client.ask(decode, "POST", "/emulated/clock", {"mhz": 1005, "power_cap_w": 250})
        assert got.json == {"mhz": 1410}, "not in force yet"

        async def settled() -> bool:
            shown = (await client.ask(decode, "GET", "/emulated/energy")).json
            return bool((shown["clock_mhz"], shown["power_cap_w"]) == (1005, 250))

        await client.eventually(settled)

    run(check, settle_s=0.1)


def test_every_iteration_is_published(run: Run, client: Any) -> None:
    seen: list[Telemetry] = []

    async def check(cluster: EmulatedCluster) -> None:
        with Subscriber(seen.append) as subscriber:
            for endpoint in cluster.endpoints.values():
                subscriber.connect(endpoint.telemetry)
            subscriber.attach(asyncio.get_running_loop())

            async def heard() -> bool:
                return len(subscriber.latest) == 2

            await client.eventually(heard)
            subscriber.begin()
            seen.clear()
            body = {"input_ids": [1] * 100, "sampling_params": {"max_new_tokens": 12}}
            await client.both(cluster, "/generate", body)

            async def over() -> bool:
                return seen[-1].instance == "decode-0" and seen[-1].load.batch_size == 0

            await client.eventually(over)
            prefill = [each.load for each in seen if each.phase == "prefill" and each.load.batch_size]
            decode = [each.load for each in seen if each.phase == "decode" and each.load.batch_size]
            assert [(load.batch_size, load.batch_tokens) for load in prefill] == [(1, 100)]
            assert [load.batch_tokens for load in decode] == list(range(101, 112))
            assert [load.iterations for load in decode] == list(range(11))
            assert all(load.clock_mhz == 1410 and load.queued == 0 for load in decode)
            last = subscriber.latest["decode-0"].load
            assert (last.arrived_requests, last.arrived_tokens, last.iterations) == (1, 100, 11)
            assert last.busy_s == pytest.approx(decode[-1].time_s - decode[0].time_s + last.busy_s / 11, rel=0.2)
            assert subscriber.lost == 0 and subscriber.rejected == 0

    run(check)


def test_servers_end_with_the_process_that_started_them(sections: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "plant.json").write_text(json.dumps(sections))
    code = f"""
import asyncio, json, pathlib
from voltana.live.servers.emulated.cluster import EmulatedCluster
async def main():
    cluster = EmulatedCluster(1, 1, json.loads(pathlib.Path({str(tmp_path / "plant.json")!r}).read_text()))
    await cluster.start()
    print(cluster._folder, *(each.pid for each in cluster.endpoints.values()), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    folder, *words = parent.stdout.readline().split()
    pids = [int(word) for word in words]
    assert len(pids) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait(10)
    parent.stdout.close()
    end_s = time.monotonic() + 10
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < end_s, "a server outlived its parent"
        time.sleep(0.02)
    assert not Path(folder).exists()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_stopping_leaves_nothing(sections: dict[str, Any]) -> None:
    async def check() -> None:
        cluster = EmulatedCluster(1, 1, sections)
        await cluster.start()
        endpoints = list(cluster.endpoints.values())
        folder = Path(endpoints[0].telemetry.removeprefix("ipc://")).parent
        assert folder.is_dir()
        await cluster.stop()
        await cluster.stop()
        assert not folder.exists()
        assert not any(alive(endpoint.pid) for endpoint in endpoints)

    asyncio.run(check())


def test_a_server_that_cannot_start_says_why(sections: dict[str, Any]) -> None:
    async def check() -> None:
        cluster = EmulatedCluster(1, 1, sections, {"clock_mhz": 1000})
        says = "prefill-0 did not start: it ended with exit status 2, having said: clock_mhz: found 1000, allowed: 210"
        with pytest.raises(UserError, match=says):
            await cluster.start()
        with pytest.raises(UserError, match="clock_mhz: found 1000"):
            cluster.check()

    asyncio.run(check())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"phase": "both"}, "phase"),
        ({"stream_interval": 0}, "stream_interval: found 0, allowed: 1 or more"),
        ({"typo": 1}, "typo"),
        ({"link": {"latency_s": -1.0}}, "link.latency_s: found -1.0"),
        ({"gpu": {}}, "gpu"),
        ({"decode": {"kv_tokens": 10**9}}, "decode.kv_tokens"),
    ],
)
def test_bad_configurations_name_the_key(
    sections: dict[str, Any], tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = tmp_path / "server.json"
    path.write_text(json.dumps({"name": "x", "phase": "decode", **sections, **change}))
    with pytest.raises(UserError, match=reason):
        build_plant(load_config(path))
