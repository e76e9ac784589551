"""What can be known to be wrong is refused before servers are started, which may take minutes."""

import os
import socket
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from rich.console import Console

from tests.live.owner import LocalOwner, SteadyGpu
from tests.live.run.conftest import SMALL_PROFILE
from voltana.app.cli import explain
from voltana.app.resolve import resolve
from voltana.errors import UserError
from voltana.live.run.command import replay

pytestmark = pytest.mark.slow

ATTACHED = (
    "servers=attach",
    "servers.prefill=[{url: 'http://127.0.0.1:1', bootstrap_port: 1, telemetry: 'ipc:///a'},"
    "{url: 'http://127.0.0.1:1', bootstrap_port: 2, telemetry: 'ipc:///b'}]",
    "servers.decode=[{url: 'http://127.0.0.1:1', telemetry: 'ipc:///c'},"
    "{url: 'http://127.0.0.1:1', telemetry: 'ipc:///d'}]",
)
"""Servers that are not there; whoever asks for them waits for a minute."""
SGLANG = ("servers=sglang", "servers.python=/nowhere", "servers.model=tiny")
FILES = {
    "bad.csv": b"input_tokens,output_tokens\n" + 3000 * b"10,10\n" + b"10,\xff\n",
    "late.csv": b"arrival_s,input_tokens,output_tokens\n5,10,10\n",
}


def values(*overrides: str) -> dict[str, Any]:
    settings = ("rps=20", "duration_s=3", "policy=static_max", *SMALL_PROFILE, *overrides)
    with initialize_config_module("voltana.conf", version_base="1.3"):
        return resolve(compose("live", overrides=list(settings)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["policy=throttllem"], "telemetry does not carry"),
        (["policy=oracle"], "asks for truth"),
        (["policy.decode_controller.clock_mhz=7"], "clock_mhz: found 7"),
        (["serving.latency_noise=0.1"], "serving.latency_noise: found 0.1"),
        (["serving.decode.kv_tokens=100000000"], "serving.decode.kv_tokens: found 100000000"),
        (["client.token_ids=[5,5]"], "client.token_ids"),
        (["+router.max_fligt=3"], "router.max_fligt"),
        (["+router.host=192.0.2.1"], "router.host, router.port: cannot listen at 192.0.2.1:0"),
        (["+router.host=no such host"], "router.host, router.port: cannot listen at no such host:0"),
        (["predictor=nowhere.json", "policy=voltana"], "nowhere.json"),
        (["trace=file", "trace.path=nowhere.csv"], "trace.path: found"),
        (["trace=file", "trace.path=bad.csv"], "bad.csv: found an unreadable file"),
        (["trace=file", "trace.path=late.csv", "arrival=timestamps"], "duration_s: no request arrives within it"),
        (["servers.stream_interval=0"], "servers.stream_interval: found 0"),
        (["servers=sglang"], "servers.environment: found null"),
        (SGLANG, "servers.python: found no /nowhere"),
        ([*SGLANG, "servers.python=/bin/sh", "servers.model=/nowhere"], "servers.model: found no /nowhere"),
        ([*SGLANG, "servers.python=/bin/sh", "+servers.role_flags.decoder={}"], "servers.role_flags: found 'decoder'"),
        ([*SGLANG, "servers.python=/bin/sh", "servers.logs=/proc/logs"], "servers.logs: /proc/logs: "),
        (["servers=attach", "servers.prefill=[]", "servers.decode=[]"], "servers.prefill: found 0 servers, allowed: 2"),
        ([*ATTACHED, "servers.gpus=[[0],[1],[2],[2]]"], "servers.gpus: found"),
        ([*ATTACHED, "control=nvml", "control.socket=/nowhere"], "/nowhere: no owner of GPU clocks is listening"),
        ([*ATTACHED, "control.block_s=-1"], "simulated GPUs: block_s: found -1"),
    ],
)
def test_before_servers_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, overrides: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(cache))
    for name, content in FILES.items():
        Path(name).write_bytes(content)
    said = StringIO()
    with pytest.raises((UserError, InstantiationException)) as refused:
        replay(values(*overrides), tmp_path / "record", Console(file=said))
    assert message in explain(refused.value)
    assert "starting servers" not in said.getvalue()
    assert not (tmp_path / "record").exists()


def test_a_gpu_that_supports_no_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every command would be refused, and the run be one at stock clocks."""
    monkeypatch.chdir(tmp_path)
    owner = LocalOwner(tmp_path, [SteadyGpu(gpu, (1005, 1410) if gpu != 2 else ()) for gpu in range(4)])
    overrides = [*ATTACHED, "servers.wait_s=0", "control=nvml", f"control.socket={owner.socket}"]
    try:
        with pytest.raises(UserError, match=r"control: GPU 2 \(A100\) supports no clock that could be set"):
            replay(values(*overrides), tmp_path / "record", Console(file=StringIO()))
    finally:
        owner.stop()


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        ("[[0],[1],[2],[3]]", "is not healthy after 0 s"),
        ("[[0],[GPU-unknown],[2],[3]]", "was not given GPU GPU-unknown"),
    ],
)
def test_gpus_that_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    owner = LocalOwner(tmp_path, [SteadyGpu(gpu, tuple(range(210, 1411, 15))) for gpu in range(4)])
    overrides = [*ATTACHED, "servers.wait_s=0", f"servers.gpus={gpus}"]
    try:
        with pytest.raises(UserError, match=message):
            nvml = ("control=nvml", f"control.socket={owner.socket}")
            replay(values(*overrides, *nvml), tmp_path / "record", Console(file=StringIO()))
    finally:
        owner.stop()


def test_a_policy_that_caps_power_where_that_is_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner drives clocks there; only what caps power is refused, by name."""
    monkeypatch.chdir(tmp_path)
    owner = LocalOwner(tmp_path, [SteadyGpu(gpu, tuple(range(210, 1411, 15))) for gpu in range(4)])
    overrides = [*ATTACHED, "servers.wait_s=0", "control=nvml", f"control.socket={owner.socket}"]
    try:
        for policy, message in (
            ("power_cap", "policy power_cap: it caps power, but GPU 0 (A100) lets nobody set its power limit"),
            ("static_max", "is not healthy after 0 s"),
        ):
            with pytest.raises(UserError) as refused:
                replay(values(*overrides, f"policy={policy}"), tmp_path / policy, Console(file=StringIO()))
            assert message in str(refused.value)
    finally:
        owner.stop()


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1:{port}"):
            replay(values(f"+router.port={port}"), tmp_path / "record", Console(file=StringIO()))
