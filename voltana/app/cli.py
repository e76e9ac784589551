"""The shared entry of the console scripts: a Hydra app whose bad input ends in one line.

Exit status: 0 done, 1 a bug (with its traceback), 2 bad input, 3 a run that went wrong for a reason outside of it, such
as a server that died (its record says so), 130 interrupted. A sweep runs all its jobs before it reports the ones that
failed. With HYDRA_FULL_ERROR=1 in the environment every error keeps its traceback.
"""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from voltana.app.terminal import take_any_text
from voltana.compiled import version
from voltana.errors import PolicyError, RunError, UserError, one_line

if TYPE_CHECKING:
    from hydra.errors import (
        ConfigCompositionException,
        InstantiationException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf import DictConfig
    from omegaconf.errors import OmegaConfBaseException

CONFIG_PATH = "pkg://voltana.conf"
CHDIR = "hydra.job.chdir: found true, allowed: false; paths are those of the folder where the command was typed"
_FULL_ERROR = "HYDRA_FULL_ERROR"


def hydra_command(
    config_name: str,
    run: Callable[[DictConfig], object],
    *,
    program: str,
    config_path: str = CONFIG_PATH,
    known: Callable[[Sequence[str]], Callable[[], object] | None] = lambda words: None,
    before_hydra: Callable[[], None] = lambda: None,
) -> Callable[[], None]:
    """Make the function behind a console script.

    Args:
        config_name: the primary configuration, `conf/<config_name>.yaml`.
        run: the job; called once, or once per combination with `-m`; a sweeper that searches is told what it
            returns. Missing values (`???`) are refused before it.
        program: the name of the script, as the user typed it; Hydra's `hydra.job.name`.
        config_path: where the configuration lives: a package (`pkg://...`) or an absolute folder.
        known: gives the job of a command line for which Hydra is not needed, as its configuration is known; else None.
        before_hydra: called where Hydra is needed, before it begins.
    """

    def command() -> None:
        take_any_text()
        words = sys.argv[1:]
        if "--version" in words:
            print(f"{program} {version()}")
            return
        if "--help" in words or "-h" in words:
            from voltana.app.help import help_page

            with _until_seen_enough():
                print(help_page(program, config_name, config_path, words), flush=True)
            return
        if os.environ.get(_FULL_ERROR) == "1":
            before_hydra()
            _App(run, program).start(config_path, config_name)
            return
        try:
            app = _App(run, program, collect=True)
            with _hydra_raises(), _until_seen_enough():
                if (job := known(words)) is not None:
                    app.attempt(job)
                else:
                    before_hydra()
                    app.start(config_path, config_name)
        except KeyboardInterrupt:
            _stop(f"{program}: interrupted", 130)
        except UserError as error:
            _print_traceback(error)
            _stop(f"{program}: error: {error}", error.status)
        if app.refused:
            for each in app.refused if len(app.refused) > 1 else ():
                print(f"refused: {one_line(each)}", file=sys.stderr)
            _stop(f"{program}: error: {_report(app.refused, app.jobs)}", app.status)

    return command


class _App:
    """One start of a Hydra app.

    Hydra prints lines of its own when a job raises, so refused jobs are collected and told after the last one. A
    launcher that runs jobs in other processes could not hand them back: there they raise.
    """

    def __init__(self, run: Callable[[DictConfig], object], program: str, collect: bool = False) -> None:
        self._run = run
        self._program = program
        self._collecting_process = os.getpid() if collect else None
        self._crashed = False
        self.jobs = 0
        self.refused: list[str] = []
        self.status = 0
        """Exit status for the refused: the least of theirs."""

    def start(self, config_path: str, config_name: str) -> None:
        """Run the command line in `sys.argv`; bad input outside the jobs is a `UserError`."""
        import hydra

        import voltana.app.resolve  # noqa: F401 - what interpolations of any command may use
        from voltana.app import counts

        counts.register()

        def job(config: DictConfig) -> object:
            return self._job(config)

        job.__module__ = self._program  # where Hydra takes the job's name from
        app = hydra.main(config_path=config_path, config_name=config_name, version_base="1.3")(job)
        if self._collecting_process is None:
            app()
            return
        _check_flags()
        try:
            with _composed_once():
                app()
        except Exception as error:
            if self._crashed or isinstance(error, BrokenPipeError | UserError) or not _is_bad_input(error):
                raise
            raise UserError(explain(error)) from error

    def _job(self, config: DictConfig) -> object:
        def run() -> object:
            _check_folder_stays()
            _check_complete(config)
            return self._run(config)

        return self.attempt(run, _job_label)

    def attempt(self, job: Callable[[], object], label: Callable[[], str] = lambda: "") -> object:
        """Do a job and return what it does; bad input that it meets is collected, what else it raises is a bug.

        Args:
            job: what to do.
            label: names it in front of what is collected.
        """
        self.jobs += 1
        try:
            return job()
        except Exception as error:
            message = explain_job_error(error)
            if message is None or self._collecting_process is None:
                self._crashed = True
                raise
            if self._collecting_process != os.getpid():
                raise error if isinstance(error, PolicyError | RunError) else UserError(message) from error
            status = error.status if isinstance(error, UserError) else UserError.status
            self.status = min(self.status or status, status)
            _print_traceback(error)
            self.refused.append(label() + message)
            return None


def explain(error: BaseException) -> str:
    """The one line that tells an error of Hydra or OmegaConf: the key, what was found, what is allowed."""
    from hydra.errors import (
        ConfigCompositionException,
        InstantiationException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import OmegaConfBaseException

    match error:
        case MissingConfigException():
            return _explain_missing_config(error)
        case OverrideParseException():
            return _explain_override(error)
        case InstantiationException():
            return _explain_instantiation(error)
        case OmegaConfBaseException():
            return _explain_omegaconf(error)
        case OSError() if error.filename:
            return f"{error.filename}: {error.strerror}"
        case OSError() if error.errno:  # the one file that Hydra writes before the jobs
            return f"hydra.sweep.dir: multirun.yaml: {os.strerror(error.errno)}"
        case ConfigCompositionException():
            return _explain_composition(error)
    return one_line(str(error))


def _explain_composition(error: ConfigCompositionException) -> str:
    from omegaconf.errors import OmegaConfBaseException

    line = one_line(str(error))
    if isinstance(error.__cause__, OmegaConfBaseException):
        cause = explain(error.__cause__)
        return f"{line}: {cause}" if line.startswith("Error merging") else cause
    if ambiguous := re.match(r"Ambiguous value for argument '([^=]+)=(.*?)' ", line):
        key, values = ambiguous.groups()
        return f"{key}: found several values, {values}; sweep over them with -m, or give one list as {key}=[{values}]"
    return line


def _explain_missing_config(error: MissingConfigException) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if error.options and group:
        more = ", or any numbers of instances, such as 4p12d" if group == "cluster" else ""
        return f"{group}={option}: no such option{_choices(option, error.options)}{more}"
    return one_line(str(error).partition("\nConfig search path:")[0].partition("\nSearch path:")[0])


def _explain_override(error: OverrideParseException) -> str:
    reason = error.message.partition("\nSee https://")[0].replace(f"Error parsing override '{error.override}'", "")
    reason = one_line(reason.partition("\n ")[0]).removeprefix("LexerNoViableAltException: ")
    found = f" ({reason})" if reason and reason != error.override else ""
    return f"cannot parse {error.override!r}{found}; allowed: key=value, +key=value, ~key; quote special characters"


def _explain_omegaconf(error: OmegaConfBaseException) -> str:
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue

    key = error.full_key or error.key
    match error:
        case MissingMandatoryValue():
            return f"missing value: {key}; give it as {key}=..."
        case ConfigAttributeError() | ConfigKeyError() if error.full_key:
            keys = [str(name) for name in error.parent_node or () if name != "hydra"]
            if not keys:
                return f"unknown config key {key!r}: {str(key).rpartition('.')[0]!r} holds a value, not keys"
            return f"unknown config key {key!r}{_choices(str(error.key), keys)}"
    reason = one_line(str(error).partition("\n    full_key:")[0])
    return f"{key}: {reason}" if key else reason


def _explain_instantiation(error: InstantiationException) -> str:
    cause = _root_cause(error)
    reason = one_line(str(cause).partition("\nfull_key:")[0])
    key = _full_key(error)
    return f"{key}: {reason}" if key else reason


def _full_key(error: BaseException) -> str:
    """The longest key path told along a chain of instantiation errors: the one nearest to the fault."""
    keys = [""]
    current: BaseException | None = error
    while current is not None:
        _, found, key = str(current).rpartition("full_key: ")
        keys.append(key.strip() if found else "")
        current = current.__cause__
    return max(keys, key=len)


def _root_cause(error: BaseException) -> BaseException:
    from hydra.errors import InstantiationException

    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        if isinstance(error.__cause__, ImportError):
            return error
        error = error.__cause__
    return error


def explain_job_error(error: Exception) -> str | None:
    """The line for bad input met by a job; None for a bug."""
    from hydra.errors import InstantiationException
    from omegaconf.errors import OmegaConfBaseException

    cause = _root_cause(error)
    if isinstance(cause, UserError | OmegaConfBaseException | InstantiationException) or _is_wrong_call(error, cause):
        return explain(error)
    return None


def _is_wrong_call(error: BaseException, cause: BaseException) -> bool:
    """Whether `hydra.utils.instantiate` called something with arguments that it does not take."""
    if error is cause or not isinstance(cause, TypeError) or cause.__traceback__ is None:
        return False
    *_, (frame, _) = traceback.walk_tb(cause.__traceback__)
    return str(frame.f_globals.get("__name__", "")).startswith("hydra.")


def _is_bad_input(error: Exception) -> bool:
    """Whether an error from outside the jobs lies with the command line, the configuration or the run folder."""
    import yaml
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, UserError | HydraException | OmegaConfBaseException | yaml.YAMLError):
        return True
    launching = any(frame.f_code.co_name == "launch" for frame, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, ValueError | OSError) and not launching  # a launcher raises what its jobs raised


def _check_flags() -> None:
    """Refuse unknown flags in one line, where Hydra's parser would print its whole usage."""
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args()


def _check_folder_stays() -> None:
    from hydra.core.hydra_config import HydraConfig

    if HydraConfig.get().job.chdir:
        raise UserError(CHDIR)


def _check_complete(config: DictConfig) -> None:
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise UserError(f"missing value: {', '.join(missing)}; give it as {missing[0]}=...")


def _job_label() -> str:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    if hydra.mode is not RunMode.MULTIRUN:
        return ""
    return f"job {hydra.job.num} ({' '.join(hydra.overrides.task)}): "


def _report(refused: list[str], jobs: int) -> str:
    return refused[0] if jobs == 1 else f"{len(refused)} of {jobs} jobs refused, the first: {refused[0]}"


def _choices(found: str, allowed: Iterable[str]) -> str:
    import difflib

    names = sorted(allowed)
    close = difflib.get_close_matches(found, names, n=1)
    return f"; allowed: {', '.join(names)}" + (f"; did you mean {close[0]}?" if close else "")


@contextmanager
def _until_seen_enough() -> Iterator[None]:
    """End quietly where the reader of standard output, such as `head`, has gone."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Let errors through instead of having Hydra print them and exit."""
    os.environ[_FULL_ERROR] = "1"
    try:
        yield
    finally:
        del os.environ[_FULL_ERROR]


@contextmanager
def _composed_once() -> Iterator[None]:
    """Spare Hydra composing the whole configuration a first time, only to read `hydra.mode` in it.

    Without an answer it goes by the flags, which is right unless the mode is overridden.
    """
    from hydra._internal.hydra import Hydra

    asked = getattr(Hydra, "get_mode", None)
    if asked is None or any("hydra.mode" in word for word in sys.argv[1:]):
        yield
        return
    Hydra.get_mode = lambda self, config_name, overrides: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        Hydra.get_mode = asked  # type: ignore[method-assign]


def _print_traceback(error: Exception) -> None:
    """Print what a policy's own code raised, above the one line."""
    if isinstance(error, PolicyError) and error.traceback_text:
        print(error.traceback_text, end="", file=sys.stderr)


def _stop(line: str, status: int) -> NoReturn:
    print(one_line(line), file=sys.stderr)
    sys.exit(status)
