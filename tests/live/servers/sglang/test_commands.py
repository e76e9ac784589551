"""Our commands on real servers that run already."""

import asyncio
import sys
from pathlib import Path
from typing import Any

from voltana.prediction.profile import read_profile
from voltana.record import RunRecord


def addresses(stack: Any, role: str, count: int) -> str:
    """Servers of the stack as the configuration names them."""
    servers = []
    for endpoint in stack.servers.of(role)[:count]:
        bootstrap = f"bootstrap_port: {endpoint.bootstrap_port}, " if endpoint.bootstrap_port else ""
        servers.append(f"{{url: '{endpoint.url}', {bootstrap}telemetry: '{endpoint.telemetry}'}}")
    return ",".join(servers)


async def run(command: str, place: Path, *overrides: str) -> str:
    """Run a console script; give all it printed."""
    program = Path(sys.executable).parent / command
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        program, *overrides, cwd=place, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    printed = (await process.communicate())[0].decode()
    assert process.returncode == 0, printed
    return printed


async def test_a_live_run_drives_simulated_gpus_of_real_servers(stack: Any, tmp_path: Path) -> None:
    await run(
        "voltana-live",
        tmp_path,
        "servers=attach",
        f"servers.prefill=[{addresses(stack, 'prefill', 2)}]",
        f"servers.decode=[{addresses(stack, 'decode', 2)}]",
        "policy=voltana",
        "trace=fixed",
        "trace.input_tokens=60",
        "trace.output_tokens=40",
        "rps=2",
        "requests=12",
        "router.connect_timeout_s=20",
        f"hydra.run.dir={tmp_path / 'record'}",
    )
    record = RunRecord(tmp_path / "record")
    summary, requests = record.summary, record.requests()
    assert summary["requests"] == {"submitted": 12, "completed": 12, "failed": 0, "unfinished": 0}
    assert set(requests.output_tokens) == {40}
    assert len(set(requests.decode_instance)) == 2
    assert set(record.instances().clock_mhz) <= {1005, 1410}
    assert record.instances().batch_size.max() >= 1
    assert summary["energy_j"]["total"] > 4 * 50 * summary["duration_s"]


async def test_a_profile_of_real_servers(stack: Any, tmp_path: Path) -> None:
    prefill, decode = addresses(stack, "prefill", 1), addresses(stack, "decode", 1)
    printed = await run(
        "voltana-profile",
        tmp_path,
        "source=sglang",
        f"profile.servers={{prefill: {prefill}, decode: {decode}}}",
        "control@profile.control=simulated",
        "profile.clocks_mhz=[1005,1410]",
        "profile.prefill={tokens: [64, 256], prompt_tokens: 64, samples: 4}",
        "profile.decode.max_batch=2",
        "profile.decode.tokens_per_request=[32,200]",
        "profile.iterations=[8,16]",
        "profile.window_s=[0.3,2.0]",
        "profile.budget_s=0",
        "out=served.csv",
    )
    assert "rows written to served.csv" in printed
    samples = read_profile(tmp_path / "served.csv")
    assert {(each.phase, each.clock_mhz) for each in samples} == {
        (phase, clock) for phase in ("prefill", "decode") for clock in (1005, 1410)
    }
    assert all(each.latency_s > 0 for each in samples)
    assert any(each.energy_j is not None and each.energy_j > 0 for each in samples)
