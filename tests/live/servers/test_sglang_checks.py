"""What is seen before servers of SGLang are started: which release there is, our plugin, flags that cannot be."""

import stat
from pathlib import Path
from typing import Any

import pytest

from voltana.errors import UserError
from voltana.live.servers.sglang.flags import Device, kv_path, server_flags
from voltana.live.servers.sglang.launch import SglangServers
from voltana.live.telemetry.sglang_versions import TESTED


def interpreter(folder: Path, answer: str) -> Path:
    """A program that answers like a Python of some environment."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{answer}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def check(python: Path, **settings: Any) -> None:
    SglangServers(python, "a model", prefill=1, decode=1, **settings).check()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("echo '[false]'", f"allowed: SGLang {TESTED}"),
        ("""echo '["0.5.14", true]'""", "found SGLang 0.5.14, allowed: "),
        ("""echo '["0.5.24", true]'""", "any_version=true tries others"),
        ("""echo '["0.5.23", false]'""", "found SGLang without voltana's plugin"),
        ("echo nothing", "which does not answer"),
        ("exit 3", "which does not answer"),
    ],
)
def test_an_environment_that_cannot_serve(tmp_path: Path, answer: str, message: str) -> None:
    with pytest.raises(UserError, match="python: ") as refused:
        check(interpreter(tmp_path, answer))
    assert message in str(refused.value)


def test_environments_that_can(tmp_path: Path) -> None:
    check(interpreter(tmp_path, """echo a warning; echo '["0.5.23", true]'"""))
    check(interpreter(tmp_path, """echo '["0.6.0", true]'"""), any_version=True)


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"dp-size": 2}, "dp-size=2"),
        ({"data-parallel-size": "4"}, "data-parallel-size=4"),
        ({"attn-dp-size": 8}, "attn-dp-size=8"),
    ],
)
def test_data_parallel_servers(tmp_path: Path, flags: dict[str, Any], found: str) -> None:
    python = interpreter(tmp_path, """echo '["0.5.23", true]'""")
    with pytest.raises(UserError, match=f"flags: found {found} for decode servers, allowed: none"):
        check(python, role_flags={"decode": flags})
    check(python, flags={"dp-size": 1, "attn-dp-size": None})


@pytest.mark.parametrize(
    ("device", "transfer", "backend", "variables"),
    [
        ("cpu", None, "mooncake", {"MC_FORCE_TCP": "1", "MOONCAKE_PROTOCOL": "tcp"}),
        ("cpu", "nixl", "nixl", {"UCX_TLS": "tcp,self"}),
        ("cuda", None, "mooncake", {}),
        ("cuda", "tcp", "mooncake", {"MC_FORCE_TCP": "1"}),
        (
            "cuda",
            "nvlink",
            "mooncake",
            {"SGLANG_MOONCAKE_CUSTOM_MEM_POOL": "INTRA_NODE_NVLINK", "MC_INTRANODE_NVLINK": "1"},
        ),
        ("cuda", "nixl", "nixl", {}),
    ],
)
def test_the_way_of_the_kv_cache(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    device: Device,
    transfer: str | None,
    backend: str,
    variables: dict[str, str],
) -> None:
    (tmp_path / "mlx5_0").touch()
    monkeypatch.setattr("voltana.live.servers.sglang.flags.RDMA_DEVICES", tmp_path)
    path = kv_path(device, transfer, {})
    assert path.backend == backend and variables.items() <= path.variables.items()
    assert server_flags("decode", device, path)["disaggregation-transfer-backend"] == backend
    assert "disaggregation-transfer-backend" not in server_flags("unified", device, path)


def test_without_rdma_mooncake_would_take_tcp_without_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("voltana.live.servers.sglang.flags.RDMA_DEVICES", tmp_path / "nothing")
    with pytest.raises(UserError, match=r"transfer: found rdma, allowed: nvlink, tcp, nixl on device cuda \(.*no RDMA"):
        SglangServers("python", "a model", device="cuda", gpus=[[0], [1], [2], [3]])
    with pytest.raises(UserError, match=r"transfer: found nvlink, allowed: tcp, nixl on device cpu$"):
        SglangServers("python", "a model", transfer="nvlink")
    SglangServers("python", "a model", device="cuda", prefill=0, decode=0, unified=1, gpus=[[0]])
    assert kv_path("cuda", None, {"disaggregation-transfer-backend": "mori"}).backend == "mori"
