"""Which GPUs of this host the instances of a run get, by UUID.

A UUID means the same GPU to NVML, CUDA, an owner of clocks and a batch system. An index does not: CUDA orders GPUs by
speed unless told otherwise, and a job in a control group counts only its own. A list inherited in CUDA_VISIBLE_DEVICES,
as from Slurm, is a bound: no GPU outside it is taken.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from voltana import checks
from voltana.errors import UserError
from voltana.live.clocks.device import DeviceError
from voltana.live.clocks.nvml import NoNvmlError, NvmlDriver

Gpu = int | str
"""By index or UUID."""
Groups = dict[str, list[Gpu]]
"""The GPUs of each instance, prefill first."""
VARIABLE = "CUDA_VISIBLE_DEVICES"


class Card(NamedTuple):
    """A GPU as NVML sees it here."""

    gpu: int
    """Its index."""
    uuid: str
    name: str
    divided: bool = False
    """By MIG."""
    pids: tuple[int, ...] = ()
    """Of whoever computes on it."""

    def __str__(self) -> str:
        return f"GPU {self.gpu} ({self.uuid})"


def host_cards() -> list[Card]:
    """The GPUs of this host, or of the part of it that this process may see.

    Raises:
        UserError: there is no NVML here, or it fails.
    """
    driver = NvmlDriver()
    try:
        gpus = [driver.open(gpu) for gpu in driver.gpus()]
        return [Card(gpu.info.gpu, gpu.info.uuid, gpu.info.name, gpu.divided(), gpu.processes()) for gpu in gpus]
    except DeviceError as error:
        raise UserError(f"NVML: {error}") from error
    finally:
        driver.close()


def visible(cards: Sequence[Card], environment: Mapping[str, str]) -> list[Card]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, in its order; all of them where it is not set.

    Raises:
        UserError: it names what is not a GPU of this host, a part of one, one twice, or an index that CUDA takes for
            another GPU than NVML does.
    """
    listed = environment.get(VARIABLE)
    if listed is None:
        return list(cards)
    words = [word.strip() for word in listed.split(",")] if listed.strip() else []
    found = [_listed(word, cards, environment) for word in words if word != "-1"]
    if len(set(found)) < len(found):
        raise UserError(f"{VARIABLE}: found {listed}, allowed: each GPU once")
    return found


def _listed(word: str, cards: Sequence[Card], environment: Mapping[str, str]) -> Card:
    if word.startswith("MIG-"):
        raise UserError(f"{VARIABLE}: found {word}, a part of a GPU (MIG), whose clock is that of the whole")
    if word.isdecimal():
        if len({card.name for card in cards}) > 1 and environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            allowed = "UUIDs, or CUDA_DEVICE_ORDER=PCI_BUS_ID"
            raise UserError(f"{VARIABLE}: found index {word} on a host with different GPUs, allowed: {allowed}")
        matches = [card for card in cards if card.gpu == int(word)]
    else:
        matches = [card for card in cards if word.startswith("GPU-") and card.uuid.startswith(word)]
    if len(matches) != 1:
        raise UserError(f"{VARIABLE}: found {word}, allowed: {', '.join(map(str, cards)) or 'none, there is no GPU'}")
    return matches[0]


def gpu_groups(found: object, names: Sequence[str], tp: int, owners: Mapping[str, str] | None = None) -> Groups:
    """The GPUs of each instance, as they were given.

    Args:
        found: `servers.gpus`: a list of indices or UUIDs per instance, or None for consecutive indices on each host.
        names: of the instances.
        tp: GPUs of an instance.
        owners: who owns the clocks of an instance's GPUs, which stands for its host; those not named are on this one.

    Raises:
        UserError: another number of lists, or of GPUs in one, or a GPU of a host that is named twice or by neither.
    """
    owner_of = {name: (owners or {}).get(name, "") for name in names}
    if found is None:
        counts = {owner: itertools.count() for owner in owner_of.values()}
        return {name: [next(counts[owner_of[name]]) for _ in range(tp)] for name in names}
    allowed = (
        f"allowed: a list of {tp} GPUs for each of the {len(names)} servers, by index or UUID, each GPU of a host once"
    )
    lists = found if isinstance(found, list) else []
    if len(lists) != len(names) or not all(isinstance(group, list) and len(group) == tp for group in lists):
        raise UserError(f"servers.gpus: found {found}, {allowed}")
    for gpu in (gpu for group in lists for gpu in group):
        if isinstance(gpu, int) and not isinstance(gpu, bool):
            checks.number("servers.gpus", gpu, low=0)
        elif not isinstance(gpu, str) or not gpu.startswith("GPU-"):
            raise UserError(f"servers.gpus: found {gpu!r}, {allowed}")
    groups = dict(zip(names, lists, strict=True))
    places = [(owner_of[name], gpu) for name, group in groups.items() for gpu in group]
    if len(set(places)) < len(places):
        raise UserError(f"servers.gpus: found {found}, {allowed}")
    return groups


def choose(
    found: object, names: Sequence[str], tp: int, cards: Sequence[Card], environment: Mapping[str, str] = os.environ
) -> dict[str, list[Card]]:
    """The GPUs of each instance.

    Args:
        found: `servers.gpus`: indices or UUIDs, or None for the first that are visible.
        names: of the instances.
        tp: GPUs of an instance.
        cards: those of the host.
        environment: with the inherited list, if there is one.

    Raises:
        UserError: see `gpu_groups` and `visible`; or a GPU that is not there, not visible, or divided.
    """
    seen = visible(cards, environment)
    groups = gpu_groups(found, names, tp)
    within = f"those of {VARIABLE}={environment[VARIABLE]}" if VARIABLE in environment else "those of this host"
    if found is None:
        wanted = tp * len(names)
        if len(seen) < wanted:
            raise UserError(
                f"servers.gpus: found {len(seen)} GPUs, {within}, allowed: {wanted} for {len(names)} servers"
            )
        chosen = {name: seen[tp * place : tp * (place + 1)] for place, name in enumerate(names)}
    else:
        allowed = f"{within}: {', '.join(map(str, seen)) or 'none'}"
        chosen = {name: [_named(gpu, seen, allowed) for gpu in group] for name, group in groups.items()}
    cards = [card for group in chosen.values() for card in group]
    if len(set(cards)) < len(cards):
        raise UserError(f"servers.gpus: found {found}, allowed: each GPU once")
    for card in cards:
        if card.divided:
            raise UserError(f"servers.gpus: found {card}, which is divided (MIG), allowed: whole GPUs")
    return chosen


def _named(gpu: Gpu, seen: Sequence[Card], allowed: str) -> Card:
    for card in seen:
        if gpu in (card.gpu, card.uuid):
            return card
    raise UserError(f"servers.gpus: found {gpu}, allowed: {allowed}")


def told_by_uuid(
    found: object, names: Sequence[str], tp: int, real: bool, owners: Mapping[str, str] | None = None
) -> Groups:
    """As `choose`; as given where the GPUs are not real, are those of another host, or NVML does not show them."""
    groups = gpu_groups(found, names, tp, owners)
    here = [name for name in names if not (owners or {}).get(name)]
    if real and here:
        with suppress(NoNvmlError):
            wanted = None if found is None else [groups[name] for name in here]
            chosen = choose(wanted, here, tp, host_cards())
            groups |= {name: [card.uuid for card in group] for name, group in chosen.items()}
    return groups


def check_idle(groups: Mapping[str, Sequence[Card]]) -> None:
    """Refuse GPUs on which somebody computes.

    Raises:
        UserError: names the first, and who.
    """
    for card in (card for group in groups.values() for card in group):
        if card.pids:
            who = ", ".join(map(str, card.pids[:3])) + (", ..." if len(card.pids) > 3 else "")
            raise UserError(
                f"servers.gpus: found {card}, on which process {who} computes, allowed: GPUs of our own, "
                "or servers.shared_gpus=true"
            )
