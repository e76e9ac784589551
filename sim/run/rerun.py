"""A simulated run from a file: ``python -m voltana.sim.run.rerun --config FILE --out FOLDER``.

FILE is the resolved configuration of voltana-sim as YAML, such as the config.yaml of a run record.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from voltana.errors import UserError
from voltana.sim.run.simulate import simulate


def main() -> int:
    """Run; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m voltana.sim.run.rerun", description="Simulate a resolved configuration."
    )
    parser.add_argument("--config", type=Path, required=True, help="the config.yaml of a run record")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new record")
    options = parser.parse_args()
    try:
        simulate(_read(options.config), options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _read(path: Path) -> Mapping[str, object]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: cannot be parsed: {' '.join(str(error).split())}") from error
    if not isinstance(values, Mapping):
        raise UserError(f"{path}: found {type(values).__name__}, allowed: a mapping")
    return values


if __name__ == "__main__":
    sys.exit(main())
