"""Errors that end in one line for the person at the terminal."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType


class UserError(Exception):
    """Bad input: a wrong key, value or file.

    The message is one line that names the file, line or config key, says what was found and what is allowed.
    Commands print it to stderr and exit with `status`.
    """

    status = 2


class TakenError(UserError):
    """A folder is another run's, which writes its record there or has finished it."""


class RunsCrashedError(UserError):
    """Runs of a sweep ended by a bug or a dying process, not by bad input; exit status 1."""

    status = 1


class RunError(UserError):
    """A run that began went wrong for a reason outside of it, such as a server that died; its record says so too.

    The message names what failed and what it said.
    """

    status = 3


class PolicyError(UserError):
    """A policy that cannot be built, that raised, or whose answer is not allowed.

    Args:
        message: one line, as of every `UserError`.
        traceback_text: the traceback of the policy's own code, printed above the line; empty if it did not raise.
    """

    def __init__(self, message: str, traceback_text: str = "") -> None:
        super().__init__(message, traceback_text)  # both, so that it survives the way out of a worker process
        self.traceback_text = traceback_text

    def __str__(self) -> str:
        return str(self.args[0])

    @classmethod
    def raised(cls, message: str, error: BaseException, *above: str) -> PolicyError:
        """The error for what a policy's code raised; see `own_traceback` for `above`."""
        return cls(message, own_traceback(error, *above))

    @classmethod
    @contextmanager
    def of(cls, whose: str) -> Iterator[None]:
        """Say in whatever is raised inside whose policy it was: of which bundle, in which run."""
        try:
            yield
        except PolicyError as error:
            raise cls(f"{whose}: {error}", error.traceback_text) from error.__cause__


def own_traceback(error: BaseException, *above: str) -> str:
    """The traceback of an error from the first frame that is none of ours.

    Args:
        error: as it was caught.
        above: modules whose frames lead to the policy's code: those of the callers.
    """
    return "".join(traceback.format_exception(type(error), error, _below(error.__traceback__, above)))


def told(error: BaseException, *above: str) -> str:
    """An error in a few words on one line, with the place in the policy's file where it came up."""
    words = one_line(str(error))
    text = f"{type(error).__name__}: {words}" if words else type(error).__name__
    frames = traceback.extract_tb(_below(error.__traceback__, above))
    if not frames:
        return text
    last = [frame for frame in frames if frame.filename == frames[0].filename][-1]
    return f"{text} ({last.filename}:{last.lineno})"


def _below(frames: TracebackType | None, above: tuple[str, ...]) -> TracebackType | None:
    while frames is not None and _leads_to(frames.tb_frame, above):
        frames = frames.tb_next
    return frames


def _leads_to(frame: FrameType, above: tuple[str, ...]) -> bool:
    file = frame.f_code.co_filename
    ours = frame.f_globals.get("__name__") in above  # not by its file: a compiled module has another
    return ours or file.startswith("<frozen importlib") or file.endswith("/importlib/__init__.py")


def one_line(text: str) -> str:
    """A text without its line breaks."""
    return " ".join(text.split())
