"""What an environment has that servers are to be started from, asked of its own interpreter."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from voltana.errors import UserError
from voltana.live.telemetry.sglang_versions import TESTED, untested

PLUGIN = "voltana_telemetry"
"""Our entry point, by which SGLang finds the telemetry plugin."""
ASK = f"""
import importlib.metadata as metadata, json
found = {{each.version for each in metadata.distributions(name="sglang")}}
plugin = {PLUGIN!r} in {{point.name for point in metadata.entry_points(group="sglang.srt.plugins")}}
print(json.dumps([*sorted(found)[:1], plugin]))
"""
ASK_S = 60.0
"""Time for an answer, which takes a fraction of a second on an idle machine."""


def check_installed(python: Path, variables: Mapping[str, str], *, any_version: bool = False) -> str:
    """The release of SGLang that an interpreter has, if servers can be started from it and will be heard.

    Args:
        python: the interpreter.
        variables: environment variables that the servers will have.
        any_version: take a release that is not tested.

    Raises:
        UserError: no interpreter, no SGLang, a release that is not tested, or SGLang without our plugin.
    """
    try:
        command = [str(python), "-c", ASK]
        done = subprocess.run(
            command, env=dict(variables), capture_output=True, text=True, timeout=ASK_S, check=True, cwd="/"
        )
        *versions, plugin = json.loads(done.stdout.splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        raise UserError(
            f"python: found {python}, which does not answer ({error}), allowed: a Python interpreter"
        ) from error
    if not versions:
        raise UserError(f"python: found no SGLang with {python}, allowed: SGLang {TESTED}")
    version = str(versions[0])
    wrong = untested(version)
    if wrong is not None and not any_version:
        raise UserError(f"python: {wrong}; any_version=true tries others")
    if not plugin:
        allowed = f"after {python} -m pip install --no-deps voltana"
        raise UserError(f"python: found SGLang without voltana's plugin, allowed: {allowed}")
    return version
