"""What there is: `voltana-sim --gpus`, `--models`; and that scaled power is said wherever it is used."""

import json
from pathlib import Path

import pytest

from voltana.analysis.runs import load_runs
from voltana.analysis.tables import compare
from voltana.sim.plant import EngineSpec, Plant
from voltana.sim.plant.plant import gpus_needed
from voltana.sim.run.commands import simulate as command
from voltana.sim.run.compose import compose_sim
from voltana.sim.run.listing import gpus, models
from voltana.sim.run.simulate import simulate

CONF = Path(__file__).parents[3] / "conf"


def printed(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    monkeypatch.setattr("sys.argv", ["voltana-sim", *words])
    command()
    return capsys.readouterr().out.splitlines()


def test_every_model_and_gpu_is_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(["--models", "--gpus"], monkeypatch, capsys)
    names = [line.split()[0] for line in lines]
    assert set(names) == {"model", "gpu", *models(), *gpus()}
    assert {path.stem for group in ("model", "gpu") for path in (CONF / group).glob("*.yaml")} - {"hf", "auto"} <= set(
        names
    )
    (row,) = (line.split() for line in lines if line.split()[0] == "qwen3_30b_a3b")
    assert row[1:6] == ["30.5", "3.4", "56.9", "98304", "1"]
    assert {line.split()[0]: line.split()[-1] for line in lines}["h200_sxm"] == "scaled"


@pytest.mark.parametrize("name", models())
def test_a_model_fits_on_as_many_gpus_as_it_says_and_on_no_fewer(name: str) -> None:
    model, engine = models()[name], EngineSpec()
    for gpu in gpus().values():
        least = gpus_needed(gpu, model, engine)
        assert Plant(gpu, model.but(tp=least, ep=1), engine).kv_capacity_tokens > 0
        if least > 1:
            with pytest.raises(Exception, match=f"at least {least}$"):
                Plant(gpu, model.but(tp=least // 2, ep=1), engine)


def test_scaled_power_is_said_in_summary_and_table(tmp_path: Path) -> None:
    for gpu in ("h100_sxm", "h200_sxm"):
        simulate(compose_sim(f"gpu={gpu}", "policy=static_max", "rps=5", "duration_s=1"), tmp_path / gpu)
        told = json.loads((tmp_path / gpu / "summary.json").read_text())["gpu"]
        assert told == {"name": gpu, "power": "scaled" if gpu == "h200_sxm" else "measured"}
    comparison = compare(load_runs([tmp_path]), "static_max")
    assert [row.setting["gpu"] for row in comparison.rows] == ["h100_sxm", "h200_sxm (power scaled)"]
    notes = [note for note in comparison.notes if "scaled" in note]
    assert notes == ["Power of h200_sxm is scaled from a relative, not measured (docs/catalogue.md)."]
