"""What made a record: versions, command, host, and hashes of everything it depends on beside its configuration.

A record is out of date when one of these hashes differs, though its configuration is the same: the code of a policy
of the user's own, the trace file, the predictor, or this project's code.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import platform
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import voltana
from voltana.compiled import is_compiled
from voltana.errors import UserError
from voltana.record.reader import RunRecord, flatten
from voltana.record.schema import PROVENANCE

_DEPENDENCIES = ("hydra-core", "numpy", "pandas", "pyarrow", "pydantic", "scikit-learn", "scipy", "simpy")
_LIVE_DEPENDENCIES = ("httptools", "msgspec", "nvidia-ml-py", "pyzmq", "uvloop")
_CODE = ("*.py", "*.json")
_GIT_S = 5.0


def provenance(
    source: str, depends_on: Mapping[str, Mapping[str, str]], sweep: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The contents of provenance.json.

    Args:
        source: "sim" or "live".
        depends_on: see `dependencies`.
        sweep: which sweep the run belongs to, if it does (`voltana.app.sweeps`).
    """
    libraries = _DEPENDENCIES + (_LIVE_DEPENDENCIES if source == "live" else ())
    return {
        "source": source,
        "voltana": voltana.__version__,
        "compiled": is_compiled(),
        **_checkout(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "dependencies": {name: version for name in libraries if (version := _version(name))},
        "host": socket.gethostname(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "working_folder": str(Path.cwd()),
        "sweep": None if sweep is None else dict(sweep),
        "depends_on": {name: dict(each) for name, each in depends_on.items()},
    }


def dependencies(
    source: str, config: Mapping[str, Any], predictors: Mapping[str, Path] | None = None
) -> dict[str, dict[str, str]]:
    """What a run depends on beside its configuration: for each a path and a SHA-256.

    Args:
        source: "sim" or "live".
        config: the resolved configuration.
        predictors: by name the file that each predictor of the run was read from: `predictor`, and `predictor.prefill`
            where prefill has another one.

    Returns:
        By name: `code` of this project, `<key>._target_` for each class outside it with the modules of the user's that
        it imports, `<key>.path` for each file that the configuration names, and the predictors.
    """
    found = {"code": {"path": str(_root()), "sha256": _own_code(source)}}
    for key, value in flatten(config).items():
        if not isinstance(value, str):
            continue
        name = key.rpartition(".")[2]
        if name == "_target_" and not _is_own(value):
            files = sorted(_user_modules(value.rpartition(".")[0]))
            found[key] = {"path": os.pathsep.join(map(str, files)), "sha256": _hash(files)}
        elif name == "path" and Path(value).is_file():
            found[key] = {"path": str(Path(value).absolute()), "sha256": _hash([Path(value)])}
    for name, predictor in (predictors or {}).items():
        found[name] = {"path": str(predictor.absolute()), "sha256": _hash([predictor])}
    return found


def already_there(folder: Path, config: Mapping[str, Any]) -> RunRecord | None:
    """The finished record of the same run: the same configuration, and nothing it depends on has changed."""
    try:
        record = RunRecord(folder)
        same = not record.interrupted and record.config == config and not changed(record)
        return record if same and record.is_whole() else None
    except UserError:
        return None


def changed(record: RunRecord) -> list[str]:
    """The names of what differs now from what a record was made with (`dependencies`); empty if nothing does."""
    about = record.provenance
    then = about.get("depends_on")
    if not isinstance(then, Mapping):
        return [PROVENANCE]
    then = dict(then)
    predictors = {}
    for name in _PREDICTORS & then.keys():
        predictor = Path(then[name]["path"])
        if predictor.is_file():
            predictors[name] = predictor
        elif record.config.get("predictor") == "auto":  # it is fitted again, by what is compared here
            del then[name]
    now = dependencies(about["source"], record.config, predictors)
    return sorted(name for name in {*then, *now} if _sha(then.get(name)) != _sha(now.get(name)))


_PREDICTORS = {"predictor", "predictor.prefill"}


def still_there(record: RunRecord, name: str) -> Path | None:
    """The file of that name that a record was made with (`dependencies`); None if it is gone or another one."""
    then = record.provenance.get("depends_on")
    about = then.get(name) if isinstance(then, Mapping) else None
    path = Path(str(about.get("path"))) if isinstance(about, Mapping) else None
    return path if path is not None and path.is_file() and _hash([path]) == _sha(about) else None


def _sha(each: Mapping[str, str] | None) -> str | None:
    return None if each is None else each.get("sha256")


def _hash(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _root() -> Path:
    return Path(voltana.__file__).parents[1]


def _is_own(dotted: str) -> bool:
    return dotted.partition(".")[0] == voltana.__name__


@cache
def _own_code(source: str) -> str:
    """Of everything that a record is computed by."""
    package = Path(voltana.__file__).parent
    rooms = ("policies", "prediction", "record", "app", "sim", "traces", *(("live",) if source == "live" else ()))
    files = [
        *package.glob("*.py"),
        *(path for room in rooms for each in _CODE for path in (package / room).rglob(each)),
    ]
    return _hash(sorted(files))


def _user_modules(name: str, seen: set[str] | None = None) -> set[Path]:
    """The source files of a module, of its package and of the modules it imports, as far as they are the user's own.

    A module that cannot be found is left to whoever imports it; one from an installed distribution counts only if it
    is asked for by name.
    """
    asked_for = seen is None
    seen = set() if seen is None else seen
    if name in seen or _is_own(name) or name.partition(".")[0] in sys.stdlib_module_names:
        return set()
    seen.add(name)
    origin, package = _source(name)
    if origin is None or (not asked_for and any(origin.is_relative_to(folder) for folder in _installed())):
        return set()
    found = {origin}
    for imported in {*_imports(origin, package), name.rpartition(".")[0]} - {""}:
        found |= _user_modules(imported, seen)
    return found


def _source(name: str) -> tuple[Path | None, str]:
    """The file of a module and the package that its relative imports start from."""
    try:
        spec = importlib.util.find_spec(name)
    except Exception:  # finding a submodule runs its package, which may fail in any way
        return None, ""
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        return None, ""
    return Path(spec.origin), spec.parent or ""


def _imports(path: Path, package: str) -> set[str]:
    """The names of modules that a source file may import; empty if it does not parse."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return {name for name in names if name}


@cache
def _installed() -> tuple[Path, ...]:
    paths = sysconfig.get_paths()
    return tuple(Path(paths[key]) for key in ("stdlib", "platstdlib", "purelib", "platlib"))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def _checkout() -> dict[str, Any]:
    """Commit, and whether files differ from it; both None outside a checkout of this project."""
    unknown = {"commit": None, "dirty": None}
    if not (_root() / ".git").exists():
        return unknown
    commit, status = (_git(*words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "-uno")))
    if commit is None:
        return unknown
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_root()), *words], capture_output=True, text=True, timeout=_GIT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
