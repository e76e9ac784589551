"""A command line that Hydra has composed before is run without it, and in no other way."""

import subprocess
import sys
from pathlib import Path

import pytest

from voltana.sim.run.known import KnownRun, find_run

SMALL = ("rps=20", "duration_s=1", "policy=static_max")
SCRIPT = """
import sys
from voltana.sim.run.commands import simulate
try:
    simulate()
finally:
    print("with" if "hydra" in sys.modules else "without", file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def simulate(folder: Path, *words: str) -> tuple[int, str]:
    """Exit status of voltana-sim, and whether it was `with` or `without` Hydra."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stderr.splitlines()[-1]


def record(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".parquet", ".yaml")}


@pytest.mark.slow
def test_the_second_run_of_a_configuration_needs_no_hydra_and_is_the_same(tmp_path: Path) -> None:
    assert simulate(tmp_path, *SMALL) == (0, "with")
    assert simulate(tmp_path, *SMALL) == (0, "without")
    assert simulate(tmp_path, *SMALL, "hydra.run.dir=mine/run-3") == (0, "without")
    first, second = sorted(path.parent for path in (tmp_path / "outputs").rglob("summary.json"))
    assert first.parent.parent == second.parent.parent == tmp_path / "outputs" / "sim"
    assert record(first) == record(second) == record(tmp_path / "mine" / "run-3")


@pytest.mark.slow
def test_choices_of_ones_own_are_read_again_when_they_change(tmp_path: Path) -> None:
    (tmp_path / "own" / "slo").mkdir(parents=True)
    mine = tmp_path / "own" / "slo" / "mine.yaml"
    mine.write_text("name: mine\nttft_ms: 700\nitl_ms: 70\nscale: 1\n")
    words = ("--config-dir", "own", *SMALL, "slo=mine")
    assert simulate(tmp_path, *words, "hydra.run.dir=a") == (0, "with")
    assert simulate(tmp_path, *words, "hydra.run.dir=b") == (0, "without")
    mine.write_text("name: mine\nttft_ms: 701\nitl_ms: 70\nscale: 1\n")
    assert simulate(tmp_path, *words, "hydra.run.dir=c") == (0, "with")
    assert b"701" in record(tmp_path / "c")["config.yaml"] and b"701" not in record(tmp_path / "b")["config.yaml"]


@pytest.mark.slow
def test_bad_values_are_told_alike_without_hydra(tmp_path: Path) -> None:
    words = [sys.executable, "-c", SCRIPT, *SMALL, "rps=-3", "hydra.run.dir=run"]
    first, second = (subprocess.run(words, capture_output=True, text=True) for _ in range(2))
    assert first.stderr == second.stderr and "rps: found -3" in first.stderr
    assert first.returncode == second.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "word", ["trace.path=${oc.env:PATH_OF_TEST,x}", "+hydra.job.env_set.A=b", "hydra.output_subdir=kept"]
)
def test_what_hydra_does_more_is_left_to_it(tmp_path: Path, word: str) -> None:
    for folder in ("a", "b"):
        assert simulate(tmp_path, *SMALL[:2], "trace=lognormal", word, f"hydra.run.dir={folder}")[1] == "with"


@pytest.mark.parametrize(
    "word",
    ["-m", "--cfg=job", "hydra.run.dir='a b'", "hydra.run.dir=1e3", "hydra.run.dir=null", "hydra.run.dir=${seed}"],
)
def test_other_words_are_left_to_hydra(monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    kept = {"values": {"a": 1}, "folder": "outputs/${now:%Y}", "overwrite": False}
    monkeypatch.setattr("voltana.sim.run.known.KeptCompositions.find", lambda self, *words: kept)
    assert isinstance(find_run(SMALL), KnownRun)
    assert find_run((*SMALL, word)) is None
