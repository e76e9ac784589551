"""The SGLang that is installed has what this project uses."""

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from voltana.live.servers.sglang import cpu_shims
from voltana.live.servers.sglang.environment import REQUIREMENTS, Environment, build
from voltana.live.servers.sglang.flags import DISAGGREGATION_FLAGS, FLAGS
from voltana.live.telemetry import sglang_plugin

ROOT = Path(__file__).parents[4]
CONTRACT = ROOT / "tests" / "live" / "telemetry" / "test_contract.py"


def packages(environment: Environment) -> Path:
    return next((environment.folder / "lib").glob("python3*/site-packages"))


def run(environment: Environment, *arguments: str) -> str:
    variables = {"SGLANG_USE_CPU_ENGINE": "1", "PYTHONWARNINGS": "ignore", "HOME": str(environment.folder)}
    command = [str(environment.python), *arguments]
    return subprocess.run(
        command, env=variables, cwd=environment.folder, capture_output=True, text=True, timeout=600, check=True
    ).stdout


def test_the_contract_of_the_plugin_holds(environment: Environment, tmp_path: Path) -> None:
    """Its test reads SGLang's source; here it is shown that of the environment, and nothing else of it."""
    for found in packages(environment).glob("sglang*"):
        (tmp_path / found.name).symlink_to(found)
    variables = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(CONTRACT)]
    done = subprocess.run(command, env=variables, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout and "skipped" not in done.stdout, done.stdout


def test_versions_are_the_pinned_ones(environment: Environment) -> None:
    pins = dict(line.split("==") for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#"))
    found = {
        each.name.lower().replace("_", "-"): each.version.partition("+")[0]
        for each in importlib.metadata.distributions(path=[str(packages(environment))])
    }
    strange = {name: found.get(name.lower().replace("_", "-")) for name in pins}
    assert strange == {name: version.partition("+")[0] for name, version in pins.items()}


def test_what_the_shims_change_exists(environment: Environment) -> None:
    for dotted, names in cpu_shims.USES.items():
        module, _, owner = dotted.rpartition(".")
        code = f"from {module} import {owner} as c; print(all(hasattr(c, n) for n in {names!r}))"
        assert run(environment, "-c", code).splitlines()[-1] == "True", f"SGLang's {dotted} has no {names} any more"


def test_hooked_methods_exist_in_the_imported_class(environment: Environment) -> None:
    module, _, owner = sglang_plugin.SCHEDULER.rpartition(".")
    hooks = ("run_batch", "on_idle", "handle_generate_request")
    code = f"from {module} import {owner} as c; print([callable(getattr(c, n, None)) for n in {hooks!r}])"
    assert json.loads(run(environment, "-c", code).splitlines()[-1].lower()) == [True] * 3


def test_all_flags_exist(environment: Environment) -> None:
    """Those for GPUs too, which no test here starts a server with."""
    text = run(environment, "-m", "sglang.launch_server", "--help")
    known = set(text.replace("[", " ").replace("]", " ").split())
    used = {name for table in (FLAGS, DISAGGREGATION_FLAGS) for flags in table.values() for name in flags}
    used |= {"model-path", "host", "port", "tp-size", "disaggregation-mode", "disaggregation-bootstrap-port"}
    missing = {name for name in used if f"--{name}" not in known}
    assert not missing


def test_a_finished_environment_is_not_built_again(environment: Environment) -> None:
    source = Path(json.loads((environment.folder / "built.json").read_text())["voltana"][64:])
    build(environment.folder, source)
    said: list[str] = []
    build(environment.folder, source, said.append)
    assert said == []


@pytest.mark.parametrize("name", ["sgl_kernel", "torchvision"])
def test_stand_ins_raise_only_when_called(environment: Environment, name: str) -> None:
    code = f"import {name}; f = {name}.anything\ntry: f()\nexcept NotImplementedError as e: print(e)"
    assert f"{name}.anything" in run(environment, "-c", code)
