"""What Hydra composed before is found again, and only as long as everything that composes it is the same."""

import sys
from pathlib import Path

import pytest

from voltana.app import kept
from voltana.app.kept import KeptCompositions, folders_of


@pytest.fixture(autouse=True, name="cache")
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "voltana" / "composed.sqlite"


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    (tmp_path / "conf" / "policy").mkdir(parents=True)
    (tmp_path / "conf" / "sim.yaml").write_text("rps: 1")
    (tmp_path / "conf" / "policy" / "mine.yaml").write_text("name: mine")
    return tmp_path / "conf"


def keep(folder: Path, value: dict[str, object], *words: str) -> None:
    cache = KeptCompositions(folder)
    cache.keep(value, *words)
    cache.save()


def test_it_comes_back_as_it_was_under_its_own_words_alone(folder: Path) -> None:
    value = {"rps": 75.5, "n": 3, "none": None, "flags": [True, "a"], "inner": {"é": 1e-300}}
    keep(folder, value, "rps=75.5", "a")
    assert KeptCompositions(folder).find("rps=75.5", "a") == value
    assert KeptCompositions(folder).find("rps=75.5 a") is None
    assert KeptCompositions(folder).find("a", "rps=75.5") is None


def test_nothing_is_found_before_it_is_saved(folder: Path) -> None:
    cache = KeptCompositions(folder)
    cache.keep({"a": 1}, "x")
    assert cache.find("x") is None and KeptCompositions(folder).find("x") is None


@pytest.mark.parametrize("value", [{"rates": {50: 1}}, {"nan": float("nan")}, {"pair": (1, 2)}])
def test_what_would_come_back_different_is_not_kept(folder: Path, value: dict[str, object]) -> None:
    keep(folder, value, "x")
    assert KeptCompositions(folder).find("x") is None


def test_a_changed_a_new_a_renamed_and_a_removed_file_are_seen(folder: Path) -> None:
    keep(folder, {"a": 1}, "x")
    mine, other = folder / "policy" / "mine.yaml", folder / "policy" / "other.yaml"
    text = mine.read_text()
    mine.write_text(text + "\n")
    assert KeptCompositions(folder).find("x") is None
    mine.write_text(text)
    assert KeptCompositions(folder).find("x") == {"a": 1}
    other.write_text("")
    assert KeptCompositions(folder).find("x") is None
    other.unlink()
    mine.rename(other)
    assert KeptCompositions(folder).find("x") is None
    other.unlink()
    assert KeptCompositions(folder).find("x") is None


def test_another_folder_and_their_order_are_seen(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "sim.yaml").write_text("rps: 2")
    keep(folder, {"a": 1}, "x")
    assert KeptCompositions(folder, own).find("x") is None
    assert KeptCompositions(own, folder).find("x") is None


def test_a_plugin_that_comes_or_goes_is_seen(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(folder, {"a": 1}, "x")
    (tmp_path / "site" / "hydra_plugins" / "more").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])
    assert KeptCompositions(folder).find("x") is None


def test_the_oldest_go(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "MOST", 3)
    for number in range(5):
        keep(folder, {"a": number}, str(number))
    cache = KeptCompositions(folder)
    assert [cache.find(str(number)) for number in range(5)] == [None, None, {"a": 2}, {"a": 3}, {"a": 4}]


@pytest.mark.parametrize("damage", ["not a database " * 100, ""])
def test_a_cache_that_cannot_be_used_is_none(folder: Path, cache: Path, damage: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(damage)
    keep(folder, {"a": 1}, "x")
    keep(folder, {"a": 2}, "x")
    assert KeptCompositions(folder).find("x") == {"a": 2}


def test_a_folder_in_the_place_of_the_cache_is_no_error(folder: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    keep(folder, {"a": 1}, "x")
    assert KeptCompositions(folder).find("x") is None


def test_sources_whose_content_is_not_seen_are_told() -> None:
    shipped = {"provider": "main", "schema": "pkg", "path": "voltana.conf"}
    own = {"provider": "command-line", "schema": "file", "path": "/own"}
    theirs = {"provider": "hydra", "schema": "pkg", "path": "hydra.conf"}
    found = folders_of([theirs, shipped, own, {"provider": "schema", "schema": "structured", "path": ""}])
    assert found is not None and [each.name for each in found] == ["conf", "own"]
    assert folders_of([shipped, {"provider": "hydra.searchpath in main", "schema": "file", "path": "/x"}]) is None
