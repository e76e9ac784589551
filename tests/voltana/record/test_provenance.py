"""A record says what made it, and is out of date when that has changed."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import voltana
from voltana.record import RecordWriter, RunRecord
from voltana.record.provenance import already_there, changed, dependencies, provenance

POLICY = "from helper import LOW\n\n\nclass ByBatch:\n    def decide(self, load):\n        return LOW\n"


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user's folder with a policy in two files and a trace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "by_batch.py").write_text(POLICY)
    (tmp_path / "helper.py").write_text("import json\nLOW = 1005\n")
    (tmp_path / "other.py").write_text("")
    (tmp_path / "t.csv").write_text("input_tokens,output_tokens\n1,1\n")
    yield tmp_path
    for name in ("by_batch", "helper", "other", "pack"):
        sys.modules.pop(name, None)


def config(target: str = "by_batch.ByBatch") -> dict[str, object]:
    return {
        "policy": {
            "decode_controller": {"_target_": target},
            "decode_router": {"_target_": "voltana.policies.ecoroute.EcoRoute"},
        },
        "trace": {"_target_": "voltana.traces.files.FileTrace", "path": "t.csv"},
        "predictor": "auto",
    }


def write(folder: Path, values: dict[str, object], predictor: Path | None = None) -> RunRecord:
    about = provenance("sim", dependencies("sim", values, predictor and {"predictor": predictor}))
    with RecordWriter(folder, values, provenance=about) as writer:
        writer.summary({"source": "sim"})
    return RunRecord(folder)


def test_it_says_what_made_the_record(mine: Path) -> None:
    about = write(mine / "run", config()).provenance
    assert about["voltana"] == voltana.__version__
    assert about["command"] == sys.argv and about["host"] and about["started"] and about["python"]
    assert {"numpy", "simpy", "hydra-core"} <= set(about["dependencies"])
    assert set(about["depends_on"]) == {"code", "policy.decode_controller._target_", "trace.path"}
    paths = about["depends_on"]["policy.decode_controller._target_"]["path"]
    assert [Path(path).name for path in paths.split(":")] == ["by_batch.py", "helper.py"]


def test_from_a_checkout_it_names_the_commit(mine: Path) -> None:
    about = write(mine / "run", config()).provenance
    if not (Path(voltana.__file__).parents[1] / ".git").exists():
        pytest.skip("no checkout")
    assert len(about["commit"]) == 40 and about["dirty"] in (True, False)


@pytest.mark.parametrize(
    ("file", "content", "names"),
    [
        ("by_batch.py", POLICY.replace("LOW\n", "LOW + 15\n"), ["policy.decode_controller._target_"]),
        ("helper.py", "LOW = 1110\n", ["policy.decode_controller._target_"]),
        ("t.csv", "input_tokens,output_tokens\n2,1\n", ["trace.path"]),
        ("p.json", "{}", ["predictor"]),
        ("other.py", "x = 1\n", []),
    ],
)
def test_what_has_changed_is_named(mine: Path, file: str, content: str, names: list[str]) -> None:
    (mine / "p.json").write_text("[]")
    record = write(mine / "run", config(), Path("p.json"))
    assert already_there(mine / "run", config()) is not None and changed(record) == []
    (mine / file).write_text(content)
    assert changed(record) == names
    assert (already_there(mine / "run", config()) is None) == bool(names)


def test_this_projects_own_code_counts(mine: Path) -> None:
    record = write(mine / "run", config())
    path = mine / "run" / "provenance.json"
    about = json.loads(path.read_text())
    about["depends_on"]["code"]["sha256"] = "of another version"
    path.write_text(json.dumps(about))
    assert changed(RunRecord(record.folder)) == ["code"]


def test_a_cached_predictor_that_is_gone_is_fitted_again_to_the_same(mine: Path) -> None:
    (mine / "kept.json").write_text("[]")
    record = write(mine / "run", config(), Path("kept.json"))
    (mine / "kept.json").unlink()
    assert changed(record) == []


@pytest.mark.parametrize("damage", ["interrupted", "config", "table", "provenance"])
def test_what_is_not_the_same_finished_run_is_not_there(mine: Path, damage: str) -> None:
    record = write(mine / "run", config())
    assert already_there(record.folder, config()) is not None
    values = config()
    if damage == "interrupted":
        (record.folder / "summary.json").write_text(json.dumps({"source": "sim", "interrupted": True}))
    elif damage == "config":
        values["seed"] = 1
    elif damage == "table":
        whole = (record.folder / "requests.parquet").read_bytes()
        (record.folder / "requests.parquet").write_bytes(whole[:-20])
    else:
        (record.folder / "provenance.json").unlink()
    assert already_there(record.folder, values) is None


def test_a_package_counts_with_its_relative_imports(mine: Path) -> None:
    (mine / "pack").mkdir()
    (mine / "pack" / "__init__.py").write_text("")
    (mine / "pack" / "policy.py").write_text("from . import rules\nfrom .more import x\n\n\nclass P: ...\n")
    (mine / "pack" / "rules.py").write_text("")
    (mine / "pack" / "more.py").write_text("x = 1\n")
    found = dependencies("sim", config("pack.policy.P"))["policy.decode_controller._target_"]["path"]
    assert {Path(path).name for path in found.split(":")} == {"__init__.py", "policy.py", "rules.py", "more.py"}


@pytest.mark.parametrize("source", ["syntax error(", "raise RuntimeError", None])
def test_code_that_cannot_be_read_is_left_to_who_runs_it(mine: Path, source: str | None) -> None:
    if source is None:
        (mine / "by_batch.py").unlink()
    else:
        (mine / "by_batch.py").write_text(source)
    assert "policy.decode_controller._target_" in dependencies("sim", config())
