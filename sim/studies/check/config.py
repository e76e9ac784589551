"""The configuration of `voltana-check`."""

from __future__ import annotations

from voltana.section import Count, Positive, Section
from voltana.sim.run.config import SimConfig


class CheckSettings(Section):
    """`check`."""

    requests: Count
    """Of every run."""
    questions: Count
    """Drawn ones, for each router."""
    decision_us: Positive
    """What the median answer may take."""


class CheckConfig(SimConfig):
    """The whole configuration of `voltana-check`."""

    check: CheckSettings
