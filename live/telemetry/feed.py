"""What a simulated GPU is told of the load of its instance, which it cannot feel."""

from __future__ import annotations

from voltana.live.clocks.simulated import Load
from voltana.live.telemetry.message import Telemetry


def load_of(telemetry: Telemetry) -> Load:
    """What the GPUs run; prompts of a batch count as equally long, as telemetry tells only their sum."""
    load = telemetry.load
    if not load.batch_size:
        return Load()
    tokens = load.batch_tokens
    pairs = tokens * (tokens / load.batch_size + 1) / 2 if telemetry.phase == "prefill" else 0.0
    return Load(telemetry.phase, load.batch_size, tokens, pairs)
