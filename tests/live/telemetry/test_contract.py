"""The names of SGLang that the plugin hooks and reads still exist, read from its source without importing it.

Skipped where sglang is not installed. `make test-sources` runs it, and test_loops.py, against unpacked wheels.
"""

import ast
import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import msgspec
import pytest

from tests.live.telemetry import forward_pass
from voltana.live.telemetry.sglang_plugin import HEALTH_CHECK, SCHEDULER, USES, SchedulerTap
from voltana.live.telemetry.sglang_versions import untested

spec = importlib.util.find_spec("sglang")
pytestmark = pytest.mark.skipif(spec is None, reason="sglang is not installed")
ROOT = Path(next(iter(spec.submodule_search_locations or ["."]))).parent if spec else Path()


@cache
def source(module: str) -> ast.Module:
    base = ROOT.joinpath(*module.split("."))
    path = base.with_suffix(".py") if base.with_suffix(".py").is_file() else base / "__init__.py"
    assert path.is_file(), f"SGLang has no module {module} any more"
    return ast.parse(path.read_text())


def find(module: str, name: str) -> ast.ClassDef | ast.FunctionDef:
    for node in ast.walk(source(module)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node
    pytest.fail(f"SGLang has no {module}.{name} any more")


def imported_from(module: str, name: str) -> str | None:
    for node in ast.walk(source(module)):
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            return node.module
    return None


def members(module: str, name: str) -> set[str]:
    """Methods and attributes of a class and of its bases within SGLang."""
    node = find(module, name)
    assert isinstance(node, ast.ClassDef)
    found = set(own_members(node))
    for base in node.bases:
        if isinstance(base, ast.Name):
            home = imported_from(module, base.id)
            if home is None and any(isinstance(n, ast.ClassDef) and n.name == base.id for n in source(module).body):
                home = module
            if home is not None and home.startswith("sglang."):
                found |= members(home, base.id)
    return found


def own_members(node: ast.ClassDef) -> Iterator[str]:
    for child in node.body:
        if isinstance(child, ast.FunctionDef):
            yield child.name
        elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
            yield child.target.id
    for each in ast.walk(node):
        match each:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def parameters(module: str, owner: str, name: str) -> list[str]:
    node = find(module, owner)
    method = next(child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == name)
    return [argument.arg for argument in method.args.args]


def called(module: str, function: str) -> set[str]:
    calls = (node.func for node in ast.walk(find(module, function)) if isinstance(node, ast.Call))
    return {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}


def test_version_is_in_the_range() -> None:
    assert untested(importlib.metadata.version("sglang")) is None


@pytest.mark.parametrize("dotted", USES)
def test_what_is_read_exists(dotted: str) -> None:
    module, _, name = dotted.rpartition(".")
    missing = set(USES[dotted]) - members(module, name)
    assert not missing, f"{dotted} of SGLang has no {', '.join(sorted(missing))} any more"


@pytest.mark.parametrize(
    ("method", "first"), [("run_batch", "batch"), ("handle_generate_request", "recv_req"), ("on_idle", None)]
)
def test_hooked_methods_take_what_the_hooks_expect(method: str, first: str | None) -> None:
    module, _, owner = SCHEDULER.rpartition(".")
    assert parameters(module, owner, method)[:2] == ["self", *([first] if first else [])]


def test_plugins_are_loaded_in_the_scheduler_process() -> None:
    assert "load_plugins" in called("sglang.srt.managers.scheduler", "run_scheduler_process")
    text = ast.unparse(source("sglang.srt.plugins"))
    assert "sglang.srt.plugins" in text and "entry_points" in text


def test_hook_registry_takes_hooks_that_run_before() -> None:
    registry = "sglang.srt.plugins.hook_registry"
    assert parameters(registry, "HookRegistry", "register") == ["cls", "target", "hook", "hook_type"]
    values = {ast.unparse(node.targets[0]) for node in find(registry, "HookType").body if isinstance(node, ast.Assign)}
    assert "BEFORE" in values


def test_rank_is_where_the_plugin_looks_for_it() -> None:
    text = ast.unparse(source("sglang.srt.runtime_context"))
    assert "def get_parallel" in text and "'tp_rank'" in text and "'pp_rank'" in text


def test_data_parallel_ranks_are_counted_where_the_plugin_looks() -> None:
    """Since 0.5.20 or so the fields stand in modules of their own."""
    places = (("sglang.srt.server_args", "ServerArgs"), ("sglang.srt.arg_groups.fields.parallel", "Parallel"))
    there = [place for place in places if ROOT.joinpath(*place[0].split(".")).with_suffix(".py").is_file()]
    assert any("dp_size" in members(*place) for place in there)


def test_requests_in_a_batch_pass_the_hook_one_by_one() -> None:
    assert "handle_generate_request" in called("sglang.srt.managers.scheduler", "handle_batch_generate_request")
    text = ast.unparse(source("sglang.srt.managers.scheduler"))
    assert "(TokenizedGenerateReqInput, self.handle_generate_request)" in text


@pytest.mark.parametrize("loop", ["", "_disagg_prefill", "_disagg_decode"])
def test_loops_of_pipelines_pass_the_hooks(loop: str) -> None:
    """They are too long for test_loops.py."""
    module = "sglang.srt.managers.scheduler_pp_mixin"
    assert {"_pp_launch_batch", "on_idle"} <= called(module, f"event_loop_pp{loop}")
    assert "run_batch" in called(module, "_pp_launch_batch")


def test_lengths_on_the_host_are_counted_before_the_launch() -> None:
    """Or there are none: speculative decoding that overlaps may leave them on the GPU."""
    batch = find("sglang.srt.managers.schedule_batch", "ScheduleBatch")
    prepare = next(
        each for each in batch.body if isinstance(each, ast.FunctionDef) and each.name == "prepare_for_decode"
    )
    assert "self.seq_lens_cpu = self.seq_lens_cpu + 1" in ast.unparse(prepare)
    assert "batch.seq_lens_cpu = None" in ast.unparse(source("sglang.srt.managers.overlap_utils"))


def test_health_checks_are_named_as_expected() -> None:
    assert HEALTH_CHECK in ast.unparse(source("sglang.srt.constants"))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("ForwardPassMetrics", forward_pass.ForwardPass),
        ("ScheduledRequestMetrics", forward_pass.Scheduled),
        ("QueuedRequestMetrics", forward_pass.Queued),
    ],
)
def test_forward_pass_metrics_have_the_fields_that_are_read(theirs: str, ours: type[msgspec.Struct]) -> None:
    missing = set(ours.__struct_fields__) - members("sglang.srt.observability.forward_pass_metrics", theirs)
    assert not missing, f"SGLang's {theirs} has no {', '.join(sorted(missing))} any more"


def test_forward_pass_metrics_are_maps_of_the_known_version() -> None:
    module = source("sglang.srt.observability.forward_pass_metrics")
    text = ast.unparse(module)
    assert f"FPM_VERSION: int = {forward_pass.FORWARD_PASS_VERSION}" in text
    assert "array_like" not in text


def test_sglangs_own_registry_calls_the_hooks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its hook registry needs nothing but the standard library, so it runs here on a scheduler of our own."""
    path = ROOT / "sglang" / "srt" / "plugins" / "hook_registry.py"
    found = importlib.util.spec_from_file_location("hook_registry", path)
    assert found is not None and found.loader is not None
    registry = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "hook_registry", registry)
    found.loader.exec_module(registry)

    class Scheduler:
        def run_batch(self, batch: object) -> str:
            return f"ran {batch}"

        def on_idle(self) -> str:
            return "idle"

        def handle_generate_request(self, recv_req: SimpleNamespace) -> str:
            return "taken"

    stage = ModuleType("stage")
    stage.Scheduler = Scheduler  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stage", stage)
    tap = SchedulerTap(f"ipc://{tmp_path / 't.sock'}", "decode-0")
    hooks = {"run_batch": tap.before_batch, "on_idle": tap.before_idle, "handle_generate_request": tap.before_request}
    for name, hook in hooks.items():
        registry.HookRegistry.register(f"stage.Scheduler.{name}", hook, registry.HookType.BEFORE)
    registry.HookRegistry.apply_hooks()

    server = Scheduler()
    assert server.handle_generate_request(SimpleNamespace(rid="a", input_ids=[1, 2, 3])) == "taken"
    assert (tap._received, tap._received_tokens) == (1, 3)
    assert server.run_batch("a batch") == "ran a batch" and server.on_idle() == "idle"
    assert tap.errors >= 1, "the batch is no batch, and the server did not notice"
