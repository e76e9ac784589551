"""GPUs go by UUID from the configuration to CUDA, and none is taken that an inherited list leaves out."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.live.owner import PATIENCE_S
from voltana.errors import UserError
from voltana.live.gpus.visible import Card, check_idle, choose, gpu_groups, visible

A100 = [Card(gpu, f"GPU-{gpu}abc-0000", "A100") for gpu in range(4)]
MIXED = [*A100[:2], Card(2, "GPU-2abc-0000", "T4")]


def gpus(cards: list[Card]) -> list[int]:
    return [card.gpu for card in cards]


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("-1", []),
        ("2,0", [2, 0]),
        ("GPU-3abc-0000", [3]),
        ("GPU-3a, 1", [3, 1]),
    ],
)
def test_the_inherited_list(listed: str | None, found: list[int]) -> None:
    assert gpus(visible(A100, {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed})) == found


@pytest.mark.parametrize(
    ("cards", "listed", "message"),
    [
        (A100, "0,0", "found 0,0, allowed: each GPU once"),
        (A100, "1,GPU-1", "found 1,GPU-1, allowed: each GPU once"),
        (A100, "7", "found 7, allowed: GPU 0 (GPU-0abc-0000), GPU 1"),
        (A100, "GPU-", "found GPU-, allowed: GPU 0"),
        (A100, "zero", "found zero, allowed: GPU 0"),
        (A100, "MIG-4f4a", "found MIG-4f4a, a part of a GPU (MIG)"),
        (MIXED, "0", "found index 0 on a host with different GPUs, allowed: UUIDs, or CUDA_DEVICE_ORDER=PCI_BUS_ID"),
    ],
)
def test_an_inherited_list_that_cannot_be_followed(cards: list[Card], listed: str, message: str) -> None:
    with pytest.raises(UserError) as refused:
        visible(cards, {"CUDA_VISIBLE_DEVICES": listed})
    assert message in str(refused.value)


def test_indices_in_the_order_of_the_bus() -> None:
    order = {"CUDA_VISIBLE_DEVICES": "2,0", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert gpus(visible(MIXED, order)) == [2, 0]
    assert gpus(visible(MIXED, {"CUDA_VISIBLE_DEVICES": "GPU-2"})) == [2]


named = st.sampled_from(A100).flatmap(lambda card: st.sampled_from([card.gpu, card.uuid]))


@given(
    listed=st.none() | st.permutations(range(4)).flatmap(lambda order: st.integers(0, 4).map(lambda n: order[:n])),
    found=st.none() | st.lists(st.lists(named, min_size=1, max_size=2), min_size=2, max_size=2),
    tp=st.integers(1, 2),
)
def test_no_gpu_outside_the_list_is_taken(listed: list[int] | None, found: Any, tp: int) -> None:
    environment = {} if listed is None else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, listed))}
    try:
        groups = choose(found, ["prefill-0", "decode-0"], tp, A100, environment)
    except UserError as error:
        assert str(error).startswith("servers.gpus: found ")
        return
    taken = [card.gpu for group in groups.values() for card in group]
    assert len(taken) == 2 * tp == len(set(taken))
    assert set(taken) <= set(range(4) if listed is None else listed)
    if found is not None:
        assert [card for group in groups.values() for card in group] == [
            next(card for card in A100 if each in card) for group in found for each in group
        ]


@pytest.mark.parametrize(
    "found", [[[0], ["MIG-1"]], [[0], [True]], [[0], [-1]], [[0], [1.0]], [[0]], [[0], [0]], 3, [0]]
)
def test_gpus_that_are_none(found: object) -> None:
    with pytest.raises(UserError, match=r"servers.gpus: found"):
        gpu_groups(found, ["prefill-0", "decode-0"], 1)


def test_divided_and_busy_gpus() -> None:
    divided = [A100[0], A100[1]._replace(divided=True)]
    with pytest.raises(UserError, match=r"found GPU 1 \(GPU-1abc-0000\), which is divided \(MIG\)"):
        choose(None, ["prefill-0", "decode-0"], 1, divided, {})
    busy = {"decode-0": [A100[2]._replace(pids=(5, 6, 7, 8))]}
    with pytest.raises(UserError, match=r"on which process 5, 6, 7, ... computes, .* servers.shared_gpus=true"):
        check_idle(busy)


LIVE = """
import sys
from voltana.live.run.command import main
main()
"""
SERVER = """#!{python}
import json, os, pathlib, sys
if sys.argv[1] == "-c":
    print('["0.5.23", true]')
    raise SystemExit
pathlib.Path({folder!r}, os.environ["VOLTANA_INSTANCE"]).write_text(json.dumps(os.environ.get("CUDA_VISIBLE_DEVICES")))
raise SystemExit("this is no server")
"""


@pytest.fixture
def live(standin: Any, tmp_path: Path) -> Callable[..., tuple[int, str, dict[str, str]]]:
    """Run voltana-live on the stand-in's GPUs with servers that note what they may see; status, words, notes."""
    seen = tmp_path / "seen"
    seen.mkdir()
    server = tmp_path / "server"
    server.write_text(SERVER.format(python=sys.executable, folder=str(seen)))
    server.chmod(0o755)

    def go(*overrides: str, **variables: str) -> tuple[int, str, dict[str, str]]:
        settings = [
            *("servers=sglang", "servers.device=cuda", f"servers.python={server}", "servers.model=any"),
            "servers.transfer=tcp",
            *("cluster.prefill_instances=1", "cluster.decode_instances=1", "policy=static_max", "rps=1"),
            *("duration_s=1", f"hydra.run.dir={tmp_path / 'record'}", *overrides),
        ]
        done = subprocess.run(
            [sys.executable, "-c", LIVE, *settings],
            env={**standin.environment, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=3 * PATIENCE_S,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done.returncode, done.stderr, {path.name: json.loads(path.read_text()) for path in seen.iterdir()}

    return go


@pytest.mark.slow
def test_servers_see_their_gpu_by_uuid_and_within_the_inherited_list(live: Callable[..., Any], standin: Any) -> None:
    status, words, seen = live(CUDA_VISIBLE_DEVICES=f"3,{standin.uuid(1)}")
    assert (status, "this is no server" in words) == (2, True)
    assert seen["prefill-0"] == standin.uuid(3)
    assert seen.get("decode-0", standin.uuid(1)) == standin.uuid(1), "it may not have been started any more"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "override", "listed", "message"),
    [
        ("mig", "servers.shared_gpus=false", "0,1", "which is divided (MIG), allowed: whole GPUs"),
        ("processes", "servers.shared_gpus=false", "0,1", "on which process 4711 computes"),
        (
            "processes",
            "servers.gpus=[[0],[2]]",
            "0,1",
            "servers.gpus: found 2, allowed: those of CUDA_VISIBLE_DEVICES=0,1",
        ),
        ("processes", "servers.shared_gpus=true", "0,1", "this is no server"),
        ("mig", "servers.shared_gpus=false", "0", "found 1 GPUs, those of CUDA_VISIBLE_DEVICES=0, allowed: 2 for 2"),
        ("mig", "+servers.variables.CUDA_VISIBLE_DEVICES=0", "0", "servers.variables: found CUDA_VISIBLE_DEVICES"),
    ],
)
def test_gpus_that_are_refused_in_one_line(
    live: Callable[..., Any], standin: Any, field: str, override: str, listed: str, message: str
) -> None:
    standin.set(1, field, 1)
    status, words, seen = live(override, CUDA_VISIBLE_DEVICES=listed)
    assert status == 2 and message in words
    assert bool(seen) == (message == "this is no server")
