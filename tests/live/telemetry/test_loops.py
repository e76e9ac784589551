"""The hooks in SGLang's own event loops: its source is taken as it is installed, and run on a scheduler of our own.

A loop's function is compiled out of its module, which could not be imported here (torch, CUDA). What it reads beside
the scheduler is a mock; the order in which it takes in requests, launches, processes results and finds itself idle is
SGLang's.
"""

import __future__

import ast
import builtins
import sys
from collections import deque
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from tests.bench.telemetry import Mode, Request
from tests.live.telemetry.test_contract import find, pytestmark
from voltana.live.telemetry.sglang_plugin import SchedulerTap
from voltana.state import Phase

__all__ = ["pytestmark"]

SCHEDULER = "sglang.srt.managers.scheduler"
LOOPS: tuple[tuple[str, str, Phase, bool], ...] = (
    (SCHEDULER, "event_loop_normal", "decode", False),
    (SCHEDULER, "event_loop_overlap", "decode", True),
    ("sglang.srt.disaggregation.prefill", "event_loop_normal_disagg_prefill", "prefill", False),
    ("sglang.srt.disaggregation.prefill", "event_loop_overlap_disagg_prefill", "prefill", True),
    ("sglang.srt.disaggregation.decode", "event_loop_normal_disagg_decode", "decode", False),
    ("sglang.srt.disaggregation.decode", "event_loop_overlap_disagg_decode", "decode", True),
)
"""Module, function, what the server does, and whether a launch comes before the results of the one before."""


class EndedError(Exception):
    """Nothing more is scheduled."""


class Batch(SimpleNamespace):
    """As much of a batch as loops and hooks touch."""

    def copy(self) -> "Batch":
        return self


def a_batch(phase: Phase, name: str, size: int) -> Batch:
    lengths = SimpleNamespace(sum=lambda: 500 * size)
    return Batch(
        name=name,
        forward_mode=Mode(phase == "decode"),
        reqs=[Request(100) for _ in range(size)],
        seq_lens_cpu=lengths,
        extend_num_tokens=100 * size,
    )


def loop(module: str, name: str) -> tuple[Callable[[Any], None], str]:
    """A loop of SGLang as a function, and its source."""
    node = find(module, name)
    assert isinstance(node, ast.FunctionDef)
    node.decorator_list = []
    names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    scope: dict[str, Any] = {name: MagicMock() for name in names if not hasattr(builtins, name)} | {"deque": deque}
    for mock in scope.values():
        if isinstance(mock, MagicMock):  # environment variables of SGLang's, none of which is set
            mock.configure_mock(**{f"{variable}.get.return_value": False for variable in _variables(node)})
    code = compile(ast.Module([node], []), module, "exec", __future__.annotations.compiler_flag)
    exec(code, scope)
    return scope[name], ast.unparse(node)


def _variables(node: ast.FunctionDef) -> set[str]:
    return {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute) and each.attr.startswith("SGLANG_")}


def stage(tap: SchedulerTap, phase: Phase, source: str, batches: Sequence[Batch | None], told: list[str]) -> MagicMock:
    """A scheduler with these batches to run, one each time it is asked, that tells what is done to it."""
    server = MagicMock(**{"disaggregation_mode.value": phase, "waiting_queue": [], "max_total_num_tokens": 400_000})
    for queue in ("disagg_prefill_bootstrap_queue", "disagg_decode_prealloc_queue", "disagg_decode_transfer_queue"):
        getattr(server, queue).configure_mock(queue=[], retracted_queue=[], **{"pop_bootstrapped.return_value": []})
    server.server_args = SimpleNamespace(dp_size=1, enable_unified_memory=False)
    server.configure_mock(gracefully_exit=False, _engine_paused=False, last_batch=None, _deferred_input_requests=[])
    for method in ("is_disable_overlap_for_batch", "_is_continuous_input_polling_enabled", "_war_barrier_is_coarse"):
        getattr(server, method).return_value = False
    coming = iter(batches)

    def schedule(**_: Any) -> Any:
        try:
            batch = next(coming)
        except StopIteration:
            raise EndedError from None
        plan = SimpleNamespace(running_batch=batch, batch_to_run=batch)
        return plan if "plan.batch_to_run" in source else batch  # before 0.5.17 or so

    def run_batch(batch: Batch) -> str:
        tap.before_batch(server, batch)
        told.append(f"run {batch.name}")
        return f"result of {batch.name}"

    def on_idle() -> None:
        tap.before_idle(server)
        told.append("idle")

    for method in (
        "get_next_batch_to_run",
        "get_next_disagg_prefill_batch_to_run",
        "get_next_disagg_decode_batch_to_run",
    ):
        getattr(server, method).side_effect = schedule
    server.ngram_embedding_manager.prepare_for_forward.side_effect = lambda batch, **_: batch
    server.run_batch, server.on_idle = run_batch, on_idle
    server.process_batch_result.side_effect = lambda batch, _: told.append(f"done {batch.name}")
    server.ingest_requests.side_effect = server.process_input_requests.side_effect = lambda *_, **__: told.append(
        "take in"
    )
    return server


class Published:
    """In the place of a publisher."""

    def __init__(self) -> None:
        self.messages: list[tuple[Any, ...]] = []

    def publish(self, *fields: Any) -> None:
        self.messages.append(fields)


@pytest.mark.parametrize(("module", "name", "phase", "overlaps"), LOOPS)
def test_the_hooks_are_told_every_iteration(module: str, name: str, phase: Phase, overlaps: bool) -> None:
    tap, published, told = SchedulerTap("ipc:///nowhere", phase), Published(), list[str]()
    tap._publisher = published  # type: ignore[assignment]
    run, source = loop(module, name)
    one, two = a_batch(phase, "1", 2), a_batch(phase, "2", 3)
    with pytest.raises(EndedError):
        run(stage(tap, phase, source, [one, two, None, None], told))

    turns = " ".join(told).split("take in")[1:-1]
    inner = [turn.split() for turn in turns]
    if overlaps:
        expected = ["run 1", "run 2 done 1", "done 2", "idle"]
    else:
        expected = ["run 1 done 1", "run 2 done 2", "idle", "idle"]
    assert [" ".join(words) for words in inner] == expected, "requests are taken in before each launch"
    sizes = [message[:2] for message in published.messages]
    per_request = 500 if phase == "decode" else 100
    assert sizes == [(2, 2 * per_request), (3, 3 * per_request), (0, 0)]
    assert [message[8] for message in published.messages] == [0, 1, 2], "an iteration ends where the next one begins"
    assert tap.errors == 0


@pytest.mark.parametrize(
    ("rank", "publishes"), [({"tp_rank": 0, "pp_rank": 0}, True), ({"tp_rank": 1, "pp_rank": 0}, False)]
)
def test_of_a_tensor_parallel_server_the_first_rank_tells(
    rank: dict[str, int], publishes: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """All ranks run the same loop on the same requests."""
    for each in ("sglang", "sglang.srt", "sglang.srt.runtime_context"):
        monkeypatch.setitem(sys.modules, each, ModuleType(each))
    context = sys.modules["sglang.srt.runtime_context"]
    monkeypatch.setattr(context, "get_parallel", lambda: SimpleNamespace(**rank), raising=False)
    tap, told = SchedulerTap(f"ipc://{tmp_path / 't.sock'}", "decode-0"), list[str]()
    run, source = loop("sglang.srt.disaggregation.decode", "event_loop_overlap_disagg_decode")
    batches = [a_batch("decode", str(number), 2) for number in range(3)]
    with pytest.raises(EndedError):
        run(stage(tap, "decode", source, batches, told))
    assert tap.errors == 0 and (tap._publisher is not None) == publishes
    if tap._publisher is not None:
        assert tap._publisher.sent == 3
        tap._publisher.close()
