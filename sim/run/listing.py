"""What `voltana-sim --gpus` and `--models` print: the shipped choices, and which model fits on which GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voltana import conf
from voltana.sim.plant import EngineSpec, GpuSpec, ModelSpec
from voltana.sim.plant.plant import gpus_needed

if TYPE_CHECKING:
    from rich.table import Table

_CONF = Path(conf.__path__[0])


def listing(word: str) -> Table:
    """The table of `--gpus` or `--models`."""
    return _gpus() if word == "--gpus" else _models()


def gpus() -> dict[str, GpuSpec]:
    """Every shipped GPU that a simulation can have."""
    return {name: GpuSpec(**values) for name, values in _sections("gpu") if "sm_count" in values}


def models() -> dict[str, ModelSpec]:
    """Every shipped model whose architecture is known."""
    return {name: ModelSpec(**values) for name, values in _sections("model") if "layers" in values}


def _sections(group: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and keys of every choice of a group, those it is based on included."""
    from voltana.files import parse_yaml

    found: dict[str, dict[str, Any]] = {}

    def read(name: str) -> dict[str, Any]:
        if name not in found:
            values = parse_yaml((_CONF / group / f"{name}.yaml").read_text(encoding="utf-8"))
            bases = [base for base in values.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
            found[name] = {key: value for each in (*map(read, bases), values) for key, value in each.items()}
        return found[name]

    return ((path.stem, read(path.stem)) for path in sorted((_CONF / group).glob("*.yaml")))


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None)
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    return table


def _gpus() -> Table:
    table = _table("gpu", "memory GiB", "clocks MHz", "step", "knee", "limit W", "idle W", "power")
    for name, gpu in gpus().items():
        table.add_row(
            name,
            f"{gpu.memory_gib:g}",
            f"{gpu.clock_min_mhz}-{gpu.clock_max_mhz}",
            f"{gpu.clock_step_mhz}",
            f"{gpu.knee_mhz:.0f}",
            f"{gpu.power_limit_min_w:g}-{gpu.power_limit_w:g}",
            f"{gpu.idle_power_w(gpu.clock_max_mhz):.0f}",
            gpu.power,
        )
    return table


def _models() -> Table:
    cards = gpus()
    table = _table(
        "model", "weights e9", "active e9", "GiB", "KV bytes/token", "tp", *(f"fits {name}" for name in cards)
    )
    engine = EngineSpec()
    for name, model in models().items():
        needs = [gpus_needed(gpu, model, engine) for gpu in cards.values()]
        table.add_row(
            name,
            f"{model.parameters() / 1e9:.1f}",
            f"{model.active_parameters() / 1e9:.1f}",
            f"{model.weights_size_bytes() / 2**30:.1f}",
            f"{model.kv_bytes_per_token()}",
            f"{model.tp}",
            *("yes" if tp <= model.tp else f"tp={tp}" for tp in needs),
        )
    return table
