"""`voltana-profile source=torch` on the command line."""

import sys
from pathlib import Path

import pytest

import voltana.sim.run.commands
from voltana.prediction.profile import read_profile

TINY = (
    "model.layers=2",
    "model.hidden=32",
    "model.ffn=64",
    "model.heads=4",
    "model.kv_heads=2",
    "model.head_dim=8",
    "model.vocab=96",
    "profile.device=cpu",
    "profile.prefill.tokens=[8,64]",
    "profile.prefill.prompt_tokens=8",
    "profile.decode.max_batch=4",
    "profile.decode.tokens_per_request=[4,16]",
    "profile.window_s=0.001",
    "profile.windows=[2,2]",
    "profile.budget_s=0.1",
)


def profile(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> int:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["voltana-profile", *arguments])
    try:
        voltana.sim.run.commands.profile()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("choice", [["source=torch", "gpu=auto"], ["profile=torch"]])
def test_both_ways_to_ask(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, choice: list[str]) -> None:
    pytest.importorskip("torch")
    assert profile(monkeypatch, tmp_path, *choice, "model=llama31_8b", "out=mine.csv", *TINY) == 0
    assert {s.phase for s in read_profile(tmp_path / "mine.csv")} == {"prefill", "decode"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["source=quantum"], "allowed: plant, sglang, torch"),
        (["source=torch", "gpu=a100_sxm4_80g"], "gpu: found a100_sxm4_80g, allowed with source=torch: auto"),
        (["source=torch", "profile.attention=magic"], "profile.attention: found 'magic'"),
        (["source=torch", "profile._target_=no.such.source"], "profile._target_: found 'no.such.source'"),
        (["gpu=auto"], "gpu.clock_min_mhz: missing"),
    ],
)
def test_bad_input_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    says: str,
) -> None:
    assert profile(monkeypatch, tmp_path, *arguments) == 2
    err = capfd.readouterr().err
    assert says in err and err.count("\n") == 1
