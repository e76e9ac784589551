"""Simulated runs in a process of a sweep: what happens to one stays with it."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from voltana.app.cli import explain_job_error
from voltana.errors import TakenError, UserError, one_line
from voltana.files import write_whole
from voltana.record import RunRecord
from voltana.record.schema import LOG


class Outcome(NamedTuple):
    """What became of a run."""

    summary: dict[str, Any]
    already_there: bool
    """Whether its record was in the folder before, so that nothing was simulated."""


class Failure(NamedTuple):
    """Why a run failed."""

    reason: str
    log: Path | None
    bad_input: bool
    """Whether it is the user's to mend; else it is a bug."""


SAME_S = 1.0
"""Signals that come so soon after each other are one: a terminal's Ctrl-C reaches the workers twice."""

_interrupted = False
_interrupted_s = -math.inf
_at_work = False


def begin() -> None:
    """Set up the process: Ctrl-C ends the run at work and keeps others from beginning.

    The parent starts it with the signal blocked, so that none is lost and none strikes while modules are imported.
    """
    global _interrupted
    import voltana.sim.run.simulate  # noqa: F401 - some compiled modules do not bear being interrupted while they are imported

    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, _on_interrupt)
    _interrupted = signal.SIGINT in signal.sigpending()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with_parent() -> None:
    """End as soon as the process of the sweep is gone: killed, it would leave this one waiting for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted, _interrupted_s
    again = time.monotonic() - _interrupted_s < SAME_S
    _interrupted, _interrupted_s = True, time.monotonic()
    if _at_work and not again:
        raise KeyboardInterrupt


def work(values: Mapping[str, Any], folder: Path, overwrite: bool, sweep: Mapping[str, Any] | None) -> Failure | None:
    """Make one run; whatever goes wrong in it is told in words.

    Raises:
        KeyboardInterrupt: the sweep was interrupted, now or before.
    """
    global _at_work
    _at_work = True
    try:
        if _interrupted:
            raise KeyboardInterrupt
        (folder / LOG).unlink(missing_ok=True)
        run_job(values, folder, overwrite, sweep)
    except TakenError as error:  # the folder is another run's, so its log would be of that one
        return Failure(str(error), None, bad_input=True)
    except Exception as error:
        reason = explain_job_error(error)
        if reason is not None:
            return Failure(reason, _log(folder, getattr(error, "traceback_text", ""), reason), bad_input=True)
        reason = one_line(f"{type(error).__name__}: {error}")
        return Failure(reason, _log(folder, traceback.format_exc(), reason), bad_input=False)
    finally:
        _at_work = False
    return None


def run_job(
    values: Mapping[str, Any],
    folder: Path,
    overwrite: bool = False,
    sweep: Mapping[str, Any] | None = None,
    progress: Callable[[float], None] = lambda _: None,
) -> Outcome:
    """A run as the commands make it; the arguments are those of `voltana.sim.run.simulate.simulate`.

    Nothing is simulated where the folder holds the finished record of the same run. Where `bound` asks for them, the
    lower bound on energy and the energy of the stationary optimum are added.
    """
    from voltana.record.provenance import already_there
    from voltana.sim.run.simulate import simulate

    there = None if overwrite else already_there(folder, values)
    summary = there.summary if there else simulate(values, folder, progress, overwrite=overwrite, sweep=sweep)
    if values["bound"]:
        from voltana.sim.studies import bound, stationary

        wanted = {True: (bound,), "stationary": (stationary,), "both": (bound, stationary)}[values["bound"]]
        for study in wanted:
            if study.KEY not in summary:
                summary[study.KEY] = study.add_to(RunRecord(folder)).energy_j
    return Outcome(summary, already_there=there is not None)


def _log(folder: Path, trace: str, reason: str) -> Path | None:
    try:
        write_whole(folder / LOG, f"{trace}{reason}\n")
    except UserError:
        return None
    return folder / LOG
