"""Profiling servers: emulated ones, whose physics is known."""

import asyncio
import json
import math
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voltana.errors import UserError
from voltana.live.gpus import Meter
from voltana.live.gpus.emulated import EmulatedGpus
from voltana.live.profiling.served.iterations import Iteration, Iterations
from voltana.live.profiling.served.measure import mean_power_w, trimmed
from voltana.live.profiling.served.run import ServedProfile, profile_pair
from voltana.live.profiling.served.settings import ServedSettings
from voltana.live.servers.emulated.cluster import EmulatedCluster
from voltana.live.telemetry.message import IDLE, Telemetry
from voltana.prediction.fit import fit_ecopred
from voltana.prediction.profile import Sample, read_profile
from voltana.section import parse
from voltana.sim.plant import Plant
from voltana.sim.plant.build import plant_of
from voltana.sim.run.compose import compose_sim

pytestmark = pytest.mark.slow

CLOCKS_MHZ = (1005, 1410)
QUICK = {
    "source": "sglang",
    "clocks_mhz": CLOCKS_MHZ,
    "prefill": {"tokens": [256, 2048], "prompt_tokens": 128, "samples": 4},
    "decode": {
        "max_batch": 4,
        "tokens_per_request": [64, 1500],
        "samples": 5,
        "output_tokens": 400,
        "reserve_tokens": 8,
    },
    "iterations": [4, 8],
    "window_s": [0.1, 1.0],
    "tolerance": 0.01,
    "good_misfit": 0.05,
    "budget_s": 60.0,
    "timeout_s": 30.0,
    "seed": 1,
}
FEW = {**QUICK["decode"], "max_batch": 2}  # type: ignore[dict-item]


@pytest.fixture(scope="module", name="sections")
def _sections() -> dict[str, Any]:
    values = compose_sim()
    return {"gpu": values["gpu"], "model": values["model"], "engine": values["serving"]["engine"]}


@pytest.fixture(scope="module", name="plant")
def _plant(sections: dict[str, Any]) -> Plant:
    return plant_of(sections["gpu"], sections["model"], sections["engine"])


def take(sections: dict[str, Any], plant: Plant, out: Path, **changes: Any) -> None:
    """Profile one emulated pair."""

    async def main() -> None:
        async with asyncio.timeout(120), EmulatedCluster(1, 1, sections) as cluster:
            prefill, decode = cluster.of("prefill")[0], cluster.of("decode")[0]
            gpus = EmulatedGpus(list(cluster.endpoints), plant.gpu.clocks())
            await profile_pair(prefill, decode, gpus, parse(ServedSettings, QUICK | changes, "profile"), out)

    asyncio.run(main())


def truth(plant: Plant, sample: Sample) -> tuple[float, float]:
    """Latency and energy of a row, by the physics of the emulated servers."""
    batch, tokens = sample.batch_size, sample.tokens
    if sample.phase == "decode":
        step = plant.decode(batch, tokens, sample.clock_mhz)
    else:
        step = plant.prefill(batch, tokens, tokens * (tokens / batch + 1) / 2, sample.clock_mhz)
    return step.duration_s, step.duration_s * step.power_w


def test_rows_are_the_physics_of_the_servers(
    sections: dict[str, Any], plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "served.csv"
    take(sections, plant, out, budget_s=0.0)
    samples = read_profile(out)
    assert {(s.phase, s.clock_mhz) for s in samples} == {(p, c) for p in ("prefill", "decode") for c in CLOCKS_MHZ}
    for sample in samples:
        latency_s, energy_j = truth(plant, sample)
        assert sample.latency_s == pytest.approx(latency_s, rel=0.002), sample
        assert sample.energy_j == pytest.approx(energy_j, rel=0.1), sample
    decode = [s for s in samples if s.phase == "decode"]
    assert {s.batch_size for s in decode} >= {1, 4}
    assert max(s.tokens for s in decode) > 4 * 1500 > 64 + 400 > min(s.tokens for s in decode)
    assert max(s.tokens for s in samples if s.phase == "prefill") >= 2048 - 128

    fitted = fit_ecopred(samples)
    for sample in samples:
        predicted = (
            fitted.prefill_s(sample.tokens, sample.clock_mhz)
            if sample.phase == "prefill"
            else fitted.decode_s(sample.batch_size, sample.tokens, sample.clock_mhz)
        )
        assert predicted == pytest.approx(truth(plant, sample)[0], rel=0.1), sample
    report = json.loads(out.with_suffix(".json").read_text())
    assert len(report["cells"]) == len(samples) and report["servers"]["decode"]["tp_size"] == 1
    assert capsys.readouterr().out.count("tokens") >= len(samples)


def test_an_interrupted_profile_goes_on(
    sections: dict[str, Any], plant: Plant, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "served.csv"
    asked: list[tuple[int, Any]] = []
    interrupted: list[bool] = []
    add = ServedProfile._measure

    async def counted(self: ServedProfile, cell: Any, search: Any, settable: bool) -> None:
        asked.append((len(search.missing_clocks(cell)), cell))
        if len(asked) == 3 and not interrupted:
            interrupted.append(True)
            signal.raise_signal(signal.SIGINT)  # as Ctrl-C: asyncio cancels what runs
            await asyncio.sleep(60)
        await add(self, cell, search, settable)

    monkeypatch.setattr(ServedProfile, "_measure", counted)
    with pytest.raises(KeyboardInterrupt):
        take(sections, plant, out, decode=FEW, budget_s=0.0)
    kept = read_profile(out)
    assert len(kept) == 2 * len(CLOCKS_MHZ), "the table holds what was measured"

    journal = out.with_suffix(".cells.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]) + lines[-1][:20])  # killed while it wrote
    del asked[:]
    take(sections, plant, out, decode=FEW, budget_s=0.0)
    again = read_profile(out)
    assert again[: len(kept) - 1] == kept[:-1], "nothing is measured twice"
    assert asked[0][0] == 1, "of the cell cut off, only the clock that was lost"
    assert {s.phase for s in again} == {"prefill", "decode"}
    with pytest.raises(UserError, match=r"served\.cells\.jsonl: holds cells of another profile \(settings was"):
        take(sections, plant, out, decode=FEW, tolerance=0.5)


def test_a_load_that_does_not_fit_is_skipped_and_told(
    sections: dict[str, Any], plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "served.csv"
    decode = {**FEW, "output_tokens": 3}
    take(sections, plant, out, decode=decode, budget_s=0.0, timeout_s=5.0, clocks_mhz=[])
    assert {s.phase for s in read_profile(out)} == {"prefill"}
    assert {s.clock_mhz for s in read_profile(out)} == {1410}
    printed = capsys.readouterr().out
    assert "note: skipped: decode of 2 x" in printed and "raise profile.decode.output_tokens" in printed
    assert "one clock: voltana-fit needs two or more" in printed


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clocks_mhz": [1000]}, "profile.clocks_mhz: found 1000"),
        ({"iterations": [1, 5]}, "profile.iterations: found 1"),
        ({"window_s": [1.0, 0.5]}, "profile.window_s: found 0.5"),
        ({"window_s": 3}, "profile.window_s: found 3"),
        ({"decode": 3}, "profile.decode: found 3"),
        ({"decode": {**QUICK["decode"], "output_tokens": 0}}, "profile.decode.output_tokens: found 0"),  # type: ignore[dict-item]
        ({"good_misfit": -1}, "profile.good_misfit: found -1"),
        ({"windows": 3}, "profile.windows: unknown key"),
    ],
)
def test_bad_settings_are_one_line(
    sections: dict[str, Any], plant: Plant, tmp_path: Path, change: Any, says: str
) -> None:
    with pytest.raises(UserError) as refused:
        take(sections, plant, tmp_path / "served.csv", **change)
    assert says in str(refused.value) and "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_an_interruption_is_never_lost() -> None:
    async def main() -> None:
        iterations = Iterations()
        waiting = asyncio.create_task(iterations.until(lambda: False, 60.0))
        await asyncio.sleep(0.01)
        iterations.take(Telemetry("decode-0", "decode", IDLE, 0, 0.0, 0.0))
        waiting.cancel()
        await asyncio.wait([waiting], timeout=5.0)
        assert waiting.cancelled()

    asyncio.run(main())


# The command


def command(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "voltana-profile"
    words = [program, "source=sglang", "out=served.csv", "model.tp=1", *overrides]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)


def test_the_command_profiles_an_emulated_pair(tmp_path: Path) -> None:
    cells = ("profile.prefill.tokens=[64,256]", "profile.prefill.prompt_tokens=64", "profile.prefill.samples=4")
    decode = ("profile.decode.max_batch=2", "profile.decode.tokens_per_request=[16,64]", "profile.iterations=[4,6]")
    quick = ("profile.budget_s=0", "profile.window_s=[0,1]", "profile.clocks_mhz=[1005,1410]")
    done = command(tmp_path, "profile.servers=emulated", *cells, *decode, *quick)
    assert done.returncode == 0, done.stderr
    assert {sample.clock_mhz for sample in read_profile(tmp_path / "served.csv")} == set(CLOCKS_MHZ)
    assert "rows written to served.csv" in done.stdout


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([], "missing value: profile.servers"),
        (["profile.servers=somewhere"], "profile.servers: found 'somewhere', allowed: emulated, or a mapping"),
        (["profile.servers={prefill: {url: x}, decode: {}}"], "profile.servers.prefill: found"),
    ],
)
def test_bad_servers_are_one_line(tmp_path: Path, overrides: list[str], says: str) -> None:
    done = command(tmp_path, *overrides)
    assert done.returncode == 2
    assert done.stderr.startswith("voltana-profile: error: ") and says in done.stderr
    assert not list(tmp_path.iterdir())


# Power


def readings_of(power_at: Callable[[float], float], tick_s: float, span_s: float) -> list[Meter]:
    """A counter that moves every `tick_s`, read every 5 ms."""
    steps = [power_at(i * 1e-3) * 1e-3 for i in range(int(span_s * 1e3) + 1)]
    totals = [0.0]
    for step in steps:
        totals.append(totals[-1] + step)
    return [
        Meter(t / 1e3, totals[int(t / 1e3 // tick_s * tick_s * 1e3 + 0.5)], 1410)
        for t in range(0, int(span_s * 1e3), 5)
    ]


@given(st.floats(50, 400), st.floats(20, 100), st.sampled_from([0.02, 0.05, 0.1]), st.floats(0.1, 0.9))
def test_power_of_busy_time_is_told_from_rest(busy_w: float, idle_w: float, tick_s: float, share: float) -> None:
    """Batches with rests between them, a counter that moves in steps."""
    period_s, span_s = 0.1, 3.0
    at = lambda t: busy_w if math.fmod(t, period_s) < share * period_s else idle_w  # noqa: E731
    iterations = [Iteration(i * period_s, share * period_s, 1, 100) for i in range(int(span_s / period_s))]
    told = mean_power_w(readings_of(at, tick_s, span_s), iterations, idle_w)
    assert told == pytest.approx(busy_w, rel=0.05, abs=0.05 * abs(busy_w - idle_w) / share + 1.0)


def test_power_needs_a_counter_that_moves() -> None:
    assert mean_power_w([Meter(0.1 * i, 5.0, 1410) for i in range(9)], [], None) is None
    assert mean_power_w([Meter(0.1 * i, None, 1410) for i in range(9)], [], None) is None
    steady = [Meter(0.1 * i, 20.0 * i, 1410) for i in range(9)]
    assert mean_power_w(steady, [], None) == pytest.approx(200.0)


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=50))
def test_hiccups_are_left_out_on_both_sides(durations: list[float]) -> None:
    iterations = [Iteration(0.0, duration, 1, 1) for duration in durations]
    kept = sorted(each.duration_s for each in trimmed(iterations))
    assert len(kept) == len(durations) - 2 * (len(durations) // 10)
    assert kept[0] >= min(durations) and kept[-1] <= max(durations)


def test_power_over_a_counter_that_started_again_is_unknown() -> None:
    readings = [Meter(float(second), energy_j, 1410) for second, energy_j in enumerate((100.0, 200.0, 5.0, 105.0))]
    assert mean_power_w(readings, [], None) is None
    assert mean_power_w([*readings[2:], Meter(4.0, 205.0, 1410)], [], None) == pytest.approx(100.0)
