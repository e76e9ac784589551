"""What a compiled wheel runs gives the same records, to the byte, as the sources; VOLTANA_PURE=1 has the sources run.

`make test-compiled` builds such a wheel and runs these tests, and the laws of the engines, on it.
"""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from voltana.compiled import PURE, is_compiled
from voltana.policies.build import shipped
from voltana.policies.ecofreq import EcoFreq

RUNS = {
    "static": "policy=static_max rps=60",
    "voltana": "policy=voltana rps=70",
    "next": "policy=voltana_next rps=50",
    "wide": "policy=voltana rps=200 cluster.prefill_instances=8 cluster.decode_instances=8",
    "released": "policy=voltana_released rps=50 trace=lmsys",
    "online": "policy=voltana_online rps=50 arrival=gamma",
    "drift": "policy=agft rps=40 drift=slow_and_hot drift.at_s=2",
    "capped": "policy=power_cap rps=50 sensor=ideal",
    "chunked": "policy=dualscale rps=40 trace=lmsys serving.prefill.chunk_tokens=512",
    "noisy": "policy=greenllm model=qwen3_32b rps=20 serving.latency_noise=0.05",
    "queued": "policy=voltana rps=50 +scheduler@policy.prefill_router=queue",
    "reference": "policy=voltana rps=20 engine=reference",
}
"""Of every part that is compiled; with six seconds of arrivals each."""
SIMULATE = """
import json, sys
from pathlib import Path
from voltana.compiled import is_compiled
from voltana.sim.run.compose import compose_sim
from voltana.sim.run.simulate import simulate
for name, words in json.loads(sys.argv[1]).items():
    simulate(compose_sim("duration_s=6", *words.split()), Path(name))
print(is_compiled())
"""


def run(folder: Path, pure: bool, script: str, *words: str) -> str:
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, PURE: "1" if pure else "0"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, *words], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def content(folder: Path) -> dict[str, bytes]:
    """Of all files of a record but what says when and by what it was made."""
    lines = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "provenance.json"}
    told = lines["summary.json"].splitlines()
    lines["summary.json"] = b"\n".join(
        line for line in told if b'"wall_s"' not in line and b"simulated_requests_per_s" not in line
    )
    return lines


@pytest.mark.slow
def test_pure_can_be_forced_and_the_version_says_which_runs(tmp_path: Path) -> None:
    version = "from voltana.sim.run.commands import simulate; simulate()"
    told = [run(tmp_path, pure, version, "--version").partition("(")[2] for pure in (True, False)]
    assert told == ["pure Python)", "compiled)" if is_compiled() else "pure Python)"]


@pytest.mark.slow
@pytest.mark.skipif(not is_compiled(), reason="needs a compiled wheel: make test-compiled")
def test_records_are_the_same_to_the_byte(tmp_path: Path) -> None:
    told = {pure: run(tmp_path / str(pure), pure, SIMULATE, json.dumps(RUNS)) for pure in (True, False)}
    assert told == {True: "False", False: "True"}
    for name in RUNS:
        assert content(tmp_path / "True" / name) == content(tmp_path / "False" / name), name


def test_a_policy_says_what_it_asks_for_compiled_or_not() -> None:
    parameters = inspect.signature(EcoFreq).parameters.values()
    asked = [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    assert asked == ["phase", "slo", "clocks_mhz", "predictor"]
    own = {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}
    assert own == set(shipped("frequency/ecofreq"))
