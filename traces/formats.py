"""Which columns of a file are what, and in which unit its times are.

A format is known by its whole set of columns. The names of the columns with times alone say too little: the JSON lines
of Mooncake and of Qwen-Bailian share theirs, the ones count milliseconds, the others seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from voltana.checks import refused
from voltana.errors import UserError

UNITS = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9, "datetime": None}
"""Units of a second; None: dates with time."""
WHOLE = ("ms",)
"""Units that recognised formats count in whole numbers (Mooncake). Fractions in their place are another's seconds."""
ROLES = ("input_tokens", "output_tokens", "arrival_s")
"""Keys of `trace.columns`."""
NOT_MODELLED = {"hash_ids": "shared prefixes", "n_hash_blocks": "shared prefixes"}
"""Columns that would change a run if what they stand for were modelled."""


@dataclass(frozen=True, slots=True)
class Format:
    """Columns of one format.

    `beside` lists the sets of further columns with which the unit of the arrival column is known. None: the column
    says it by itself, whatever is beside it (its documented name, or cells that are dates).
    """

    name: str
    input_tokens: str
    output_tokens: str
    arrival: str
    unit: str
    beside: tuple[frozenset[str], ...] | None = None

    def knows_unit(self, columns: Sequence[str]) -> bool:
        """Whether a file with these columns counts time in the format's unit."""
        others = frozenset(columns) - {self.input_tokens, self.output_tokens, self.arrival}
        return self.beside is None or others in self.beside


def _sets(*names: str) -> tuple[frozenset[str], ...]:
    return tuple(frozenset(filter(None, each.split(","))) for each in names)


_LENGTHS = ("input_length", "output_length", "timestamp")
_CHAT = "chat_id,parent_chat_id,turn,hash_ids"
_BURST = "Model,Total tokens,Log Type"

FORMATS = (
    Format("ours", "input_tokens", "output_tokens", "arrival_s", "s"),
    Format("Azure LLM inference", "ContextTokens", "GeneratedTokens", "TIMESTAMP", "datetime"),
    Format("Mooncake", *_LENGTHS, "ms", _sets("hash_ids", "n_hash_blocks")),
    Format("Qwen-Bailian", *_LENGTHS, "s", _sets(_CHAT, f"{_CHAT},type")),
    Format(
        "Vidur", "num_prefill_tokens", "num_decode_tokens", "arrived_at", "s", _sets("", "num_total_tokens,pd_ratio")
    ),
    Format("LMSYS arena", "prompt_len", "output_len", "req_time", "s", _sets("adapter")),
    Format("LLMServingSim", "input_toks", "output_toks", "arrival_time_ns", "ns"),
    Format(
        "BurstGPT",
        "Request tokens",
        "Response tokens",
        "Timestamp",
        "s",
        _sets(_BURST, f"{_BURST},Session ID,Elapsed time"),
    ),
)


class Layout(NamedTuple):
    """The columns that are used, and what is known of them."""

    input_tokens: str
    output_tokens: str
    arrival: str | None
    """None: not used."""
    unit: str | None
    """None: the file does not say it."""
    ignored: list[str]
    """Columns whose meaning is not modelled."""

    @property
    def names(self) -> list[str]:
        """The columns to read."""
        return [self.input_tokens, self.output_tokens, *([self.arrival] if self.arrival else [])]


def layout(
    path: str, columns: Sequence[str], given: Mapping[str, str | None], unit: str | None, *, timed: bool
) -> Layout:
    """Tell the columns of a file apart.

    Args:
        path: of the file, for errors.
        columns: its columns, or the keys of its first line.
        given: `trace.columns`; what is null there is told from the columns.
        unit: `trace.time_unit`.
        timed: whether arrival times are wanted.

    Raises:
        UserError: a column is missing, there twice, or could be one of several.
    """
    known = _known(path, columns, given)
    names = {role: given.get(role) for role in ROLES}
    if known:
        names["input_tokens"] = names["input_tokens"] or known[0].input_tokens
        names["output_tokens"] = names["output_tokens"] or known[0].output_tokens
        if not names["arrival_s"] and known[0].arrival in columns:
            names["arrival_s"] = known[0].arrival
            unit = unit or next((each.unit for each in known if each.knows_unit(columns)), None)
    if timed and not names["arrival_s"]:
        raise UserError(
            f"{path}:1: found no arrival times in {_listed(columns)}, "
            "allowed with arrival=timestamps: a format that has them, or trace.columns.arrival_s=COLUMN"
        )
    if not timed:
        names["arrival_s"] = None
    for role, name in names.items():
        _check(path, columns, role, name)
    ignored = [name for name in columns if name in NOT_MODELLED]
    return Layout(str(names["input_tokens"]), str(names["output_tokens"]), names["arrival_s"], unit, ignored)


def _known(path: str, columns: Sequence[str], given: Mapping[str, str | None]) -> list[Format]:
    """The formats with these columns of tokens; more than one where they share them."""
    known = [each for each in FORMATS if each.input_tokens in columns and each.output_tokens in columns]
    if given.get("input_tokens") and given.get("output_tokens"):
        return [each for each in known if (each.input_tokens, each.output_tokens) == tuple(given.values())[:2]]
    pairs = list(dict.fromkeys(f"{each.input_tokens}, {each.output_tokens}" for each in known))
    if len(pairs) > 1:
        told = "; ".join(pairs)
        raise UserError(f"{path}:1: found the columns of several formats ({told}), allowed: one, or trace.columns")
    if not known and not given.get("input_tokens") and not given.get("output_tokens"):
        allowed = "; ".join(
            dict.fromkeys(f"{each.input_tokens}, {each.output_tokens}[, {each.arrival}]" for each in FORMATS)
        )
        raise UserError(f"{path}:1: found columns {_listed(columns)}, allowed: {allowed}; or trace.columns")
    return known


def _check(path: str, columns: Sequence[str], role: str, name: str | None) -> None:
    if name is None and role == "arrival_s":
        return
    if name is None or name not in columns:
        raise refused(f"trace.columns.{role}", name, f"a column of {path}: {_listed(columns)}")
    if list(columns).count(name) > 1:
        raise UserError(f"{path}:1: found {list(columns).count(name)} columns {name}, allowed: one of that name")


def _listed(columns: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(repr(name) if not name or name != name.strip() else name for name in islice(columns, most))
    return f"{shown}, ..." if len(columns) > most else shown or "none"
