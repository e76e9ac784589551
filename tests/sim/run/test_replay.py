"""`replay=RECORD`: a record's own requests, simulated in its own configuration."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from voltana.errors import UserError
from voltana.record import CONFIG, INSTANCES, REQUESTS, SUMMARY, RunRecord
from voltana.sim.run.compose import compose_sim
from voltana.sim.run.simulate import simulate

Run = Callable[..., RunRecord]
LIVE = {"servers": {"name": "emulated"}, "control": {"name": "simulated"}, "drain_s": 120}


@pytest.fixture
def other(run: Run) -> RunRecord:
    """A run that differs from the defaults in every way that a record could tell."""
    record: RunRecord = run("policy=static_1005", "model=qwen3_32b", "rps=7", "slo=tight", "cluster=1p3d", "seed=5")
    return record


@pytest.fixture
def live(other: RunRecord, tmp_path: Path) -> RunRecord:
    """It, as a live run leaves it: keys of its own, without those of the simulator."""
    folder = tmp_path / "live"
    shutil.copytree(other.folder, folder)
    config = {
        key: value
        for key, value in other.config.items()
        if key not in ("drift", "front_end", "planner", "engine", "bound")
    }
    (folder / CONFIG).write_text(yaml.safe_dump({**config, **LIVE}))
    (folder / SUMMARY).write_text(json.dumps({**other.summary, "source": "live"}))
    return RunRecord(folder)


def test_a_simulated_record_gives_its_bytes_again(other: RunRecord, tmp_path: Path) -> None:
    simulate(compose_sim(f"replay={other.folder}"), tmp_path / "twin")
    for table in (REQUESTS, INSTANCES):
        assert (tmp_path / "twin" / table).read_bytes() == (other.folder / table).read_bytes()


def test_the_configuration_is_the_records_but_for_its_requests(other: RunRecord) -> None:
    twin = compose_sim(f"replay={other.folder}")
    assert twin["trace"] == {
        "name": "record",
        "_target_": "voltana.traces.replay.RecordTrace",
        "path": str(other.folder / REQUESTS),
    }
    assert (twin["arrival"]["name"], twin["duration_s"], twin["requests"]) == ("timestamps", None, None)
    own = ("trace", "arrival", "duration_s", "requests")
    assert {key: value for key, value in twin.items() if key not in own} == {
        key: value for key, value in other.config.items() if key not in own
    }


@pytest.mark.slow
def test_a_live_record_takes_what_it_lacks_from_the_simulators_defaults(live: RunRecord, tmp_path: Path) -> None:
    """But no front end: nothing stands before live servers."""
    twin, defaults = compose_sim(f"replay={live.folder}"), compose_sim("front_end=none")
    for key in ("drift", "front_end", "planner", "engine", "bound"):
        assert twin[key] == defaults[key]
    assert twin.keys() == defaults.keys()
    assert all(twin[key] == live.config[key] for key in ("policy", "model", "cluster", "slo", "rps", "seed", "gpu"))
    simulate(twin, tmp_path / "twin")
    columns = ["arrival_s", "input_tokens", "output_tokens"]
    assert RunRecord(tmp_path / "twin").requests()[columns].equals(live.requests()[columns])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("policy=static_max", ("policy", "name"), "static_max"),
        ("router@policy.decode_router=random", ("policy", "decode_router", "_target_"), "RandomRouter"),
        ("engine=reference", ("engine",), "reference"),
        ("duration_s=2", ("duration_s",), 2),
        ("serving.decode.max_requests=7", ("serving", "decode", "max_requests"), 7),
        ("++policy.decode_controller.clock_mhz=810", ("policy", "decode_controller", "clock_mhz"), 810),
        ("slo=relaxed", ("slo", "scale"), 1.5),
        ("front_end=released", ("front_end", "name"), "released"),
    ],
)
def test_what_is_given_beside_it_wins(live: RunRecord, override: str, path: tuple[str, ...], value: Any) -> None:
    """And changes nothing else, not in its own section either."""
    plain, twin = compose_sim(f"replay={live.folder}"), compose_sim(f"replay={live.folder}", override)
    found: Any = twin
    for key in path:
        found = found[key]
    assert str(found).rpartition(".")[2] == str(value) or found == value
    changed = {key for key, _ in differing(plain, twin)}
    group = override.lstrip("+").partition("=")[0].rpartition("@")[2]
    assert changed and all(key == group or key.startswith(f"{group}.") for key in changed)


def differing(one: Any, other: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Where two configurations differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in {*one, *other}:
            yield from differing(one.get(key), other.get(key), f"{place}.{key}" if place else key)
    elif one != other:
        yield place, other


@pytest.mark.slow
def test_objectives_of_another_choice_are_of_the_records_model(live: RunRecord) -> None:
    relaxed = compose_sim(f"replay={live.folder}", "slo=relaxed")["slo"]
    assert relaxed == compose_sim("model=qwen3_32b", "slo=relaxed")["slo"]
    assert relaxed["ttft_ms"] != compose_sim("slo=relaxed")["slo"]["ttft_ms"]


@pytest.mark.slow
def test_what_cannot_be_replayed_is_told(other: RunRecord, tmp_path: Path) -> None:
    def refusal(*words: str) -> str:
        with pytest.raises(UserError) as told:
            compose_sim(*words)
        return str(told.value)

    assert refusal(f"replay={tmp_path}") == f"replay: {tmp_path}: not a finished run record, missing config.yaml"
    assert refusal("replay=3") == "replay: found 3, allowed: the folder of a run record"
    assert refusal(f"replay={other.folder}", "experiment=next").startswith("experiment: found a preset beside replay")
    table = other.folder / REQUESTS
    unfinished = tmp_path / "unfinished"
    shutil.copytree(other.folder, unfinished, ignore=shutil.ignore_patterns(SUMMARY))
    assert refusal(f"replay={unfinished}").endswith(f"{unfinished}: not a finished run record, missing {SUMMARY}")
    import pyarrow.parquet as pq

    pq.write_table(pq.read_table(table).slice(0, 0), table)
    assert refusal(f"replay={other.folder}") == f"replay: {other.folder}: found no requests, allowed: at least one"
    table.write_bytes(b"nothing")
    assert refusal(f"replay={other.folder}").startswith(f"replay: {table}: cannot be read: ")
