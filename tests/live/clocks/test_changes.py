"""What is changed is on disk before it is changed, and until it is undone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from voltana.errors import UserError
from voltana.live.clocks import access
from voltana.live.clocks.changes import Changes, OwnerLock, undo_left_behind
from voltana.live.clocks.device import DeviceError
from voltana.live.clocks.hold import GpuHolds, holder
from voltana.live.clocks.simulated import SimulatedDriver


@pytest.fixture
def driver(parts: dict[str, Any]) -> SimulatedDriver:
    return SimulatedDriver.of({**parts, "gpus": 3, "block_s": 0.0, "settle_s": 0.0})


def on_disk(folder: Path) -> list[dict[str, Any]] | None:
    path = folder / "changed.json"
    return json.loads(path.read_text()) if path.exists() else None


def test_the_note_is_there_exactly_while_something_is_changed(tmp_path: Path, driver: SimulatedDriver) -> None:
    changes = Changes(tmp_path)
    changes.before_clock([driver.open(0), driver.open(2)])
    driver.open(2).set_power_limit(300.0)
    changes.before_power([driver.open(2)])
    driver.open(2).set_power_limit(200.0)
    changes.before_power([driver.open(2)])
    noted = on_disk(tmp_path)
    assert noted is not None
    assert {entry["gpu"]: (entry["clock"], entry["power_limit_w"]) for entry in noted} == {
        0: (True, None),
        2: (True, 300.0),
    }
    assert (tmp_path / "changed.json").stat().st_mode & 0o777 == 0o600
    for change in changes.all():
        changes.undone(change)
    assert on_disk(tmp_path) is None


def test_the_next_owner_undoes_it(tmp_path: Path, driver: SimulatedDriver) -> None:
    driver.open(1).set_power_limit(350.0)
    killed = Changes(tmp_path)
    killed.before_clock([driver.open(1)])
    killed.before_power([driver.open(1)])
    driver.open(1).lock_clock(210)
    driver.open(1).set_power_limit(150.0)

    after = Changes(tmp_path)
    assert after.load() is None
    assert undo_left_behind(driver, after, GpuHolds()) == ["GPU 1: a previous owner left it changed; restored"]
    assert (driver.open(1).clock_mhz(), driver.open(1).power_limit_w()) == (1410, 350.0)
    assert on_disk(tmp_path) is None
    assert undo_left_behind(driver, after, GpuHolds()) == []


def test_one_that_cannot_be_undone_stays_noted(tmp_path: Path, driver: SimulatedDriver) -> None:
    (tmp_path / "changed.json").write_text(
        json.dumps([{"gpu": 9, "uuid": "GPU-gone", "clock": True}, {"gpu": 0, "uuid": driver.open(0).info.uuid}])
    )
    changes = Changes(tmp_path)
    changes.load()
    lines = undo_left_behind(driver, changes, GpuHolds())
    assert lines[0] == "GPU 9: a previous owner left it changed; not restored: no GPU with UUID GPU-gone"
    assert [entry["gpu"] for entry in on_disk(tmp_path) or []] == [9]


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'[{"gpu": "one"}]', b"[1, 2"])
def test_an_unreadable_note_is_put_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "changed.json").write_bytes(content)
    problem = Changes(tmp_path).load()
    assert problem is not None
    assert str(tmp_path / "changed.json") in problem
    assert (tmp_path / "changed.unreadable").read_bytes() == content
    assert Changes(tmp_path).load() is None


def test_nothing_is_noted_if_the_limit_found_is_unknown(tmp_path: Path, driver: SimulatedDriver) -> None:
    class NoLimit(type(driver.open(0))):  # type: ignore[misc]
        def power_limit_w(self) -> float:
            raise DeviceError("unsupported", "no limit")

    device = driver.open(0)
    device.__class__ = NoLimit
    with pytest.raises(DeviceError):
        Changes(tmp_path).before_power([device])
    assert on_disk(tmp_path) is None


def test_a_note_that_cannot_be_written_stops_the_change(tmp_path: Path, driver: SimulatedDriver) -> None:
    changes = Changes(tmp_path / "gone")
    with pytest.raises(OSError, match="No such file"):
        changes.before_clock([driver.open(0)])
    assert changes.all() == ()


def test_a_gpu_has_one_owner_at_a_time(tmp_path: Path, driver: SimulatedDriver) -> None:
    mine, others, uuid = GpuHolds(), GpuHolds(), driver.open(1).info.uuid
    assert holder(uuid) is None
    mine.take(1, uuid)
    mine.take(1, uuid)
    assert holder(uuid) == f"process {os.getpid()} of user {os.geteuid()}"
    with pytest.raises(UserError, match=rf"GPU 1: another owner has it \(process {os.getpid()} of user \d+\)"):
        others.take(1, uuid)
    others.take(0, driver.open(0).info.uuid)
    killed = Changes(tmp_path)
    killed.before_clock([driver.open(0), driver.open(1)])
    after = Changes(tmp_path)
    after.load()
    assert undo_left_behind(driver, after, others) == [
        "GPU 0: a previous owner left it changed; restored",
        "GPU 1: a previous owner left it changed; not restored: GPU 1: another owner has it "
        f"(process {os.getpid()} of user {os.geteuid()}); stop it first",
    ]
    mine.release(uuid)
    assert undo_left_behind(driver, after, others) == ["GPU 1: a previous owner left it changed; restored"]
    assert holder(uuid) is None


def test_simulated_gpus_of_two_runs_are_not_the_same(parts: dict[str, Any]) -> None:
    first, again, other = (SimulatedDriver.of({**parts, "gpus": 2}, host=host) for host in ("/a", "/a", "/b"))
    uuids = [[driver.open(gpu).info.uuid for gpu in range(2)] for driver in (first, again, other)]
    assert uuids[0] == uuids[1] and len({uuid for each in uuids for uuid in each}) == 4


def test_one_owner_per_folder(tmp_path: Path) -> None:
    lock = OwnerLock(tmp_path)
    with pytest.raises(UserError, match=r"another owner is running \(process \d+\)"):
        OwnerLock(tmp_path)
    lock.release()
    OwnerLock(tmp_path).release()


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(UserError, match=r"mode 777; allowed: a folder in which nobody else may replace files"):
        access.prepare_folder(open_to_all)
    with pytest.raises(UserError, match="mode 777"):
        access.prepare_folder(open_to_all / "below")
    open_to_all.chmod(0o1777)
    assert access.prepare_folder(open_to_all / "below").is_dir()


def test_a_socket_path_must_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="allowed: a path of at most 107"):
        access.listen(tmp_path / ("x" * 120), None)


def test_an_unknown_group_is_refused() -> None:
    assert access.group_id("0") == 0
    with pytest.raises(UserError, match="--group: found 'no-such-group'"):
        access.group_id("no-such-group")
