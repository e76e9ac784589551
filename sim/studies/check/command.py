"""The console script `voltana-check`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from voltana.app.cli import hydra_command
from voltana.app.terminal import plain_console
from voltana.errors import PolicyError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from voltana.sim.studies.check.finding import Finding

VERDICTS = {True: "ok", False: "BROKEN", None: "-"}


def main() -> None:
    """voltana-check: whether a policy keeps what it promises. Exit status 2 if it does not."""
    hydra_command("check", _check, program="voltana-check")()


def _check(config: DictConfig) -> None:
    from voltana.app.resolve import resolve
    from voltana.sim.studies.check.policy import check_policy

    values = resolve(config)
    findings = list(check_policy(values))
    _print(findings)
    failed = next((finding for finding in findings if finding.passed is False), None)
    if failed is not None:
        whose = f"policy {values['policy']['name']}: "
        raise PolicyError(f"{whose}{failed.part}: {failed.check}: {failed.detail}", failed.traceback)


def _print(findings: Sequence[Finding]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("part", "check", "", "detail", box=None)
    last = ""
    for part, check, passed, detail, _ in findings:
        table.add_row(part if part != last else "", check, VERDICTS[passed], Text(detail))
        last = part
    plain_console().print(table)
