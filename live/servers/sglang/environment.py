"""Builds the environment of stock SGLang on a CPU: ``python -m voltana.live.servers.sglang.environment FOLDER``.

FOLDER becomes a virtual environment with SGLang and all it needs (`requirements.txt` beside this file), this project
with its plugins, and a tiny model in FOLDER/model. What is done already is not done again, so an interrupted build
goes on where it stopped and a finished one is checked in a moment. Packages come from wherever pip is configured to
get them; nothing else touches the network.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import voltana
from voltana.errors import UserError

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
STUBS = ("sgl_kernel.py", "torchvision.py")
NEEDED_BYTES = 6_000_000_000
"""Free space a build begins with: 3.3 GB stay, the rest holds wheels while they are unpacked."""
PIP_TIMEOUT_S = 3600
STEP_TIMEOUT_S = 300

SYSTEM_LIBRARIES = {
    "libibverbs.so.1": "libibverbs1",
    "librdmacm.so.1": "librdmacm1",
    "libnl-3.so.200": "libnl-3-200",
    "libnl-route-3.so.200": "libnl-route-3-200",
    "libnuma.so.1": "libnuma1",
}
"""Shared libraries that Mooncake links, and the Debian packages they are in."""

CHECK = """
import importlib.metadata, mooncake.engine, voltana.live.servers.sglang.cpu_shims, voltana.live.telemetry.sglang_plugin
import sglang.srt.entrypoints.http_server, sglang.srt.managers.scheduler, sglang.srt.models.registry
names = {point.name for point in importlib.metadata.entry_points(group="sglang.srt.plugins")}
missing = {"voltana_telemetry", "voltana_cpu_shims"} - names
assert not missing, f"the project in this environment registers no {', '.join(sorted(missing))} as a plugin of SGLang"
"""
"""Imports what a server imports, which compiles it: else all processes of all servers would, every time."""

_PYTHON_VARIABLES = ("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
_NETWORK = ("NewConnectionError", "NameResolutionError", "Temporary failure", "ConnectTimeout", "from versions: none")
_NO_SPACE = ("No space left on device", "Disk quota exceeded")


class Environment(NamedTuple):
    """What a build leaves."""

    folder: Path

    @property
    def python(self) -> Path:
        """The interpreter that has SGLang."""
        return self.folder / "bin" / "python"

    @property
    def model(self) -> Path:
        """The tiny model."""
        return self.folder / "model"

    @property
    def log(self) -> Path:
        """What pip and the other programs said."""
        return self.folder / "install.log"


class Step(NamedTuple):
    """One part of the build."""

    name: str
    fingerprint: str
    """Of all that it depends on; done before with another one, it is done again."""
    run: Callable[[], None]


def build(folder: Path, project: Path | None = None, say: Callable[[str], None] = print) -> Environment:
    """Build an environment, or what is missing of it.

    Args:
        folder: where to.
        project: folder of this project's source; None: where this module is.
        say: is told each step and the time it took.

    Raises:
        UserError: no space, no network, no source, a missing library, or a program that failed.
    """
    environment = Environment(folder.absolute())
    source = find_project(project)
    check_system_libraries()
    environment.folder.mkdir(parents=True, exist_ok=True)
    with _locked(environment.folder / ".lock"):
        todo = [step for step in _steps(environment, source) if _done(environment).get(step.name) != step.fingerprint]
        if any(step.name in ("torch", "packages") for step in todo):
            _check_space(environment.folder)
        for number, step in enumerate(todo, 1):
            say(f"[{number}/{len(todo)}] {step.name} ...")
            began_s = time.monotonic()
            step.run()
            _note(environment, step)
            say(f"[{number}/{len(todo)}] {step.name}: {time.monotonic() - began_s:.0f} s")
    return environment


def find_project(project: Path | None) -> Path:
    """The folder of this project's source.

    Raises:
        UserError: it holds no pyproject.toml.
    """
    found = (project or Path(voltana.__file__).parents[1]).absolute()
    if not (found / "pyproject.toml").is_file():
        raise UserError(f"project: found no pyproject.toml in {found}, allowed: --project with the project's source")
    return found


def missing_system_libraries() -> list[str]:
    """Debian packages with shared libraries that Mooncake needs and this machine lacks."""
    return [package for library, package in SYSTEM_LIBRARIES.items() if not _loads(library)]


def check_system_libraries() -> None:
    """See that Mooncake's libraries are there.

    Raises:
        UserError: some are not; it says how to get them.
    """
    missing = missing_system_libraries()
    if missing:
        raise UserError(
            f"system libraries: Mooncake (KV transfer) lacks some here; as root: apt-get install -y {' '.join(missing)}"
            " (or run this as root with --install-system-libraries)"
        )


def install_system_libraries() -> None:
    """Install Mooncake's libraries where they are missing.

    Raises:
        UserError: not root, no apt-get, or it failed.
    """
    missing = missing_system_libraries()
    if not missing:
        return
    apt = shutil.which("apt-get")
    if os.geteuid() != 0 or apt is None:
        raise UserError(f"--install-system-libraries: needs root and apt-get; missing: {' '.join(missing)}")
    for command in ([apt, "update"], [apt, "install", "-y", "--no-install-recommends", *missing]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
        if done.returncode:
            raise UserError(f"{' '.join(command)}: {_last_line(done.stderr + done.stdout)}")


def clean_environment() -> dict[str, str]:
    """This process's environment variables, less those that would change another Python's imports."""
    return {name: value for name, value in os.environ.items() if name not in _PYTHON_VARIABLES}


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


# Steps


def _steps(environment: Environment, source: Path) -> list[Step]:
    pins = _hash(REQUIREMENTS)
    stubs = [HERE / "stubs" / name for name in STUBS]
    project = _hash(source / "pyproject.toml") + str(source)
    model = _hash(HERE / "tiny_llama.py")
    return [
        Step("virtual environment", sys.version, lambda: _make_venv(environment)),
        Step("torch", pins, lambda: _pip(environment, _torch(), "-c", str(REQUIREMENTS))),
        Step("packages", pins, lambda: _pip(environment, "--no-deps", "-r", str(REQUIREMENTS))),
        Step("stand-ins", pins + _hash(*stubs), lambda: _copy_stubs(environment, stubs)),
        Step("voltana", project, lambda: _pip(environment, "--no-deps", "--editable", str(source))),
        Step("tiny model", pins + model, lambda: _make_model(environment)),
        Step(
            "check",
            pins + project + CHECK,
            lambda: _run(environment, STEP_TIMEOUT_S, str(environment.python), "-c", CHECK),
        ),
    ]


def _make_venv(environment: Environment) -> None:
    _run(environment, STEP_TIMEOUT_S, sys.executable, "-m", "venv", str(environment.folder))


def _torch() -> str:
    return next(line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("torch=="))


def _pip(environment: Environment, *arguments: str) -> None:
    options = ("--disable-pip-version-check", "--no-input", "--no-compile", "--progress-bar", "off")
    _run(environment, PIP_TIMEOUT_S, str(environment.python), "-m", "pip", "install", *options, *arguments)


def _copy_stubs(environment: Environment, stubs: Sequence[Path]) -> None:
    packages = next((environment.folder / "lib").glob("python3*/site-packages"))
    for stub in stubs:
        shutil.copy(stub, packages / stub.name)


def _make_model(environment: Environment) -> None:
    command = (str(environment.python), "-P", "-m", "voltana.live.servers.sglang.tiny_llama", str(environment.model))
    _run(environment, STEP_TIMEOUT_S, *command)


def _run(environment: Environment, timeout_s: float, *command: str) -> None:
    """Run a program, its output in the log; say its last words if it fails.

    It runs in the environment's folder, or Python would find this project's own metadata in the present one first.
    """
    clean = clean_environment() | {"SGLANG_USE_CPU_ENGINE": "1", "PYTHONWARNINGS": "ignore"}
    with environment.log.open("a+") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        start = log.tell()
        try:
            status = subprocess.run(
                command,
                cwd=environment.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=clean,
                timeout=timeout_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{command[0]}: still not done after {timeout_s:g} s, see {environment.log}") from error
        log.seek(start)
        output = log.read()
    if status:
        raise UserError(f"{_reason(output)} (all of it: {environment.log})")


def _reason(output: str) -> str:
    if any(text in output for text in _NO_SPACE):
        return f"no space left on the disk: an environment takes {NEEDED_BYTES / 1e9:.0f} GB while it is built"
    if any(text in output for text in _NETWORK):
        return "pip cannot reach a package index: is there a network, and is pip configured for it?"
    return _last_line(output)


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith(("ERROR", "E:"))]
    return (errors or lines or ["it failed without a word"])[-1]


# State


def _hash(*files: Path) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def _stamp(environment: Environment) -> Path:
    return environment.folder / "built.json"


def _done(environment: Environment) -> dict[str, str]:
    try:
        return dict(json.loads(_stamp(environment).read_text()))
    except (OSError, ValueError):
        return {}


def _note(environment: Environment, step: Step) -> None:
    stamp = _stamp(environment)
    fresh = stamp.with_suffix(".new")
    fresh.write_text(json.dumps({**_done(environment), step.name: step.fingerprint}, indent=1))
    fresh.replace(stamp)


def _check_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES:
        raise UserError(f"{folder}: found {free / 1e9:.1f} GB free, allowed: at least {NEEDED_BYTES / 1e9:.0f} GB")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One build at a time; another one waits.

    Raises:
        UserError: for longer than any part of a build may take.
    """
    until_s = time.monotonic() + PIP_TIMEOUT_S
    with path.open("w", encoding="utf-8") as file:
        while not _locks(file):
            if time.monotonic() > until_s:
                raise UserError(f"{path}: another build has held it for {PIP_TIMEOUT_S} s; is it stopped?")
            time.sleep(0.5)
        yield


def _locks(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main() -> int:
    """Build; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m voltana.live.servers.sglang.environment",
        description="Build the environment of stock SGLang on a CPU.",
    )
    parser.add_argument("folder", type=Path, help="where to; 3.3 GB when done")
    parser.add_argument("--project", type=Path, help="source of voltana; default: where this is")
    parser.add_argument(
        "--install-system-libraries", action="store_true", help="apt-get what Mooncake links, where it is missing"
    )
    arguments = parser.parse_args()
    try:
        if arguments.install_system_libraries:
            install_system_libraries()
        build(arguments.folder, arguments.project, lambda line: print(line, flush=True))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the next run goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
