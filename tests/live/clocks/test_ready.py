"""`voltana-live --dry-run` on the stand-in's GPUs and on none: what is ready, what to do, and nothing is changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.live.owner import PATIENCE_S

pytestmark = pytest.mark.slow

COMMAND = Path(sys.executable).parent / "voltana-live"
PYTHON = """#!/bin/sh
case "$2" in
    *metadata*) echo '["{version}", true]' ;;
    *mooncake*) {mooncake} ;;
    *torch*) test -n "$VOLTANA_TEST" || exit 0 ;;
    *) exit 1 ;;
esac
"""
"""Answers as the interpreter of an environment with SGLang."""
NO_MOONCAKE = "echo \"ModuleNotFoundError: No module named 'mooncake'\" >&2; exit 1"


class Table(NamedTuple):
    """What was printed."""

    status: int
    text: str

    def state(self, *words: str) -> str:
        """The state of the one line that has these words."""
        rows = [line for line in self.text.splitlines() if line[:1] not in ("", " ")]
        lines = [line for line in rows if all(word in line for word in words)]
        assert len(lines) == 1, (words, self.text)
        return lines[0][:6].strip()


@pytest.fixture
def dry(standin: Any, tmp_path: Path) -> Callable[..., Table]:
    """Run it in an empty folder, which stays empty."""
    here = tmp_path / "here"
    here.mkdir()

    def go(*overrides: str, environment: dict[str, str] | None = None) -> Table:
        done = subprocess.run(
            [COMMAND, "--dry-run", "policy=static_max", "rps=1", "duration_s=1", *overrides],
            env=standin.environment if environment is None else environment,
            cwd=here,
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE_S,
            check=False,
        )
        assert done.stderr == ""
        assert list(here.iterdir()) == []
        return Table(done.returncode, done.stdout)

    return go


def on_gpus(folder: Path, version: str = "0.5.23", mooncake: str = "exit 0") -> list[str]:
    """Settings of a run on real GPUs, with an interpreter that answers so."""
    python = folder / "python"
    python.write_text(PYTHON.format(version=version, mooncake=mooncake))
    python.chmod(0o755)
    model = folder / "model"
    model.mkdir(exist_ok=True)
    return [
        *("servers=sglang", "servers.device=cuda", f"servers.python={python}", f"servers.model={model}"),
        *("servers.transfer=tcp", "control=nvml", f"control.socket={folder / 'clocks.sock'}"),
    ]


def test_all_is_ready(dry: Callable[..., Table], own: Callable[..., Any], standin: Any, tmp_path: Path) -> None:
    standin.set(0, "instant_mw", 90_000)
    owner = own(gpus="0,1,2,3")
    before = [standin.get(gpu, field) for gpu in range(4) for field in ("locks", "resets", "limit_mw")]
    table = dry(*on_gpus(tmp_path))
    assert table.status == 0, table.text
    assert table.text.splitlines()[-1].startswith("ready: the same command without --dry-run starts")
    assert table.state("NVIDIA driver", "550.54.15, 4 GPUs") == "ready"
    about = "Stand-in A100, 80 of 80 GiB free, 81 clocks, 210 to 1410 MHz, caps 100 to 400 W, power by "
    assert table.state("GPU 0, prefill-0", f"{about}NVML_FI_DEV_POWER_INSTANT") == "ready"
    assert table.state("GPU 3, decode-1", "power by nvmlDeviceGetPowerUsage, instantaneous") == "ready"
    assert table.state("owner of clocks", f"process {owner.pid} at", "GPU 0, 1, 2, 3, free for a run") == "ready"
    for word in ("SGLang  ", "KV by mooncake", "CUDA  ", "ports  ", "model  ", "policy            static_max"):
        assert table.state(word) == "ready"
    assert [standin.get(gpu, field) for gpu in range(4) for field in ("locks", "resets", "limit_mw")] == before


def test_what_is_to_be_done_is_told(
    dry: Callable[..., Table], own: Callable[..., Any], connect: Callable[..., Any], standin: Any, tmp_path: Path
) -> None:
    standin.set(1, "processes", 1)
    standin.set(2, "used_mib", 78_000)
    standin.set(3, "persistence", 0)
    for gpu in range(4):
        standin.set(gpu, "fault_limit", 4)
    own(gpus="0,1,2,3")
    connect(tmp_path / "clocks.sock", "somebody").own("theirs", [3])
    settings = on_gpus(tmp_path, "0.4.9", NO_MOONCAKE)
    table = dry(*settings, "policy=power_cap", "predictor=/nowhere.json")
    assert table.status == 1
    assert table.state("GPU 1, prefill-1", "process 4711 computes on it") == "to do"
    assert table.state("GPU 2, decode-0", "GiB needed by llama31_8b") == "to do"
    assert table.state("GPU 3, decode-1", "persistence mode is off") == "note"
    assert "-> sudo nvidia-smi -i 3 -pm 1" in table.text
    assert table.state("owner of clocks", "GPU 3 is owned by 'somebody'") == "to do"
    assert table.state("servers", "found SGLang 0.4.9") == "to do"
    assert table.state("policy", "policy power_cap: ") == "to do"
    again = dry(*settings, "servers.any_version=true", "servers.shared_gpus=true")
    assert again.state("KV by mooncake", "No module named 'mooncake'") == "to do"
    assert "-m pip install mooncake-transfer-engine" in again.text
    assert "computes on it" not in again.text


def test_gpus_that_cannot_be_had(
    dry: Callable[..., Table], spawn: Callable[..., Any], wait_until: Callable[..., None], standin: Any, tmp_path: Path
) -> None:
    standin.set(0, "mig", 1)
    table = dry(*on_gpus(tmp_path), environment={**standin.environment, "CUDA_VISIBLE_DEVICES": "0,1"})
    assert table.status == 1
    assert table.state("NVIDIA driver", "CUDA_VISIBLE_DEVICES=0,1") == "ready"
    assert table.state("GPUs", "found 2 GPUs, those of CUDA_VISIBLE_DEVICES=0,1") == "to do"
    assert table.state("GPU 0", "it is divided (MIG)") == "note"
    assert table.state("owner of clocks", "no owner of GPU clocks is listening") == "to do"
    assert "voltana-clocks) --gpus 0,1,2,3 --group" in table.text
    elsewhere = tmp_path / "elsewhere"
    options = ["--gpus", "1,2", "--folder", str(elsewhere)]
    spawn(["-m", "voltana.live.clocks.command", *options], env=standin.environment)
    wait_until((elsewhere / "clocks.sock").exists)
    settings = ["cluster.prefill_instances=1", "cluster.decode_instances=1", "servers.gpus=[[1],[2]]"]
    taken = dry(*on_gpus(tmp_path), *settings)
    assert taken.state(standin.uuid(1), "is held by process") == "to do"
    assert "--gpus 1,2 --group" in taken.text


def test_without_a_gpu(dry: Callable[..., Table], tmp_path: Path) -> None:
    """It says so; what needs none is ready."""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    table = dry(environment=environment)
    if "no GPU here" not in table.text:
        pytest.skip("this host has a driver of its own")
    assert table.status == 0 and table.state("NVIDIA driver", "no GPU here") == "note"
    assert table.state("servers", "emulated") == "ready"
    needed = dry(*on_gpus(tmp_path), environment=environment)
    assert needed.status == 1 and needed.state("NVIDIA driver") == "to do"
    assert needed.state("SGLang", "0.5.23") == "ready"


def test_a_wrong_key_is_an_error_as_ever(standin: Any, tmp_path: Path) -> None:
    done = subprocess.run([COMMAND, "--dry-run", "rpss=1"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "unknown config key 'rpss'" in done.stderr
