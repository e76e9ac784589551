"""Engine constants fitted to a run, whose own were hidden."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from voltana.record import CONFIG, RunRecord
from voltana.sim.calibration.from_run import calibrate, main
from voltana.sim.run.simulate import simulate

HIDDEN = {
    "host_request_s": 0.005,
    "prefill_slowdown": 1.3,
    "prefill_activity": 1.2,
    "host_decode_s": 0.004,
    "decode_slowdown": 1.15,
    "decode_activity": 1.7,
}


def hide(values: dict[str, Any], folder: Path) -> RunRecord:
    """Run an engine, and tell in the record that it was the shipped one."""
    known = values["serving"]["engine"]
    serving = {**values["serving"], "engine": known | HIDDEN}
    simulate({**values, "serving": serving}, folder)
    path = folder / CONFIG
    config = yaml.safe_load(path.read_text())
    config["serving"]["engine"] = known
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return RunRecord(folder)


@pytest.fixture(scope="module", name="record")
def _record(values: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> RunRecord:
    load = ("policy=voltana", "slo.itl_ms=24", "slo.ttft_ms=300", "rps=60", "requests=400")
    return hide(values(*load), tmp_path_factory.mktemp("hidden") / "run")


def test_what_the_record_tells_is_recovered_and_the_rest_is_named(record: RunRecord) -> None:
    fits = calibrate(record)
    found = {key: fitted.constants[key] for fitted in fits.values() for key in fitted.errors}
    unknown = {key for fitted in fits.values() for key in fitted.unknown}
    assert len(found) >= 4
    assert found.keys() | unknown == {*HIDDEN, "host_prefill_s"}
    for key, value in found.items():
        hidden = HIDDEN.get(key, 0.0)
        assert value == pytest.approx(hidden, rel=0.1, abs=6e-4), key


def test_one_load_over_and_over_tells_host_times_and_slowdown_only_together(
    values: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    fits = calibrate(hide(values("policy=static_max", "trace=fixed", "rps=1", "requests=6"), tmp_path / "run"))
    assert len({"host_prefill_s", "host_request_s", "prefill_slowdown"} & {*fits["prefill"].unknown}) == 2
    assert len({"host_decode_s", "decode_slowdown"} & {*fits["decode"].unknown}) == 1


def test_the_preset_brings_the_simulation_near_to_the_record(
    record: RunRecord, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "serving" / "mine.yaml"
    assert main([str(record.folder), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for name in ("energy", "ITL"):
        row = next(line for line in printed.splitlines() if line.startswith(name)).split()
        assert abs(float(row[-1])) < 2 < abs(float(row[-3]))
    assert yaml.safe_load(out.read_text())["name"] == "mine"


def test_a_folder_without_a_record_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("from_run: error: ")
