"""A process of a sweep: what it says of a run that fails, and when it ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from voltana.record import CONFIG, claim
from voltana.record.schema import LOG
from voltana.sim.run.worker import work

Values = Callable[..., dict[str, Any]]


def test_a_wrong_argument_is_bad_input_as_it_is_in_a_single_run(values: Values, tmp_path: Path) -> None:
    failure = work(values("requests=3", "+trace.note=b"), tmp_path, overwrite=False, sweep=None)
    assert failure is not None and failure.bad_input and failure.log == tmp_path / LOG
    assert failure.reason == "TableLengths.__init__() got an unexpected keyword argument 'note'"
    assert failure.log.read_text() == failure.reason + "\n"


def test_no_log_is_left_in_a_folder_of_another_run(values: Values, tmp_path: Path) -> None:
    with claim(tmp_path, {}):
        failure = work(values("requests=3"), tmp_path, overwrite=False, sweep=None)
    assert failure is not None and failure.bad_input and failure.log is None
    assert "is writing its record there" in failure.reason
    assert not (tmp_path / LOG).exists()


@pytest.mark.slow
def test_processes_end_with_a_sweep_that_is_killed(tmp_path: Path) -> None:
    """They hold its standard error open as long as they live."""
    script = "from voltana.sim.run.commands import simulate; simulate()"
    words = ["-m", "policy=static_max", "seed=1,2", "hydra.sweep.dir=sweep", "duration_s=100000"]
    command = [sys.executable, "-c", script, *words]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True) as sweep:
        try:
            deadline = time.monotonic() + 60
            while not (tmp_path / "sweep" / "0" / CONFIG).exists():
                assert time.monotonic() < deadline
                time.sleep(0.05)
            sweep.kill()
            sweep.communicate(timeout=10)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(sweep.pid, signal.SIGKILL)
