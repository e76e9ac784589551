"""Every preset composes into runs that the simulator accepts; one is run to its table and figure."""

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from voltana.section import parse
from voltana.sim.run.build import RunBuilder
from voltana.sim.run.compose import compose_sim
from voltana.sim.run.config import SimConfig

pytestmark = pytest.mark.slow

PRESETS = sorted((Path(__file__).parents[3] / "conf" / "experiment").glob("*.yaml"))


def swept(path: Path) -> list[tuple[str, ...]]:
    """The overrides of every run of a preset, seeds left out."""
    params: dict[str, Any] = yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"]
    return list(product(*([f"{k}={v}" for v in str(values).split(",")] for k, values in params.items() if k != "seed")))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_run_of_a_preset_can_be_built(path: Path) -> None:
    runs = swept(path)
    assert len(runs) > 3
    for overrides in runs[:: max(1, len(runs) // 12)]:
        values = compose_sim(f"experiment={path.stem}", *overrides)
        RunBuilder(parse(SimConfig, values)).cluster()


def test_a_preset_ends_in_a_table_and_a_figure(tmp_path: Path) -> None:
    overrides = ["experiment=actuation", "rps=20", "seed=1", "actuation.block_s=0,0.1", "policy=static_max,voltana"]
    command = [
        sys.executable,
        "-c",
        "from voltana.sim.run.commands import simulate; simulate()",
        "-m",
        *overrides,
        "duration_s=3",
    ]
    done = subprocess.run([*command, f"hydra.sweep.dir={tmp_path}"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "saving %" in done.stdout
    assert (tmp_path / "figure.png").is_file() and (tmp_path / "table.md").is_file()
