"""The hooks tell the truth of what they are shown, cost little, and never hurt the server."""

import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests.bench.telemetry import LIMIT_US, Mode, Request, measure, scheduler
from voltana.live.servers.emulated.views import VERSION as EMULATED
from voltana.live.servers.sglang.environment import REQUIREMENTS
from voltana.live.telemetry.sglang_plugin import EXACT, Queue, SchedulerTap, activate, queues, weigh
from voltana.live.telemetry.sglang_versions import TESTED, untested
from voltana.live.telemetry.subscriber import Subscriber
from voltana.state import LoadSnapshot

ROOT = Path(__file__).parents[3]


class Tensor(list[int]):
    def sum(self) -> int:
        return sum(self)


def batch(decode: bool, size: int, mode: Any = None) -> Any:
    return SimpleNamespace(
        forward_mode=mode or Mode(decode),
        reqs=[Request(100) for _ in range(size)],
        seq_lens_cpu=Tensor([500] * size),
        extend_num_tokens=100 * size,
    )


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """SGLang's runtime context, of the first rank."""
    parallel = SimpleNamespace(tp_rank=0, pp_rank=0)
    for name in ("sglang", "sglang.srt", "sglang.srt.runtime_context"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["sglang.srt.runtime_context"], "get_parallel", lambda: parallel, raising=False)
    return parallel


@pytest.fixture
def listen(tmp_path: Path) -> Iterator[tuple[str, Callable[[Callable[[], None]], LoadSnapshot]]]:
    """An endpoint, and what calls a hook until its message has come."""
    endpoint = f"ipc://{tmp_path / 't.sock'}"
    with Subscriber() as subscriber:
        subscriber.connect(endpoint)

        def until_heard(call: Callable[[], None]) -> LoadSnapshot:
            end_s = time.monotonic() + 5
            call()
            while not subscriber.receive():
                assert time.monotonic() < end_s, "nothing came"
                time.sleep(0.002)
                call()
            (latest,) = subscriber.latest.values()
            return latest.load

        yield endpoint, until_heard


def test_a_decode_batch_is_published(ranks: SimpleNamespace, listen: Any) -> None:
    endpoint, until_heard = listen
    tap, server = SchedulerTap(endpoint, "decode-1"), scheduler("decode", 3)
    for tokens in (5, 6, 7, 8, 9, 10, 11):
        tap.before_request(server, SimpleNamespace(rid="a", input_ids=[0] * tokens))
    tap.before_request(server, SimpleNamespace(rid="HEALTH_CHECK_1", input_ids=[0]))
    load = until_heard(lambda: tap.before_batch(server, batch(True, 4)))
    assert (load.batch_size, load.batch_tokens, load.longest_wait_s, load.idle_s) == (4, 2000, 0.0, 0.0)
    assert (load.queued, load.queued_tokens) == (3, 3 * 464), "the others wait for their KV"
    assert load.arrived_requests == 7 - 6
    assert tap.errors == 0 and tap.calls > 0 and tap.own_s > 0
    assert tap._publisher is not None
    tap._publisher.close()


def test_a_prefill_batch_is_published(ranks: SimpleNamespace, listen: Any) -> None:
    endpoint, until_heard = listen
    tap, work = SchedulerTap(endpoint, ""), batch(False, 2)
    work.reqs[1].time_stats.prefill_bootstrap_queue_entry_time -= 3.0
    load = until_heard(lambda: tap.before_batch(scheduler("prefill", 0), work))
    assert (load.batch_size, load.batch_tokens, load.queued) == (2, 200, 0)
    assert 3.0 < load.longest_wait_s < 8.0
    assert tap._publisher is not None
    tap._publisher.close()


def test_idleness_is_told_once_and_then_each_second(ranks: SimpleNamespace, listen: Any) -> None:
    endpoint, until_heard = listen
    tap, server = SchedulerTap(endpoint, "decode-0"), scheduler("decode", 0)
    until_heard(lambda: tap.before_batch(server, batch(True, 1)))
    tap.before_idle(server)
    assert tap._publisher is not None
    sent = tap._publisher.sent
    for _ in range(1000):
        tap.before_idle(server)
    assert tap._publisher.sent == sent
    assert tap._iterations > 0 and tap._busy_s > 0
    iterations = tap._iterations
    tap._heartbeat_s -= 2.0
    tap.before_idle(server)
    assert (tap._publisher.sent, tap._iterations) == (sent + 1, iterations)
    tap._publisher.close()


def test_batches_that_compute_nothing_are_no_iterations(ranks: SimpleNamespace, tmp_path: Path) -> None:
    tap = SchedulerTap(f"ipc://{tmp_path / 't.sock'}", "")
    placeholder = Mode(True)
    placeholder.is_prebuilt = lambda: True  # type: ignore[method-assign]
    tap.before_batch(scheduler("decode", 0), batch(True, 1, placeholder))
    assert tap._publisher is None and tap.errors == 0 and tap.calls == 0


def test_busy_time_is_launch_to_launch(ranks: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    tap, server = SchedulerTap(f"ipc://{tmp_path / 't.sock'}", ""), scheduler("decode", 0)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for step in (0.02, 0.03):
        tap.before_batch(server, batch(True, 1))
        now[0] += step
    tap.before_idle(server)
    now[0] += 9.0
    tap.before_batch(server, batch(True, 1))
    assert tap._iterations == 2
    assert tap._busy_s == pytest.approx(0.05)
    assert tap._publisher is not None
    tap._publisher.close()


def test_other_ranks_are_quiet(ranks: SimpleNamespace, tmp_path: Path) -> None:
    ranks.tp_rank = 1
    tap = SchedulerTap(f"ipc://{tmp_path / 't.sock'}", "")
    tap.before_batch(scheduler("decode", 0), batch(True, 1))
    tap.before_batch(scheduler("decode", 0), batch(True, 1))
    assert tap._off and tap._publisher is None and tap.errors == 0


def test_a_batch_whose_lengths_are_on_the_gpu_is_counted_by_its_requests(ranks: SimpleNamespace, listen: Any) -> None:
    """Speculative decoding that overlaps (`FutureMap.resolve_seq_lens_cpu`) sets `seq_lens_cpu` to None."""
    endpoint, until_heard = listen
    tap, work = SchedulerTap(endpoint, "decode-0"), batch(True, 40)
    work.seq_lens_cpu = None
    load = until_heard(lambda: tap.before_batch(scheduler("decode", 0), work))
    assert (load.batch_size, load.batch_tokens) == (40, 40 * 164) and tap.errors == 0
    assert tap._publisher is not None
    tap._publisher.close()


@pytest.mark.parametrize("sizes", [{"dp_size": 2}, {"dp_size": 1, "attn_dp_size": 2}])
def test_data_parallel_ranks_do_not_all_publish_as_one(
    ranks: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture, sizes: dict[str, int]
) -> None:
    tap, server = SchedulerTap(f"ipc://{tmp_path / 't.sock'}", "decode-0"), scheduler("decode", 0)
    server.server_args = SimpleNamespace(**sizes)
    for _ in range(3):
        tap.before_batch(server, batch(True, 1))
        tap.before_idle(server)
    assert tap._publisher is None and tap.errors == 0
    (record,) = caplog.records
    assert "found 2 data-parallel ranks, allowed: 1" in record.getMessage()


def test_a_broken_hook_does_not_hurt_the_server(
    ranks: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tap = SchedulerTap(f"ipc://{tmp_path / 't.sock'}", "")
    for _ in range(3):
        tap.before_batch(SimpleNamespace(), batch(True, 1))
        tap.before_idle(SimpleNamespace())
        tap.before_request(SimpleNamespace(), SimpleNamespace())
    assert tap.errors >= 6
    assert len(caplog.records) == 1 and "the server goes on" in caplog.text


def test_nothing_is_hooked_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VOLTANA_TELEMETRY", raising=False)
    monkeypatch.setitem(sys.modules, "sglang", None)
    activate()


@pytest.mark.parametrize("version", ["0.5.14", "0.5.24", "0.5.24.dev3+g1", "0.4.10.post2", "nightly"])
def test_other_releases_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: str
) -> None:
    monkeypatch.setenv("VOLTANA_TELEMETRY", "ipc:///nowhere/t.sock")
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    monkeypatch.setitem(sys.modules, "sglang", None)
    activate()
    assert f"found SGLang {version}, allowed: {TESTED}" in caplog.text
    monkeypatch.setenv("VOLTANA_ANY_SGLANG", "1")
    with pytest.raises(ImportError):
        activate()


@pytest.mark.parametrize("version", ["0.5.15", "0.5.15.post1", "0.5.23", "0.5.23+cu130", "0.5.22.dev1"])
def test_the_range_takes_all_forms_of_its_releases(version: str) -> None:
    assert untested(version) is None


def test_the_extra_and_the_pinned_release_are_in_the_range() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["sglang"]
    assert f"sglang{TESTED}" in extra
    (pinned,) = (line for line in REQUIREMENTS.read_text().splitlines() if line.startswith("sglang=="))
    assert untested(pinned.removeprefix("sglang==")) is None
    assert pinned == f"sglang=={EMULATED}", "emulated servers say what they were held against"


def test_hooks_are_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks: dict[str, Any] = {}
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.5.23")
    name = "sglang.srt.plugins.hook_registry"
    for each in ("sglang", "sglang.srt", "sglang.srt.plugins", name):
        monkeypatch.setitem(sys.modules, each, ModuleType(each))
    registry = SimpleNamespace(register=lambda target, hook, kind: hooks.update({target: (hook, kind)}))
    monkeypatch.setattr(sys.modules[name], "HookRegistry", registry, raising=False)
    monkeypatch.setattr(sys.modules[name], "HookType", SimpleNamespace(BEFORE="before"), raising=False)
    monkeypatch.setenv("VOLTANA_TELEMETRY", "ipc:///nowhere/t.sock")
    activate()
    methods = {target.rpartition(".")[2] for target in hooks}
    assert methods == {"run_batch", "on_idle", "handle_generate_request"}
    assert {kind for _, kind in hooks.values()} == {"before"}


def test_long_queues_are_scaled_up() -> None:
    assert weigh([]) == (0, 0)
    assert weigh([Request(100)] * 5) == (5, 5 * 164)
    assert weigh([Request(100)] * (10 * EXACT)) == (10 * EXACT, 10 * EXACT * 164)


def test_requests_that_wait_for_memory_are_queued() -> None:
    server = scheduler("decode", 0)
    starved, elsewhere = Request(100), Request(300)
    starved.waiting_for_input = True
    server.disagg_decode_prealloc_queue.queue = [starved, elsewhere]
    server.disagg_decode_transfer_queue.queue = [Request(36)]
    assert queues(server) == (Queue(1, 164), Queue(2, 464))


def test_the_hook_is_cheap() -> None:
    cost = measure("decode", 128, 20, 500)
    assert cost.cpu < 2 * LIMIT_US, "twice the limit, because a machine under test is not quiet"


def test_the_plugin_imports_nothing_heavy() -> None:
    heavy = "{'numpy', 'pandas', 'torch', 'scipy', 'pyarrow', 'hydra', 'pydantic', 'voltana.sim', 'simpy', 'asyncio'}"
    code = f"import sys, voltana.live.telemetry.sglang_plugin; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
