"""Where the joules went: the parts of a simulated run against the plant that drew them."""

from pathlib import Path

import pytest

from voltana.analysis import energy, figures
from voltana.analysis.runs import load_runs
from voltana.record import RunRecord
from voltana.sim.plant.build import plant_of
from voltana.sim.run.compose import compose_sim
from voltana.sim.run.simulate import simulate


def run(folder: Path, *overrides: str) -> RunRecord:
    values = compose_sim("duration_s=8", "rps=40", *overrides)
    simulate(values, folder)
    return RunRecord(folder)


@pytest.fixture(name="fastest", scope="module")
def _fastest(tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    return run(tmp_path_factory.mktemp("max"), "policy=static_max")


@pytest.mark.slow
def test_the_parts_add_up_and_the_floor_is_the_base_draw(fastest: RunRecord) -> None:
    parts = energy.split(fastest)
    assert parts is not None
    told = fastest.summary["energy_j"]["per_instance"]
    assert list(parts) == ["prefill-0", "prefill-1", "decode-0", "decode-1"]
    for name, joules in parts.items():
        assert sum(joules.parts) == pytest.approx(told[name], rel=1e-6)
        floor = fastest.config["gpu"]["base_w"] * fastest.summary["duration_s"]
        assert joules.parts[0] == pytest.approx(floor, rel=1e-3)
        assert min(joules.parts) > 0


@pytest.mark.slow
def test_above_the_knee_is_what_a_knee_voltage_would_save(fastest: RunRecord) -> None:
    """Each row again on a plant whose voltage stays that of the knee, at the clock really in force."""
    sections = [dict(fastest.config[key]) for key in ("gpu", "model")]
    engine = fastest.config["serving"]["engine"]
    gpu = sections[0]
    flat = gpu["voltage_ratio"] ** -2
    lower = {name: gpu[name] * flat for name in ("idle_w", "tensor_w", "stream_w")}
    plant, knee = plant_of(*sections, engine), plant_of({**gpu, **lower, "voltage_ratio": 1.0}, sections[1], engine)
    rows = fastest.instances()
    own = rows[rows["instance"] == "decode-0"]
    spans = [*own["time_s"].diff().iloc[1:], fastest.summary["end_s"] - own["time_s"].iloc[-1]]
    extra = 0.0
    for row, span in zip(own.itertuples(), spans, strict=True):
        if row.batch_size:
            clock = plant.decode(row.batch_size, row.kv_tokens, row.clock_mhz).clock_mhz
            free, low = (each.decode(row.batch_size, row.kv_tokens, clock, 1e9).power_w for each in (plant, knee))
            extra += span * row.power_w * (free - low) / free
        else:
            extra += span * (plant.idle_power_w(row.clock_mhz) - knee.idle_power_w(row.clock_mhz))
    parts = energy.split(fastest)
    assert parts is not None
    assert parts["decode-0"].parts[3] == pytest.approx(extra, rel=0.02)


@pytest.mark.slow
def test_nothing_is_above_the_knee_below_it(tmp_path: Path) -> None:
    parts = energy.split(run(tmp_path, "policy=static_1005"))
    assert parts is not None
    assert all(joules.parts[3] == pytest.approx(0, abs=1e-6) for joules in parts.values())


@pytest.mark.slow
def test_a_gpu_whose_constants_are_not_told_is_not_split(tmp_path: Path, fastest: RunRecord) -> None:
    unknown = RunRecord(fastest.folder)
    unknown.__dict__["config"] = {**fastest.config, "gpu": {"name": "auto"}}
    assert energy.split(unknown) is None


@pytest.mark.slow
def test_the_figure_stacks_the_parts(fastest: RunRecord) -> None:
    (axis,) = figures.energy(load_runs([fastest.folder])).axes
    total = sum(patch.get_width() for patch in axis.patches)
    assert len(axis.patches) == len(energy.PARTS)
    assert total == pytest.approx(fastest.summary["energy_j"]["total"] / 1e3, rel=1e-6)
